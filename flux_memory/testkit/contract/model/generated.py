"""Hypothesis strategies for calls: valid and invalid values of every kind, small ones first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from flux_memory import MAX_ID_LENGTH, MAX_USER_ID_LENGTH
from flux_memory.testkit.contract import corpus
from flux_memory.testkit.contract.model.calls import CancelPoint, IdPlaceholder, ModelCall, RecordPlaceholder
from flux_memory.testkit.contract.model.refusals import REFUSED
from flux_memory.testkit.reference.memory import WRITES

Group = Sequence[tuple[int, ModelCall, CancelPoint | None]]

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


def _unprinted(strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return the strategy with a short `repr`: Hypothesis prints the arguments of rules at each draw of a rule."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        return draw(strategy)

    return drawn()


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


def _record(part: Any) -> SearchStrategy[RecordPlaceholder]:
    # Mostly the newest record; an older one can be out of date.
    return st.builds(RecordPlaceholder, st.just(part), st.sampled_from([0, 0, 0, 1, 2, 5]))


_revisions: Final = _weighted((3, st.none()), (5, _record("revision")), (1, st.sampled_from(["", "other", "\x00"])))
_optional_metadata: Final = st.one_of(st.none(), metadata)
_some_user: Final = st.one_of(st.none(), _user_ids, st.sampled_from(["\x00", "w" * (MAX_USER_ID_LENGTH + 1)]))
_creating: Final = {
    "session_id": _weighted((2, st.builds(IdPlaceholder, st.just("session"), st.integers(0, 3))), (3, _new_ids)),
    "create": st.just(True),
}
_in_a_message: Final = {"role": _roles, "content": texts}
_of_a_message: Final = {"metadata": _optional_metadata, "message_id": st.one_of(st.none(), _own_message_ids)}
_batch: Final = st.lists(_message, max_size=4)

_plain_add: Final = _method("add_message", {"session_id": _sessions, **_in_a_message}, **_of_a_message)
_creating_add: Final = _method("add_message", {**_creating, **_in_a_message}, **_of_a_message, user_id=_user_ids)
_owned_add: Final = _method("add_message", {"session_id": _sessions, **_in_a_message, "user_id": _user_ids})
_add: Final = _weighted((6, _plain_add), (2, _creating_add), (1, _owned_add))
_plain_batch: Final = _method("add_messages", {"session_id": _sessions, "messages": _batch})
_creating_batch: Final = _method("add_messages", {**_creating, "messages": _batch}, user_id=_user_ids)
_add_batch: Final = _weighted((4, _plain_batch), (1, _creating_batch))
_create: Final = _method(
    "create_session",
    {},
    title=texts,
    metadata=_optional_metadata,
    session_id=st.one_of(st.none(), _new_ids),
    user_id=_user_ids,
)
_pop: Final = _method("pop_message", {"session_id": _sessions})
# This call does not return the ids of messages, so the caller chooses them.
_known_batch: Final = st.lists(
    st.fixed_dictionaries({**_in_a_message, "message_id": _own_message_ids}, optional={"metadata": _optional_metadata}),
    min_size=1,
    max_size=3,
)
_cuts_of_history: Final[list[dict[str, SearchStrategy[Any]]]] = [
    {},
    {"truncate_from": _ids("message")},
    {"truncate_all": st.just(True)},
]
_parts: Final[list[dict[str, SearchStrategy[Any]]]] = [
    {"title": texts},
    {"merge_metadata": metadata},
    {"remove_metadata": st.lists(_keys, min_size=1, max_size=2)},
    {"messages": _known_batch},
]


def _update_of(*parts: dict[str, SearchStrategy[Any]]) -> SearchStrategy[ModelCall]:
    required = {name: strategy for part in parts for name, strategy in part.items()}
    return _method("update_session", {"session_id": _sessions, **required}, expected_revision=_revisions)


# Made once, as making a strategy takes longer than drawing from it.
_update: Final = st.sampled_from(
    [
        _update_of(cut, *parts)
        for cut in _cuts_of_history
        for count in range(3)
        for parts in combinations(_parts, count)
        if cut or parts
    ]
).flatmap(lambda chosen: chosen)
_fork: Final = _method(
    "fork_session",
    {"session_id": _sessions},
    through=_ids("message"),
    new_session_id=st.one_of(st.none(), _new_ids),
    user_id=st.one_of(st.none(), _user_ids),
    title=st.one_of(st.none(), texts),
)
_history: Final = _method("get_history", {"session_id": _sessions}, limit=_limits, before=_ids("message"))
_continuation: Final = _method("get_history", {"session_id": _sessions, "after": _ids("message")}, limit=_limits)
_both_ways: Final = _method(
    "get_history", {"session_id": _sessions, "before": _ids("message"), "after": _ids("message")}
)
_listing: Final = _method(
    "get_sessions",
    {},
    limit=_limits,
    offset=_counts,
    user_id=_some_user,
    metadata=_optional_metadata,
)
_next_page: Final = _method(
    "get_sessions",
    {"before": _record("record"), "limit": _limits},
    offset=st.integers(0, 1),
    user_id=st.one_of(st.none(), _user_ids),
    with_metadata=st.booleans(),
)
_whole_listing: Final = _method(
    "get_sessions", {"limit": st.none()}, user_id=st.one_of(st.none(), _user_ids), metadata=_few
)
_session: Final = _method("get_session", {"session_id": _sessions})
_message_of: Final = _method("get_message", {"session_id": _sessions, "message_id": _ids("message")})
_count: Final = _method("count_sessions", {}, user_id=_some_user, metadata=_optional_metadata)
_retitle: Final = _method("update_session_title", {"session_id": _sessions, "title": texts})
_delete: Final = _method("delete_session", {"session_id": _sessions}, expected_revision=_revisions)
_moments: Final = st.one_of(
    _record("moment"), st.sampled_from([datetime(2001, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)])
)
_purge: Final = st.one_of(
    _method("delete_sessions", {"user_id": _user_ids}),
    _method("delete_sessions", {"inactive_since": _moments}, user_id=st.one_of(st.none(), _user_ids)),
)
_clear: Final = st.just(ModelCall("clear_all", {}))

_writes: Final = _weighted(
    (8, _add),
    (6, _add_batch),
    (4, _create),
    (3, _retitle),
    (2, _delete),
    (1, _clear),
    (4, _pop),
    (7, _update),
    (3, _fork),
    (1, _purge),
)
_reads: Final = _weighted(
    (3, _history),
    (2, _continuation),
    (1, _both_ways),
    (3, _listing),
    (2, _next_page),
    (2, _session),
    (1, _message_of),
    (1, _count),
)
_SPOILABLE: Final = (
    _plain_add,
    _creating_add,
    _create,
    _plain_batch,
    _history,
    _message_of,
    _listing,
    _count,
    _pop,
    _update,
    _retitle,
    _fork,
    _session,
    _delete,
    _purge,
)


@st.composite
def _spoilt(draw: st.DrawFn) -> ModelCall:
    """Draw a call with one invalid argument."""
    call = draw(st.sampled_from(_SPOILABLE).flatmap(lambda chosen: chosen))
    refused = REFUSED[call.method]
    name = draw(st.sampled_from(sorted(refused)))
    if name == "messages" and call.arguments.get("messages") and draw(st.booleans()):
        batch = [dict(message) for message in call.arguments["messages"]]
        key = draw(st.sampled_from(["content", "message_id", "metadata", "role"]))
        draw(st.sampled_from(batch))[key] = draw(st.sampled_from(REFUSED["add_message"][key]))
        return ModelCall(call.method, {**call.arguments, "messages": batch})
    return ModelCall(call.method, {**call.arguments, name: draw(st.sampled_from(refused[name]))})


changes: Final = st.one_of(st.just({}), st.sampled_from([{"content": "z"}, {"role": "z"}, {"metadata": {"k": 9}}]))
"""The changes to a message that is sent again."""

handles: Final = st.integers(0, 1)
first_sessions: Final = st.lists(st.sampled_from(_NAMES[:2]), unique=True, max_size=2)
writes: Final = _unprinted(_writes)
reads: Final = _unprinted(_weighted((2, _reads), (1, _spoilt())))
calls: Final = _unprinted(_weighted((1, writes), (1, reads)))

_cuts: Final = _weighted(
    (3, st.none()),
    (1, st.builds(CancelPoint, st.sampled_from([0, 0, 0, 1, 2, 3]), st.sampled_from(["asleep", "awoken"]))),
)
# Not `delete_sessions`: it removes sessions in batches, and other calls may see some of them removed.
_together: Final = _weighted(
    (8, _add),
    (6, _add_batch),
    (3, _delete),
    (3, _create),
    (2, _retitle),
    (4, _pop),
    (6, _update),
    (2, _fork),
    (3, _history),
    (2, _whole_listing),
    (1, _session),
    (1, _count),
    (1, _clear),
)


@st.composite
def _member(draw: st.DrawFn) -> tuple[int, ModelCall, CancelPoint | None]:
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
    elif call.method == "fork_session":
        arguments["new_session_id"] = arguments.get("new_session_id") or draw(own)
    elif call.method == "add_messages":
        arguments["messages"] = [
            {**message, "message_id": message.get("message_id") or draw(own)} for message in arguments["messages"]
        ]
    return ModelCall(call.method, arguments)


groups: Final[SearchStrategy[Group]] = _unprinted(st.lists(_member(), min_size=2, max_size=4))
