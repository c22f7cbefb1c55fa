"""Canonicalizes metadata by regular expressions made from earlier texts, without parsing it."""

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
    # As `jsonb` prints it. `_round_trip` checks those with more digits than a float holds.
    float: r"(?:(?:0|-?[1-9][0-9]{0,16})\.(?:0|[0-9]{0,16}[1-9])|-0\.[0-9]{0,16}[1-9])",
    bool: "true|false",
    type(None): "null",
    list: rf"\[(?:{_ITEM}(?:, {_ITEM})*)?\]",
}
_EXACT_FLOAT_CHARS: Final = len("0.12345678901234")
"""A float of at most this many characters has at most 15 digits, so reading and writing it changes nothing."""
_MAX_TEMPLATES: Final = 16
_MAX_KEYS: Final = 40


class _Template(NamedTuple):
    match: Callable[[str], re.Match[str] | None]
    split: Callable[[str], list[str]]
    """Returns the text between matches, each followed by the groups of the next match."""
    output: str
    order: tuple[int, ...]
    """The groups of the match in the template's order."""
    floats: tuple[int, ...]


class TemplateCache:
    """Caches a template for each combination of keys and types of flat objects; an application writes few."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, type], ...], _Template] = {}
        self._latest: _Template | None = None

    def canonical(self, text: str) -> str | None:
        """Return the canonical form of a text, or `None` if no template converts it safely."""
        template = self._latest
        if template is None or (match := template.match(text)) is None:
            for template in self._known.values():
                if match := template.match(text):
                    break
            else:
                return None
            self._latest = template
        if not all(_round_trip([match[group]]) for group in template.floats):
            return None
        return template.output % tuple([match[group] for group in template.order])

    def all_canonical(self, texts: Sequence[str]) -> list[str] | None:
        """Return the canonical form of each text, or `None` if the first text's template does not convert them all."""
        if self.canonical(texts[0]) is None or (template := self._latest) is None:
            return None
        parts = template.split("\n".join(texts))
        step = len(template.order) + 1
        # A match contains no newline, so each text must be exactly one match.
        if parts[::step] != ["", *["\n"] * (len(texts) - 1), ""]:
            return None
        if not all(_round_trip(parts[group::step]) for group in template.floats):
            return None
        output = template.output
        return [output % values for values in zip(*(parts[group::step] for group in template.order), strict=True)]

    def learn(self, value: dict[str, Any], keys: list[str]) -> None:
        """Make a template for objects with the keys and types of a value.

        Args:
            value: A parsed object.
            keys: Its keys in canonical order.
        """
        shape = tuple((key, type(item)) for key, item in value.items())
        # Compiling costs as much as 100 rows.
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
    """Return whether reading and writing the floats leaves their text unchanged."""
    return max(map(len, floats)) <= _EXACT_FLOAT_CHARS or all(float.__repr__(float(text)) == text for text in floats)
