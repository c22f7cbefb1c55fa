"""Metadata of a shape that was seen before, brought into canonical form by one match, without parsing it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_STRING: Final = r'"[^"\\\x00-\x1f]*"'
_INTEGER: Final = r"(?:0|-?[1-9][0-9]{0,17})"
_ITEM: Final = rf"(?:{_STRING}|{_INTEGER})"
_PATTERNS: Final = {
    str: _STRING,
    int: _INTEGER,
    # Whether `jsonb` will show it so is asked of each.
    float: r"-?[0-9]{1,17}\.[0-9]{1,17}",
    bool: "true|false",
    type(None): "null",
    list: rf"\[(?:{_ITEM}(?:, {_ITEM})*)?\]",
}
_MOST_SHAPES: Final = 16
_MOST_KEYS: Final = 40


class _Shape(NamedTuple):
    match: Callable[[str], re.Match[str] | None]
    template: str
    order: tuple[int, ...]
    """The groups of the match, as the template wants them; the first is the whole, so that they are never just one."""
    floats: tuple[int, ...]


class Shapes:
    """Remembers the keys and types of flat objects as `json.dumps` writes them; an application writes few kinds."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, type], ...], _Shape] = {}
        self._latest: _Shape | None = None

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
        for group in shape.floats:
            if float.__repr__(float(match[group])) != match[group] or match[group] == "-0.0":
                return None
        return shape.template % match.group(*shape.order)

    def learn(self, value: dict[str, Any], keys: list[str]) -> None:
        """Remember the shape of a value.

        Args:
            value: What a text said.
            keys: Its keys in canonical order.
        """
        shape = tuple((key, type(item)) for key, item in value.items())
        # Compiling takes as long as a hundred rows do.
        if len(self._known) >= _MOST_SHAPES or shape in self._known or not 0 < len(shape) <= _MOST_KEYS:
            return
        if any(kind not in _PATTERNS for _, kind in shape):
            return
        written = {key: json.dumps(key, ensure_ascii=False) for key in value}
        pairs = (f"{re.escape(written[key])}: ({_PATTERNS[type(item)]})" for key, item in value.items())
        place = {key: number for number, key in enumerate(value, 1)}
        self._known[shape] = _Shape(
            re.compile(rf"\{{{', '.join(pairs)}\}}").fullmatch,
            "%.0s{" + ", ".join(f"{written[key].replace('%', '%%')}: %s" for key in keys) + "}",
            (0, *(place[key] for key in keys)),
            tuple(place[key] for key, kind in shape if kind is float),
        )
