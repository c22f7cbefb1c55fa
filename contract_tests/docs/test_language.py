"""Tests the language rules: finished files contain none of the excluded words and constructions."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).parents[2]
FINISHED: Final = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/operations/*.md",
    "benchmarks/**/*.py",
    "benchmarks/peers.txt",
    "noxfile.py",
    "containers/**/*.sh",
    ".ci/run",
    ".github/workflows/*.yml",
    "docs/contract/*.md",
    "docs/operations/**/*.yaml",
    "flux_memory/**/*.py",
    "contract_tests/**/*.py",
    "tools/*.py",
    "examples/**/*.py",
    "examples/**/*.md",
)
"""Globs of the files held to the rules."""

RULED_OUT: Final = {
    "an actor without a name": re.compile(r"\b(?:whoever|whatever|somebody|nobody)\b", re.IGNORECASE),
    "fix": re.compile(r"\bmend(?:s|ed|ing)?\b", re.IGNORECASE),
    "release, close or drop": re.compile(r"\blet(?:s|ting)? go of\b", re.IGNORECASE),
    "return whether": re.compile(r"\btells? whether\b", re.IGNORECASE),
    "is not a": re.compile(r"(?<!\bthere )\bis no\b(?! longer\b)", re.IGNORECASE),
    "a named subject": re.compile(r"\bWhat (?:is|was)\b"),
}
"""Regular expressions, by the remedy that a failure names."""

_CODE: Final = re.compile(r"^ *```.*?^ *```|`[^`]*`", re.DOTALL | re.MULTILINE)
_HASH: Final = re.compile(r"(?:^|\s)#+(.*)$", re.MULTILINE)
_QUOTES: Final = re.compile(r"""^\w*["']+|["']+$""")
_STRINGS: Final = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}  # the latter since Python 3.12
_IGNORED: Final = {
    *(tokenize.NL, tokenize.INDENT, tokenize.DEDENT),
    *(getattr(tokenize, name, None) for name in ("FSTRING_START", "FSTRING_END")),
}


def find_slips(name: str, text: str) -> list[str]:
    """Return each phrase in a file's prose that the rules exclude, with its remedy and surroundings."""
    return [
        f"{name}: {prose[max(found.start() - 40, 0) : found.end() + 40]!r} -> {remedy}"
        for prose in _passages(name, text)
        for remedy, pattern in RULED_OUT.items()
        for found in pattern.finditer(prose)
    ]


def _passages(name: str, text: str) -> Iterator[str]:
    """Yield the prose of a file without code, each passage on one line."""
    if name.endswith(".py"):
        found = _python_prose(text)
    elif name.endswith(".md"):
        found = iter(re.split(r"\n\s*\n", _CODE.sub("x", text)))
    else:
        found = iter([" ".join(_HASH.findall(text))])
    for passage in found:
        yield " ".join(_CODE.sub("x", passage).split())


def _python_prose(text: str) -> Iterator[str]:
    """Yield comments and string literals, joined where they continue one another."""
    passage, kind = "", None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _IGNORED or (token.type == tokenize.NEWLINE and kind == tokenize.COMMENT):
            continue
        here = tokenize.STRING if token.type in _STRINGS else token.type
        if here != kind:
            yield passage
            passage, kind = "", here
        if here == tokenize.COMMENT:
            passage += token.string.lstrip("#")
        elif here == tokenize.STRING and " " in token.string:  # one word is a name, not a sentence
            passage += " " + (_QUOTES.sub("", token.string) if token.type == tokenize.STRING else token.string)
    yield passage


@pytest.mark.parametrize("glob", FINISHED)
def test_finished_files_keep_the_language_rules(glob: str) -> None:
    """A finished text stays finished: later changes bring no excluded phrase back."""
    paths = sorted(PROJECT.glob(glob))
    assert paths, "the glob matches no file"
    named = [(path.relative_to(PROJECT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    assert [slip for name, text in named for slip in find_slips(name, text)] == []


PLANTED: Final = [
    "The lock is free for who" + "ever asks.",
    "It is refused, what" + "ever it says.",
    "Some" + "body else holds it.",
    "No" + "body waits.",
    "The reader me" + "nds the row.",
    "It let" + "s go of the lock.",
    "Tel" + "l whether it is there.",
    "The value is" + " no text.",
    "Wha" + "t is refused is not stored.",
    "The end. Wha" + "t was sent stays.",
]


@pytest.mark.parametrize("sentence", PLANTED)
def test_a_planted_sentence_is_found(sentence: str) -> None:
    """The check sees prose in each kind of file: text, comments, docstrings, messages, also across a line end."""
    wrapped = sentence.split()
    middle = len(wrapped) // 2
    first, second = " ".join(wrapped[:middle]), " ".join(wrapped[middle:])
    files = {
        "page.md": f"# Title\n\n{first}\n{second}\n",
        "comment.py": f"x = 1\n# {first}\n# {second}\ny = 2\n",
        "docstring.py": f'def f():\n    """{first}\n    {second}\n    """\n',
        "message.py": f'raise ValueError("{first} "\n    f"{second} {{x}}")\n',
        "script.sh": f"set -e\n# {first}\n# {second}\n",
    }
    missed = [name for name, text in files.items() if len(find_slips(name, text)) != 1]
    assert missed == []


def test_code_and_names_are_not_prose() -> None:
    """Identifiers, code blocks, quoted code and single words do not have to be English."""
    no_one, broken = "no" + "body", "me" + "nd"
    assert find_slips("page.md", f"Run as `{no_one}`.\n\n```sh\n{broken} x\n```\n\nThere is" + " no file.") == []
    assert find_slips("code.py", f'{no_one} = {broken}("{no_one}")  # the user `{no_one}`') == []
    assert find_slips("script.sh", f"{broken} {no_one}") == []
    assert find_slips("page.md", "It is" + " no longer there.") == []
