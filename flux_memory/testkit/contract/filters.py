"""The cases of the clauses on metadata filters: metadata, a filter, and whether the metadata contains it."""

from __future__ import annotations

from typing import Any, Final

Cases = list[tuple[dict[str, Any], dict[str, Any], bool]]
"""Metadata, a filter, and whether the first contains the second."""

LONG: Final = "0123456789 \u20ac" * 300
"""Longer than the part of a text that an index compares."""
WIDE: Final = {f"key {number}": number for number in range(1, 41)}
"""More keys than a statement with a condition for each is likely to have."""
DEPTH: Final = 40


def buried_in_objects(leaf: object) -> dict[str, Any]:
    """Return objects in objects, with the leaf in the innermost one."""
    for _ in range(DEPTH):
        leaf = {"a": leaf}
    return {"a": leaf}


SCALARS: Final[Cases] = [
    ({"a": "x"}, {"a": "x"}, True),
    ({"a": "x"}, {"a": "X"}, False),
    ({"a": "x"}, {"b": "x"}, False),
    ({"a": "x"}, {"A": "x"}, False),
    ({"a": None}, {"a": None}, True),
    ({}, {"a": None}, False),
    ({"a": 0}, {"a": None}, False),
    ({"a": True}, {"a": True}, True),
    ({"a": True}, {"a": 1}, False),
    ({"a": 1}, {"a": True}, False),
    ({"a": False}, {"a": 0}, False),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": "caf\u00e9"}, {"a": "cafe\u0301"}, False),
    ({"a": "%' OR 1=1"}, {"a": "%' OR 1=1"}, True),
    ({"a": "abc"}, {"a": "ab"}, False),
    ({"a": "abc"}, {"a": "a%"}, False),
    ({"": 1}, {"": 1}, True),
    ({"a.b": 1}, {"a": {"b": 1}}, False),
    ({"a": {"b": 1}}, {"a.b": 1}, False),
    ({"a": LONG + "x"}, {"a": LONG + "x"}, True),
    ({"a": LONG + "x"}, {"a": LONG + "y"}, False),
    ({LONG + "x": 1}, {LONG + "x": 1}, True),
    ({LONG + "x": 1}, {LONG + "y": 1}, False),
]
NUMBERS: Final[Cases] = [
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1.0}, {"a": 1}, True),
    ({"a": 1e22}, {"a": 10**22}, True),
    ({"a": 10**23}, {"a": 1e23}, True),
    ({"a": 0.1}, {"a": 0.1}, True),
    ({"a": 0.30000000000000004}, {"a": 0.3}, False),
    ({"a": 2**53 + 1}, {"a": float(2**53)}, False),
    ({"a": 2**64 + 1}, {"a": 2**64}, False),
    ({"a": int("9" * 400)}, {"a": int("9" * 400)}, True),
    ({"a": -0.0}, {"a": 0}, True),
]
OBJECTS: Final[Cases] = [
    ({"a": 1}, {}, True),
    ({}, {}, True),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ({"a": 1, "b": 2}, {"b": 2}, True),
    ({"a": 1}, {"a": 1, "b": 2}, False),
    ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}, True),
    ({"a": {"b": 1}}, {"a": {}}, True),
    ({"a": {}}, {"a": {"b": 1}}, False),
    ({"a": {"b": {"c": [1]}}}, {"a": {"b": {}}}, True),
    ({"x": {"a": 1}}, {"a": 1}, False),
    ({"a": []}, {"a": {}}, False),
    ({"a": None}, {"a": {}}, False),
    (WIDE, WIDE, True),
    (WIDE, {**WIDE, "key 39": 0}, False),
    ({**WIDE, "key 39": 0}, {"key 39": 0}, True),
    (buried_in_objects(1), buried_in_objects(1), True),
    (buried_in_objects(1), buried_in_objects(2), False),
]
ARRAYS: Final[Cases] = [
    ({"a": [1, 2, 3]}, {"a": [3, 1]}, True),
    ({"a": [1, 2]}, {"a": [1, 1, 2, 2]}, True),
    ({"a": [1]}, {"a": [1, 2]}, False),
    ({"a": [1]}, {"a": []}, True),
    ({"a": []}, {"a": []}, True),
    ({"a": []}, {"a": [None]}, False),
    ({"a": [1]}, {"a": 1}, False),
    ({"a": 1}, {"a": [1]}, False),
    ({"a": [1, [2, 3]]}, {"a": [[3]]}, True),
    ({"a": [1, [2, 3]]}, {"a": [2]}, False),
    ({"a": [[1], [2]]}, {"a": [[1, 2]]}, False),
    ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
    ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"b": 1, "c": 2}]}, False),
    ({"a": [{"b": 1}, {"c": 2}]}, {"a": [{"c": 2}, {"b": 1}]}, True),
    ({"a": [{"b": [1, 2]}]}, {"a": [{"b": [2]}]}, True),
    ({"a": [True]}, {"a": [1]}, False),
    ({"a": [1.0]}, {"a": [1]}, True),
    ({"a": ["x", None]}, {"a": [None]}, True),
    ({"a": list(range(1_500))}, {"a": [1_499]}, True),
    ({"a": list(range(1_500))}, {"a": [1_500]}, False),
]
