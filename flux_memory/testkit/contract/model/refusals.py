"""Invalid values of the arguments of calls."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from flux_memory import MAX_ID_LENGTH, MAX_USER_ID_LENGTH
from flux_memory.testkit.contract import corpus

_NOT_TEXT: Final = (7, True, 1.5, b"x", ["x"], None)
_NOT_STORABLE: Final = ("\x00", "ab\udfff", *_NOT_TEXT)
_NO_COUNTS: Final = (-1, True, 1.0, "1", b"1")
_NO_METADATA: Final[tuple[Any, ...]] = (
    [],
    "",
    0,
    False,
    {1: 2},
    {"k": {None: 1}},
    {"k": float("nan")},
    {"k": [float("-inf")]},
    {"k": b""},
    {"k": ["\x00"]},
    {"\ud800": 1},
    {"k": 10**4300},
    corpus.nested(101),
)
_NO_IDS: Final = ("", "x" * (MAX_ID_LENGTH + 1), *(value for value in _NOT_STORABLE if value is not None))
_NO_MESSAGES: Final[tuple[Any, ...]] = (
    None,
    "text",
    7,
    {},
    [None],
    ["text"],
    [{}],
    [{"role": "user"}],
    [{"content": "x"}],
    [{"role": "user", "content": "x", "id": "a"}],
    [{"role": "user", "content": "x", 1: "a"}],
)

_NOT_FLAGS: Final = (0, 1, "yes", None)
_NO_OWNERS: Final = ("w" * (MAX_USER_ID_LENGTH + 1), *_NOT_STORABLE)
_NOT_TEXT_NOR_NONE: Final = _NOT_TEXT[:-1]

REFUSED: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "create_session": {
        "title": _NOT_STORABLE,
        "metadata": _NO_METADATA,
        "session_id": _NO_IDS,
        "user_id": _NO_OWNERS,
    },
    "add_message": {
        "session_id": _NOT_TEXT,
        "role": ("", *_NOT_STORABLE),
        "content": _NOT_STORABLE,
        "metadata": _NO_METADATA,
        "message_id": _NO_IDS,
        "create": _NOT_FLAGS,
        "user_id": _NO_OWNERS,
    },
    "add_messages": {
        "session_id": _NOT_TEXT,
        "messages": _NO_MESSAGES,
        "create": _NOT_FLAGS,
        "user_id": _NO_OWNERS,
    },
    "get_history": {"session_id": _NOT_TEXT, "limit": _NO_COUNTS, "before": _NOT_TEXT_NOR_NONE},
    "get_message": {"session_id": _NOT_TEXT, "message_id": _NOT_TEXT},
    "get_sessions": {
        "limit": _NO_COUNTS,
        "offset": (None, *_NO_COUNTS),
        "user_id": _NOT_TEXT_NOR_NONE,
        "metadata": _NO_METADATA,
        "before": (7, "a", [], {"id": "a"}),
        "with_metadata": _NOT_FLAGS,
    },
    "get_session": {"session_id": _NOT_TEXT},
    "count_sessions": {"user_id": _NOT_TEXT_NOR_NONE, "metadata": _NO_METADATA},
    "pop_message": {"session_id": _NOT_TEXT},
    "update_session": {
        "session_id": _NOT_TEXT,
        "expected_revision": _NOT_TEXT_NOR_NONE,
        "title": tuple(value for value in _NOT_STORABLE if value is not None),
        "merge_metadata": _NO_METADATA,
        "remove_metadata": (7, "k", {"k": 1}, [7], None),
        "truncate_from": _NOT_TEXT_NOR_NONE,
        "truncate_all": _NOT_FLAGS,
        "messages": _NO_MESSAGES,
    },
    "update_session_title": {"session_id": _NOT_TEXT, "title": _NOT_STORABLE},
    "fork_session": {
        "session_id": _NOT_TEXT,
        "through": _NOT_TEXT_NOR_NONE,
        "new_session_id": _NO_IDS,
        "user_id": tuple(value for value in _NO_OWNERS if value is not None),
        "title": tuple(value for value in _NOT_STORABLE if value is not None),
    },
    "delete_session": {"session_id": _NOT_TEXT, "expected_revision": _NOT_TEXT_NOR_NONE},
    "delete_sessions": {"user_id": _NOT_TEXT_NOR_NONE, "inactive_since": (7, "2026-01-01", datetime(2026, 1, 1))},  # noqa: DTZ001 - without a zone
}
"""The invalid values of each argument; a call gets only one, as no promise says which of two is reported."""
