"""The torture corpus: texts and JSON that storage engines, drivers and codecs are known to treat differently."""

from __future__ import annotations

import math
import random
import struct
from collections import OrderedDict, defaultdict
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, Final

from flux_memory import MAX_ID_LENGTH, MAX_METADATA_DEPTH

TEXTS: Final[dict[str, str]] = {
    "empty": "",
    "spaces at both ends": "  text  ",
    "only spaces": "   ",
    "tabs and newlines": "\tone\n\n\ttwo\v\f",
    "CRLF, CR, LF": "one\r\ntwo\rthree\n",
    "byte order mark": "\ufefftext",
    "NFC": "\u00e9 \uac00 \u00c5",
    "NFD": "e\u0301 \u1100\u1161 A\u030a",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f0\U0001f1f7 \U0001f44d\U0001f3fd",
    "beyond the basic plane": "\U0001d54f\U00020000\U0010ffff",
    "noncharacters": "\ufffe\uffff\ufdd0",
    "private use and replacement": "\ue000\ufffd",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u0645\u0631\u062d\u0628\u0627",
    "Korean": "안녕하세요, 서울 여행",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x85\x9f",
    "line separators": "a\u2028b\u2029c\u0085d",
    "SQL": "'; DROP TABLE messages; -- \" /* */ \\' E'\\x00' $$ $tag$",
    "placeholders": "%s %(name)s $1 ? ?1 :name @name {0} {name} %% {{}}",
    "backslashes": "\\ \\n \\u0000 \\x00 \\\\",
    "quotes": "\"'`\u201c\u2019",
    "JSON": '{"a": [1, null, "\\u0000"]}',
    "words for nothing": "NULL None null nil undefined NaN",
    "digits": "007",
    "case that folds": "I\u0130\u0131i \u00df\u1e9e",
    "long": "0123456789 \u20ac" * 4_000,
}
"""Texts that have to be kept byte for byte."""

NAMES: Final = {name: text for name, text in TEXTS.items() if 1 <= len(text) <= MAX_ID_LENGTH}
"""The texts that are valid ids."""

LOOKALIKES: Final = (
    "caf\u00e9",
    "cafe\u0301",
    "Caf\u00e9",
    "caf\u00e9 ",
    " caf\u00e9",
    "cafe",
    "caf_",
    "caf%",
    "\ufb01",
    "fi",
    "1",
    "01",
    "1.0",
    "a",
    "A",
    "\uff41",
)
"""Texts that some engine, collation or pattern considers equal."""

NUL_TEXTS: Final = {"\x00": 0, "end\x00": 3, "\u20ac\x00text": 1}
"""Texts with a NUL, and the offset of the NUL in characters."""

SURROGATE_TEXTS: Final = {"\ud800": 0, "ab\udfff": 2, "\U0001f44d\udc80x": 1}
"""Texts with a lone surrogate, and the offset of the surrogate in characters."""

NOT_TEXTS: Final[tuple[Any, ...]] = (True, False, 0, 7, 1.5, b"bytes", bytearray(b"x"), ["a"], {"a": 1}, object())
"""Values that are not a `str`. `None` is left out: for some arguments it means the default."""


class Shout(str):
    """A `str` subclass whose `str()` and `repr()` show a different text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not " + super().__str__()

    def __repr__(self) -> str:
        return f"Shout({super().__repr__()})"


class Colour(StrEnum):
    """A `str` that is an enum member."""

    RED = "red"


class Rank(IntEnum):
    """An `int` that is an enum member."""

    FIRST = 1


class OddFloat(float):
    """A `float` subclass."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "about a half"


def nested(depth: int) -> dict[str, Any]:
    """Return metadata of this depth, alternating lists and objects; `{}` is 1 deep."""
    value: Any = {} if depth % 2 else []
    for level in range(depth - 1, 0, -1):
        value = {"a": value} if level % 2 else [value]
    assert isinstance(value, dict)
    return value


def random_doubles(count: int) -> list[float]:
    """Return finite doubles of all magnitudes, the same ones on every call."""
    source = random.Random(20_000)  # noqa: S311 - a sample, not a secret
    doubles: list[float] = []
    while len(doubles) < count:
        (value,) = struct.unpack("<d", source.randbytes(8))
        if math.isfinite(value):
            doubles.append(value)
    return doubles


METADATA: Final[dict[str, dict[str, Any]]] = {
    "empty": {},
    "one of each": {"s": "text", "i": 1, "f": 1.0, "t": True, "n": None, "l": [], "o": {}, "no double": 2**53 + 1},
    "1, 1.0 and true": {"int": 1, "float": 1.0, "true": True, "list": [0, 0.0, False, 1, 1.0, True]},
    "empty key": {"": {"": [""]}},
    "keys alike": {"a": 1, "A": 2, "a ": 3, "\u00e9": 4, "e\u0301": 5, "1": 6, "01": 7, "null": 8, "__proto__": 9},
    "keys of the records": {"id": 1, "metadata": {}, "seq": 2, "session_id": None, "role": "x"},
    "texts as values": dict(TEXTS),
    "texts as keys": {text: name for name, text in TEXTS.items() if len(text) < 1_000},
    "paths": {"a.b": 1, "$.a": 2, "a[0]": 3, '"quoted"': 4, "a'b": 5, "->>": 6, "?": 7, "{a,b}": 8},
    "lists in lists": {"l": [[], [[]], [[1, [2, [3]]]], [None], [{}], [{"a": []}]]},
    "mixed list": {"l": [1, "1", 1.0, True, None, {"1": 1}, [1], "", 0, 0.0, False]},
    "text that looks like JSON": {"a": '{"b": 1}', "b": "null", "c": "1.0", "d": '"x"', "e": "\\u0041"},
    "many keys": {f"key {number}": number for number in range(500)},
}
"""Metadata that has to be returned equal by type and value, at every depth."""

LARGE_METADATA: Final[dict[str, dict[str, Any]]] = {
    "documents": {f"document {number}": "0123456789 \u20ac" * 700 for number in range(100)},
    "a long text": {"text": "0123456789 \u20ac" * 100_000},
    "thousands of keys": {f"key {number}": number for number in range(2_000)},
    "thousands of elements": {"list": list(range(3_000))},
    "a long key": {"key" * 2_000: 1},
}
"""Metadata beyond the limits that stores have on a value, a key or their number."""

INTEGERS: Final = (
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**16,
    10**22,
    10**23,
    10**308,
    10**309,
    10**1000 + 7,
    int("9" * 4_300),
    -int("8" * 4_300),
)
"""Integers of up to 4,300 digits."""

FLOATS: Final = (
    0.0,
    1.0,
    -1.0,
    100.0,
    1e2,
    0.1,
    1 / 3,
    1e15,
    9007199254740993.0,
    1e16,
    1.5e16,
    -1e17,
    123456789012345680000.0,
    1e22,
    1e23,
    1e100,
    1.7976931348623157e308,
    -1.7976931348623157e308,
    5e-324,
    2.2250738585072014e-308,
    1e-7,
    1.1e-300,
)
"""Finite floats; those of 1e16 and above have integer values, and some engines turn them into integers."""

UNUSUAL_MAPPINGS: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "read-only view": (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
    "ordered": (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "with a default": (defaultdict(list, {"a": [1]}), {"a": [1]}),
    "subclasses as values": (
        {"s": Shout("x"), "e": Colour.RED, "i": Rank.FIRST, "f": OddFloat(0.5)},
        {"s": "x", "e": "red", "i": 1, "f": 0.5},
    ),
    "subclasses as keys": ({Shout("x"): 1, Colour.RED: 2}, {"x": 1, "red": 2}),
    "tuples": ({"t": (1, (2, ()), [(3,)])}, {"t": [1, [2, []], [[3]]]}),
}
"""Accepted metadata, and the plain types that are returned for it."""

VARIED_MESSAGES: Final[list[Any]] = [
    {"role": text or "user", "content": text, "metadata": metadata}
    for text, metadata in zip(list(TEXTS.values())[: len(METADATA)], METADATA.values(), strict=True)
]
"""A batch whose messages differ in texts and metadata."""

NOT_OBJECTS: Final[tuple[Any, ...]] = ([], [("a", 1)], (), "", "{}", 0, 1, 1.5, False, True, b"{}", {1}, object())
"""Values that are not mappings, and therefore not metadata."""

NOT_JSON: Final[tuple[Any, ...]] = (object(), b"bytes", {1, 2}, 1j, range(3), Exception, nested)
"""Values that are not JSON, at any depth."""

_DEPTH: Final = MAX_METADATA_DEPTH


def buried(value: object) -> list[dict[str, Any]]:
    """Return metadata objects that hold a value in several places and depths."""
    deep: Any = value
    for _ in range(_DEPTH // 4):
        deep = [{"k": deep}]
    return [{"a": value}, {"a": [1, value]}, {"a": {"b": {"c": value}}}, {"deep": deep}]


def same(one: object, other: object) -> bool:
    """Return whether two JSON values are equal by type and value, at every depth: 1, 1.0 and True differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(type(key) is str and same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other
