"""Shows text of unknown origin: no control code reaches a terminal, and no name ends a quotation in a shell."""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    r"""Return a line of text with `\u....` for each character that is not printable.

    A terminal obeys escape codes, also those in the name of a table. In JSON the result has the same meaning.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def shell_quoted(word: str) -> str:
    """Return a word as bash, zsh and ksh read it; the result is printable."""
    if word.isprintable():
        return shlex.quote(word)
    raw = word.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if _is_plain(byte) else f"\\x{byte:02x}" for byte in raw) + "'"


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _is_plain(byte: int) -> bool:
    return byte in range(0x20, 0x7F) and chr(byte) not in "'\\"
