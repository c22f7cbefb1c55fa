"""Texts and JSON that an engine, a codec or a URL takes for another value or for its own notation."""

from __future__ import annotations

from typing import Any, Final

TYPED_TEXTS: Final = (
    *("2024-01-01", "2024-01-01T00:00:00Z", "2024-01-01 00:00:00+09:00", "12:30", "Mon, 01 Jan 2024 00:00:00 GMT"),
    *("1e5", "1.50", "00042", "+1", "-0", "0x1F", "1_000", "12345678901234567890", "\u0661\u0662", "NaN", "-Infinity"),
    *("true", "False", "yes", "null", "NULL", "None", "undefined", "\\N", "\\.", "\\x6869", "b'x'"),
    *("{}", "[]", '""', "''", '"quoted"', '{"a":1}', "[1,2]", '{"b": 1, "a": 2}', '{"$ref": "#/a"}', "$ref"),
    *("aGVsbG8=", "data:text/plain;base64,aGVsbG8=", "\\u0041\\n", "%41%20", "a+b", "a & b < c", "<b>&amp;&#39;</b>"),
    *("{{x}} ${x} #{x} <%= x %>", "=1+1", "@name #tag", "---\nyaml: 1", "!!python/object:x", "\x1b[31m"),
    *("zero\u200bwidth", "soft\u00adhyphen", "joined\u2060word", "no\u00a0break", "\u2764\ufe0f", "tail \t", "\r\n"),
)
"""Texts that look like a value of another type, or that are written in a notation of some format."""

SPEAKERS: Final = (
    *("user", "assistant", "system", "tool", "developer", "function", "human", "ai", "model", "bot"),
    *("User", "ASSISTANT", "System", "TOOL", "user ", "\u00fcser", "none", "1", "root"),
)
"""Roles that applications and models use, and their variants."""

TWINS: Final = (
    *(("case", "CASE"), ("space", "space "), (" before", "before"), ("tab\t", "tab"), ("cr\r\nlf", "cr\nlf")),
    *(("caf\u00e9", "cafe\u0301"), ("r\u00e9sum\u00e9", "resume"), ("stra\u00dfe", "strasse"), ("\u0130x", "ix")),
    *(
        ("d\u0131z", "diz"),
        ("\u03c3\u03c2", "\u03c3\u03c3"),
        ("\u3042", "\u30a2"),
        ("\ufb01lm", "film"),
        ("\u0663", "3"),
    ),
    *(("\U0001f600", "\U0001f601"), ("zero\u200bwidth", "zerowidth"), ("no\u00a0break", "no break")),
    *(("10", "10.0"), ("07", "7"), ("1e3", "1000"), ("+5", "5"), ("null", "None"), ("true", "True")),
    ("550e8400-e29b-41d4-a716-446655440000", "550E8400-E29B-41D4-A716-446655440000"),
    ("550e8400-e29b-41d4-a716-446655440001", "550e8400e29b41d4a716446655440001"),
    *(
        ("%41", "A"),
        ("a+b", "a b"),
        ("/slash", "slash"),
        ("dir/", "dir"),
        ("up/../down", "down"),
        ("query?x=1", "query"),
    ),
    *(
        ("any*", "anything"),
        ("lik%", "like"),
        ("b_t", "bit"),
        ("[st]et", "set"),
        ("\\u0062", "b"),
        ("begin", "beginning"),
    ),
    *(
        ("'single'", "single"),
        ('"double"', "double"),
        ("..", "."),
        ("*", "all"),
        ("undefined", "0"),
        ("-1", "index"),
        ("count", "search"),
    ),
)
"""Pairs of different ids that a collation, a number, a URL or a pattern considers equal. No id occurs twice."""

TWIN_IDS: Final = tuple(one for pair in TWINS for one in pair)

CHANGED_TEXTS: Final = (
    *(("Yes.", "yes."), ("Yes.", "Yes. "), ("Yes.", "\ufeffYes."), ("caf\u00e9", "cafe\u0301"), ("caf\u00e9", "cafe")),
    *(("stra\u00dfe", "strasse"), ("\U0001f600", "\U0001f601"), ("a\u200bb", "ab"), ("a\r\nb", "a\nb"), ("1", "1.0")),
)
"""Pairs of different texts that some comparison considers equal."""

CHANGED_METADATA: Final[tuple[tuple[dict[str, Any], dict[str, Any]], ...]] = (
    ({"k": None}, {}),
    ({"k": {"a": 1, "b": None}}, {"k": {"a": 1}}),
    ({"k": 1, "l": 2}, {"k": 1}),
    ({"k": {"a": 1}}, {"k": {}}),
    ({"k": [1, 2]}, {"k": [2, 1]}),
    ({"k": [1, 1]}, {"k": [1]}),
    ({"k": []}, {"k": {}}),
    ({"k": [1]}, {"k": 1}),
    ({"k": {"a": [True]}}, {"k": {"a": [1]}}),
    ({"k": [0]}, {"k": [False]}),
    ({"k": "1"}, {"k": 1}),
    ({"k": "null"}, {"k": None}),
    ({"k": "x"}, {"k": "X"}),
    ({"k": "x "}, {"k": "x"}),
    ({"k": "caf\u00e9"}, {"k": "cafe\u0301"}),
    ({"k": 1}, {"K": 1}),
    ({"k": 2**53 + 1}, {"k": 2**53}),
    ({"k": 0.1 + 0.2}, {"k": 0.3}),
    ({"k": 1}, {"k": -1}),
)
"""Pairs of different metadata that some comparison considers equal."""

EQUAL_METADATA: Final[tuple[tuple[dict[str, Any] | None, dict[str, Any] | None], ...]] = (
    (None, {}),
    ({}, None),
    ({"a": {"b": 1, "c": [2]}, "d": 3}, {"d": 3, "a": {"c": [2], "b": 1}}),
    ({"a": [{"b": 1.0}]}, {"a": [{"b": 1}]}),
    ({"a": {"b": 2**53}}, {"a": {"b": float(2**53)}}),
)
"""Pairs of equal metadata that some comparison considers different."""

NOTATIONS: Final[dict[str, dict[str, Any]]] = {
    "texts of other types": {"values": list(TYPED_TEXTS)} | dict.fromkeys(TYPED_TEXTS, 1),
    "notations of codecs": {
        "list": [
            *({"$date": "2024-01-01T00:00:00Z"}, {"$oid": "507f1f77bcf86cd799439011"}, {"$numberLong": "5"}),
            *({"$ref": "c", "$id": 1}, {"S": "x"}, {"N": "1"}, {"NULL": True}, {"M": {}}, {"L": []}, {"B": "aGVsbG8="}),
            *({"__type__": "datetime", "value": "2024-01-01"}, {"__class__": "Thing"}, {"py/object": "x.Thing"}),
            *({"@type": "Thing"}, {"lc": 1, "type": "constructor", "id": ["x"]}, {"#text": "x"}, {"nil": "true"}),
        ],
    },
    "operators": {
        "$set": {"a": 1},
        "$ne": None,
        "$or": [{}],
        "_id": 1,
        "__proto__": {"a": 1},
        "$": "",
        "*": "",
        ".": "",
    },
    "fields of the records": {"title": "x", "user_id": "x", "content": "x", "created_at": "x", "message_count": 9},
    "repeats": {"texts": ["b", "a", "b", "", ""], "numbers": [3, 1, 2, 1], "pairs": [["k", 1], ["k", 2]], "one": ["x"]},
    "nothing inside": {"a": {"b": None, "c": {"d": None, "e": {}, "f": [], "g": ""}}, "l": [{"h": None}, [None], [{}]]},
}
"""Metadata that some codec reads as its own notation, or that some engine merges, sorts or drops."""
