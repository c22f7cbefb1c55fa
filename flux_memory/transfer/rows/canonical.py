"""Writes JSON exactly as PostgreSQL prints a `jsonb` value, so that both sides can be compared as text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from json.encoder import c_make_encoder  # type: ignore[attr-defined]  # typeshed leaves it out
from json.encoder import encode_basestring as quote
from typing import Any, Final, NoReturn

from flux_memory.records.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from flux_memory.transfer.rows.json_templates import TemplateCache
from flux_memory.transfer.rows.problems import InvalidValueError, ProblemKind

_WHITESPACE: Final = " \t\n\r"
_SURELY_SMALL_CHARS: Final = MAX_METADATA_BYTES // 4
_MAX_KEY_ORDERS: Final = 4096
"""Cached key orders; an application's metadata has few distinct sets of keys."""


class Canonicalizer:
    """Converts metadata as an application stored it to the text of the equal `jsonb` value.

    Keys are sorted by length, then by bytes; the last of two equal keys wins. Floats are written without an exponent,
    as the library sends them, so that they stay floats. The same text is sent to the server.
    """

    def __init__(self) -> None:
        decoder: Any = json.JSONDecoder(parse_constant=_refuse_constant)
        self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once
        self._encode = _encoder()
        self._templates = TemplateCache()
        self._orders: dict[tuple[str, ...], list[str] | None] = {}

    def canonical(self, text: str) -> str:
        """Return a metadata text in canonical form.

        Raises:
            InvalidValueError: The text is not a JSON object that both engines can store.
        """
        if text == "{}":
            return text
        if len(text) <= _SURELY_SMALL_CHARS and (known := self._templates.canonical(text)) is not None:
            return known
        value = self._parse(text)
        if type(value) is not dict:
            raise InvalidValueError(ProblemKind.NOT_AN_OBJECT, f"a JSON {_name(value)} where an object belongs")
        objects = text.count("{")
        if objects + text.count("[") > MAX_METADATA_DEPTH and _depth(value) > MAX_METADATA_DEPTH:
            raise InvalidValueError(ProblemKind.TOO_DEEP, f"nested deeper than {MAX_METADATA_DEPTH}")
        ordered = self._ordered(value) if objects == 1 else self._deeply_ordered(value)
        result = self._encode(ordered)
        if "e+" in result or "e-" in result or "-0.0" in result or "Infinity" in result:
            # The match may lie inside a string; then the slow path gives the same text.
            parts: list[str] = []
            _write(ordered, parts)
            result = "".join(parts)
        if "\\u0000" in result and _has_nul(value):
            raise InvalidValueError(
                ProblemKind.NUL, "a NUL character in a key or a value, which PostgreSQL cannot store"
            )
        if len(result) > _SURELY_SMALL_CHARS and len(result.encode("utf-8", "replace")) > MAX_METADATA_BYTES:
            raise InvalidValueError(ProblemKind.TOO_LARGE, f"larger than {MAX_METADATA_BYTES:,} bytes as JSON")
        if objects == 1:
            self._templates.learn(value, list(ordered))
        return result

    def all_canonical(self, texts: Sequence[str]) -> list[str]:
        """Return what `canonical` returns for each text; faster if one template matches them all.

        Raises:
            InvalidValueError: One of the texts is not a JSON object that both engines can store.
        """
        if max(map(len, texts)) <= _SURELY_SMALL_CHARS and (known := self._templates.all_canonical(texts)) is not None:
            return known
        return [self.canonical(text) for text in texts]

    def _parse(self, text: str) -> Any:
        trimmed = text.strip(_WHITESPACE)
        try:
            value, end = self._scan(trimmed, 0)
        except InvalidValueError:
            raise
        except StopIteration as error:
            raise InvalidValueError(ProblemKind.BAD_JSON, f"no JSON value at offset {error.value}") from None
        except json.JSONDecodeError as error:
            raise InvalidValueError(ProblemKind.BAD_JSON, str(error)) from None
        except RecursionError:
            raise InvalidValueError(ProblemKind.TOO_DEEP, f"nested deeper than {MAX_METADATA_DEPTH}") from None
        except ValueError:
            # int() refuses this many digits.
            raise InvalidValueError(ProblemKind.NUMBER_OUT_OF_RANGE, "an integer of more than 4,300 digits") from None
        if end != len(trimmed):
            raise InvalidValueError(ProblemKind.BAD_JSON, f"text after the JSON value, at offset {end}")
        return value

    def _ordered(self, value: dict[str, Any]) -> dict[str, Any]:
        keys = tuple(value)
        try:
            order = self._orders[keys]
        except KeyError:
            if len(self._orders) >= _MAX_KEY_ORDERS:
                self._orders.clear()
            wanted = sorted(keys, key=_rank)
            order = self._orders[keys] = None if wanted == list(keys) else wanted
        return value if order is None else {key: value[key] for key in order}

    def _deeply_ordered(self, value: Any) -> Any:
        if type(value) is dict:
            return {key: self._deeply_ordered(item) for key, item in self._ordered(value).items()}
        if type(value) is list:
            return [self._deeply_ordered(item) for item in value]
        return value


def _encoder() -> Callable[[Any], str]:
    """Return an equivalent of `JSONEncoder.encode` that does not create a C encoder for each call."""
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False)
    if c_make_encoder is None:
        return encoder.encode
    fast = c_make_encoder(None, encoder.default, quote, None, ": ", ", ", False, False, True)
    return lambda value: "".join(fast(value, 0))


def _rank(key: str) -> tuple[int, bytes]:
    raw = key.encode("utf-8", "surrogatepass")
    return len(raw), raw


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidValueError(ProblemKind.NAN, f"the number {name}, which JSON does not have")


def _write(value: Any, parts: list[str]) -> None:
    if type(value) is dict:
        separator = "{"
        for key, item in value.items():
            parts.append(f"{separator}{quote(key)}: ")
            _write(item, parts)
            separator = ", "
        parts.append("}" if value else "{}")
    elif type(value) is list:
        separator = "["
        for item in value:
            parts.append(separator)
            _write(item, parts)
            separator = ", "
        parts.append("]" if value else "[]")
    elif type(value) is float:
        parts.append(_float_text(value))
    else:
        parts.append(json.dumps(value, ensure_ascii=False))


def _float_text(value: float) -> str:
    if not math.isfinite(value):
        raise InvalidValueError(ProblemKind.NUMBER_OUT_OF_RANGE, "a number beyond what a float can hold")
    if value == 0:
        return "0.0"
    text = f"{Decimal(float.__repr__(value)):f}"
    return text if "." in text else f"{text}.0"


def _depth(value: Any) -> int:
    """Return how deep a value is nested; iterative, since the depth is not limited here."""
    deepest = 0
    left = [(value, 1)]
    while left:
        item, depth = left.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            left.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
    return deepest


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _name(value: object) -> str:
    names = {str: "string", list: "array", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
