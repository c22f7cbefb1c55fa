"""Metadata of shapes that were seen before, brought into canonical form by matches, without parsing it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

_STRING: Final = r'"[^"\\\x00-\x1f]*"'
_INTEGER: Final = r"(?:0|-?[1-9][0-9]{0,17})"
_ITEM: Final = rf"(?:{_STRING}|{_INTEGER})"
_PATTERNS: Final = {
    str: _STRING,
    int: _INTEGER,
    # As `jsonb` shows it, unless it has more digits than a float holds, of which each is asked.
    float: r"(?:(?:0|-?[1-9][0-9]{0,16})\.(?:0|[0-9]{0,16}[1-9])|-0\.[0-9]{0,16}[1-9])",
    bool: "true|false",
    type(None): "null",
    list: rf"\[(?:{_ITEM}(?:, {_ITEM})*)?\]",
}
_EXACT_FLOAT_CHARS: Final = len("0.12345678901234")
"""Characters of a float up to which it has at most 15 digits, so that it is read and written back as it was."""
_MAX_TEMPLATES: Final = 16
_MAX_KEYS: Final = 40


class _Template(NamedTuple):
    match: Callable[[str], re.Match[str] | None]
    split: Callable[[str], list[str]]
    """Returns what lies between the matches, and after each of these the groups of the match that follows."""
    template: str
    order: tuple[int, ...]
    """The groups of the match, as the template wants them."""
    floats: tuple[int, ...]


class TemplateCache:
    """Remembers the keys and types of flat objects as `json.dumps` writes them; an application writes few kinds."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, type], ...], _Template] = {}
        self._latest: _Template | None = None

    def canonical(self, text: str) -> str | None:
        """Return a text in canonical form, if it is of a known shape and can be brought into it safely."""
        shape = self._latest
        if shape is None or (match := shape.match(text)) is None:
            for shape in self._known.values():
                if match := shape.match(text):
                    break
            else:
                return None
            self._latest = shape
        if not all(_round_trip([match[group]]) for group in shape.floats):
            return None
        return shape.template % tuple([match[group] for group in shape.order])

    def all_canonical(self, texts: Sequence[str]) -> list[str] | None:
        """Do what `canonical` does for each text, if all are of the first one's shape."""
        if self.canonical(texts[0]) is None or (shape := self._latest) is None:
            return None
        parts = shape.split("\n".join(texts))
        step = len(shape.order) + 1
        # No match holds a line's end, so that there is one match for each text, and nothing else.
        if parts[::step] != ["", *["\n"] * (len(texts) - 1), ""]:
            return None
        if not all(_round_trip(parts[group::step]) for group in shape.floats):
            return None
        template = shape.template
        return [template % values for values in zip(*(parts[group::step] for group in shape.order), strict=True)]

    def learn(self, value: dict[str, Any], keys: list[str]) -> None:
        """Remember the shape of a value.

        Args:
            value: What a text said.
            keys: Its keys in canonical order.
        """
        shape = tuple((key, type(item)) for key, item in value.items())
        # Compiling takes as long as a hundred rows do.
        if len(self._known) >= _MAX_TEMPLATES or shape in self._known or not 0 < len(shape) <= _MAX_KEYS:
            return
        if any(kind not in _PATTERNS for _, kind in shape):
            return
        written = {key: json.dumps(key, ensure_ascii=False) for key in value}
        pairs = (f"{re.escape(written[key])}: ({_PATTERNS[type(item)]})" for key, item in value.items())
        place = {key: number for number, key in enumerate(value, 1)}
        pattern = re.compile(rf"\{{{', '.join(pairs)}\}}")
        self._known[shape] = _Template(
            pattern.fullmatch,
            pattern.split,
            "{" + ", ".join(f"{written[key].replace('%', '%%')}: %s" for key in keys) + "}",
            tuple(place[key] for key in keys),
            tuple(place[key] for key, kind in shape if kind is float),
        )


def _round_trip(floats: Sequence[str]) -> bool:
    """Tell whether floats are written back as they were read."""
    return max(map(len, floats)) <= _EXACT_FLOAT_CHARS or all(float.__repr__(float(text)) == text for text in floats)
