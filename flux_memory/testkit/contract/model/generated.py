"""Hypothesis strategies for calls: valid and invalid values of every kind, small ones first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from flux_memory import MAX_ID_LENGTH, MAX_USER_ID_LENGTH
from flux_memory.testkit.contract import corpus
from flux_memory.testkit.contract.model.calls import WRITES, Cut, IdPlaceholder, ModelCall

Group = Sequence[tuple[int, ModelCall, Cut | None]]

_NAMES: Final = ("a", "b", "c")
"""Few names, so that calls often share a session or a message."""
_ODD_NAMES: Final = tuple(sorted({*corpus.NAMES.values(), *corpus.LOOKALIKES, "é" * MAX_ID_LENGTH}))
_NOWHERE: Final = ("nowhere", "", "x" * (MAX_ID_LENGTH + 1), "a\x00", "\ud800")

_storable: Final = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
texts: Final = st.one_of(
    st.sampled_from(["", "x", "y"]),
    st.text(_storable, max_size=8),
    st.sampled_from([text for text in corpus.TEXTS.values() if len(text) < 100]),
)
_roles: Final = st.one_of(st.sampled_from(["user", "assistant"]), st.text(_storable, min_size=1, max_size=4))
_user_ids: Final = st.one_of(st.sampled_from(["", "u", "v"]), st.just("é" * MAX_USER_ID_LENGTH))

_leaves: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, 1.0, -0.0, *corpus.FLOATS]),
    st.sampled_from([number for number in corpus.INTEGERS if abs(number) < 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
_keys: Final = st.one_of(st.sampled_from(["k", "l"]), st.text(_storable, max_size=3))
_values: Final = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(_keys, inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=5,
)
_few: Final = st.sampled_from(
    [{}, {"k": 1}, {"k": 1.0}, {"k": True}, {"k": [1, {"l": True}]}, {"k": {"l": "x"}, "l": None}]
)


def _weighted(*weights: tuple[int, SearchStrategy[Any]]) -> SearchStrategy[Any]:
    """Draw from strategies in proportion to their weights."""
    return st.sampled_from([strategy for weight, strategy in weights for _ in range(weight)]).flatmap(
        lambda chosen: chosen
    )


metadata: Final = _weighted((2, _few), (1, st.dictionaries(_keys, _values, max_size=3)))
_new_ids: Final = _weighted((3, st.sampled_from(_NAMES)), (1, st.sampled_from(_ODD_NAMES)))


def _ids(kind: Any) -> SearchStrategy[Any]:
    picked = st.builds(IdPlaceholder, st.just(kind), st.integers(0, 3))
    return _weighted((8, picked), (3, st.sampled_from(_NAMES)), (1, st.sampled_from([*_NOWHERE, *_ODD_NAMES])))


_sessions: Final = _ids("session")
_own_message_ids: Final = _weighted(
    (3, st.sampled_from(_NAMES)),
    (2, st.builds(IdPlaceholder, st.just("message"), st.integers(0, 3))),
    (1, st.sampled_from(_ODD_NAMES)),
)
_counts: Final = st.one_of(st.integers(0, 3), st.sampled_from([50, 2**31, 2**63, 10**30]))
_limits: Final = st.one_of(st.none(), _counts)

_message: Final = st.fixed_dictionaries(
    {"role": _roles, "content": texts},
    optional={"metadata": st.one_of(st.none(), metadata), "message_id": st.one_of(st.none(), _own_message_ids)},
)


def _method(
    name: str, required: dict[str, SearchStrategy[Any]], **optional: SearchStrategy[Any]
) -> SearchStrategy[ModelCall]:
    arguments = st.fixed_dictionaries(required, optional=optional)
    return arguments.map(lambda given: ModelCall(name, given))


_add: Final = _method(
    "add_message",
    {"session_id": _sessions, "role": _roles, "content": texts},
    metadata=st.one_of(st.none(), metadata),
    message_id=st.one_of(st.none(), _own_message_ids),
)
_add_batch: Final = _method("add_messages", {"session_id": _sessions, "messages": st.lists(_message, max_size=4)})
_create: Final = _method(
    "create_session",
    {},
    title=texts,
    metadata=st.one_of(st.none(), metadata),
    session_id=st.one_of(st.none(), _new_ids),
    user_id=_user_ids,
)
_history: Final = _method(
    "get_history", {"session_id": _sessions}, limit=_limits, before=st.one_of(st.none(), _ids("message"))
)
_listing: Final = _method(
    "get_sessions",
    {},
    limit=_limits,
    offset=_counts,
    user_id=st.one_of(st.none(), _user_ids, st.sampled_from(["\x00", "w" * (MAX_USER_ID_LENGTH + 1)])),
    metadata=st.one_of(st.none(), metadata),
)
_whole_listing: Final = _method(
    "get_sessions", {"limit": st.none()}, user_id=st.one_of(st.none(), _user_ids), metadata=_few
)
_session: Final = _method("get_session", {"session_id": _sessions})
_count: Final = st.just(ModelCall("count_sessions", {}))
_retitle: Final = _method("update_session_title", {"session_id": _sessions, "title": texts})
_delete: Final = _method("delete_session", {"session_id": _sessions})
_clear: Final = st.just(ModelCall("clear_all", {}))

writes: Final = _weighted((8, _add), (6, _add_batch), (4, _create), (3, _retitle), (2, _delete), (1, _clear))
_reads: Final = _weighted((3, _history), (4, _listing), (2, _session), (1, _count))

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

_REFUSED: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "create_session": {
        "title": _NOT_STORABLE,
        "metadata": _NO_METADATA,
        "session_id": _NO_IDS,
        "user_id": ("w" * (MAX_USER_ID_LENGTH + 1), *_NOT_STORABLE),
    },
    "add_message": {
        "session_id": _NOT_TEXT,
        "role": ("", *_NOT_STORABLE),
        "content": _NOT_STORABLE,
        "metadata": _NO_METADATA,
        "message_id": _NO_IDS,
    },
    "add_messages": {"session_id": _NOT_TEXT, "messages": _NO_MESSAGES},
    "get_history": {"session_id": _NOT_TEXT, "limit": _NO_COUNTS, "before": _NOT_TEXT[:-1]},
    "get_sessions": {
        "limit": _NO_COUNTS,
        "offset": (None, *_NO_COUNTS),
        "user_id": _NOT_TEXT[:-1],
        "metadata": _NO_METADATA,
    },
    "get_session": {"session_id": _NOT_TEXT},
    "update_session_title": {"session_id": _NOT_TEXT, "title": _NOT_STORABLE},
    "delete_session": {"session_id": _NOT_TEXT},
}
"""The invalid values of each argument; a call gets only one, as no promise says which of two is reported."""


@st.composite
def _spoilt(draw: st.DrawFn) -> ModelCall:
    """Draw a call with one invalid argument."""
    call = draw(st.one_of(_add, _create, _add_batch, _history, _listing, _retitle, _session, _delete))
    refused = _REFUSED[call.method]
    name = draw(st.sampled_from(sorted(refused)))
    if name == "messages" and call.arguments["messages"] and draw(st.booleans()):
        batch = [dict(message) for message in call.arguments["messages"]]
        key = draw(st.sampled_from(["content", "message_id", "metadata", "role"]))
        draw(st.sampled_from(batch))[key] = draw(st.sampled_from(_REFUSED["add_message"][key]))
        return ModelCall(call.method, {**call.arguments, "messages": batch})
    return ModelCall(call.method, {**call.arguments, name: draw(st.sampled_from(refused[name]))})


changes: Final = st.one_of(st.just({}), st.sampled_from([{"content": "z"}, {"role": "z"}, {"metadata": {"k": 9}}]))
"""The changes to a message that is sent again."""

handles: Final = st.integers(0, 1)
first_sessions: Final = st.lists(st.sampled_from(_NAMES[:2]), unique=True, max_size=2)
reads: Final = _weighted((2, _reads), (1, _spoilt()))
calls: Final = _weighted((1, writes), (1, reads))

_cuts: Final = _weighted(
    (3, st.none()), (1, st.builds(Cut, st.sampled_from([0, 0, 0, 1, 2, 3]), st.sampled_from(["asleep", "awoken"])))
)
_together: Final = _weighted(
    (8, _add),
    (6, _add_batch),
    (3, _delete),
    (3, _create),
    (2, _retitle),
    (3, _history),
    (2, _whole_listing),
    (1, _session),
    (1, _count),
    (1, _clear),
)


@st.composite
def _member(draw: st.DrawFn) -> tuple[int, ModelCall, Cut | None]:
    handle, call, cut = draw(handles), draw(_together), draw(_cuts)
    if cut is not None and call.method in WRITES:
        call = _recognisable(draw, call)
    return handle, call, cut


def _recognisable(draw: st.DrawFn, call: ModelCall) -> ModelCall:
    """Return the call with ids chosen by the caller: a cancelled call cannot return generated ones."""
    arguments = dict(call.arguments)
    own = st.sampled_from(_NAMES)
    if call.method == "create_session":
        arguments["session_id"] = arguments.get("session_id") or draw(own)
    elif call.method == "add_message":
        arguments["message_id"] = arguments.get("message_id") or draw(own)
    elif call.method == "add_messages":
        arguments["messages"] = [
            {**message, "message_id": message.get("message_id") or draw(own)} for message in arguments["messages"]
        ]
    return ModelCall(call.method, arguments)


groups: Final[SearchStrategy[Group]] = st.lists(_member(), min_size=2, max_size=4)
