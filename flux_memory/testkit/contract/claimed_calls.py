"""The calls that need each capability, as the clauses on claims make them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from flux_memory import InvalidInputError, Memory, NewMessage, Session
from flux_memory.testkit.capabilities import NOTHING, Capability


class ClaimedCall(NamedTuple):
    """A call that works if a capability is claimed, and is refused otherwise."""

    method: str
    argument: str
    """The argument that the claim is about; the error of a refusal names it or the method."""
    call: Callable[[Memory, str], Awaitable[Any]]
    """Makes the call; the text is a session's id."""
    also: Capability = NOTHING
    """Other capabilities that the call needs; it is made only if they are claimed."""


_LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)
_MESSAGE: Final[NewMessage] = {"role": "user", "content": "x"}
_SEEN: Final[Session] = {
    "id": "seen before",
    "user_id": "",
    "title": "",
    "created_at": "2001-01-01T00:00:00.000000+00:00",
    "updated_at": "2001-01-01T00:00:00.000000+00:00",
    "metadata": {},
    "message_count": 0,
    "revision": "",
}
"""A session of an earlier page."""


def _new(session_id: str) -> str:
    """Return a short id that no other session has: the calls of other capabilities run at the same time."""
    # A clause gives an invalid id, too.
    return f"{str(session_id)[-12:]} new"


async def _read_revision(memory: Memory, session_id: str) -> str:
    session = await memory.get_session(session_id)
    revision = session.get("revision") if session else None
    if not revision:
        # A record has an empty text where the capability is missing.
        raise InvalidInputError("revision is not supported")
    return revision


async def _update_as_read(memory: Memory, session_id: str) -> None:
    session = await memory.get_session(session_id)
    revision = session.get("revision") if session else None
    await memory.update_session(session_id, expected_revision=revision or "any text", messages=[_MESSAGE])


async def _truncate_from(memory: Memory, session_id: str) -> None:
    message = await memory.add_message(session_id, "user", "x")
    await memory.update_session(session_id, truncate_from=message)


CALLS: Final[dict[Capability, list[ClaimedCall]]] = {
    Capability.BATCH: [
        ClaimedCall("add_messages", "messages", lambda memory, s: memory.add_messages(s, [_MESSAGE])),
    ],
    Capability.IDEMPOTENT_IDS: [
        ClaimedCall("add_message", "message_id", lambda memory, s: memory.add_message(s, "user", "x", message_id="m")),
        ClaimedCall(
            "update_session",
            "message_id",
            lambda memory, s: memory.update_session(s, messages=[{**_MESSAGE, "message_id": "n"}]),
            Capability.SESSION_UPDATES,
        ),
    ],
    Capability.MESSAGE_METADATA: [
        ClaimedCall("add_message", "metadata", lambda memory, s: memory.add_message(s, "user", "x", {"k": 1})),
        ClaimedCall(
            "update_session",
            "metadata",
            lambda memory, s: memory.update_session(s, messages=[{**_MESSAGE, "metadata": {"k": 1}}]),
            Capability.SESSION_UPDATES,
        ),
    ],
    Capability.CURSOR: [ClaimedCall("get_history", "before", lambda memory, s: memory.get_history(s, before="m"))],
    Capability.SESSIONS: [
        ClaimedCall("get_session", "session_id", lambda memory, s: memory.get_session(s)),
        ClaimedCall("get_sessions", "limit", lambda memory, _: memory.get_sessions()),
        ClaimedCall("count_sessions", "count_sessions", lambda memory, _: memory.count_sessions()),
    ],
    Capability.SESSION_IDS: [
        ClaimedCall("create_session", "session_id", lambda memory, s: memory.create_session(session_id=_new(s))),
        ClaimedCall(
            "fork_session",
            "new_session_id",
            lambda memory, s: memory.fork_session(s, new_session_id=f"{_new(s)} too"),
            Capability.FORK,
        ),
    ],
    Capability.SESSION_METADATA: [
        ClaimedCall("create_session", "metadata", lambda memory, _: memory.create_session(metadata={"k": 1})),
        ClaimedCall(
            "update_session",
            "merge_metadata",
            lambda memory, s: memory.update_session(s, merge_metadata={"k": 1}),
            Capability.SESSION_UPDATES,
        ),
        ClaimedCall(
            "update_session",
            "remove_metadata",
            lambda memory, s: memory.update_session(s, remove_metadata=["k"]),
            Capability.SESSION_UPDATES,
        ),
    ],
    Capability.METADATA_FILTER: [
        ClaimedCall("get_sessions", "metadata", lambda memory, _: memory.get_sessions(metadata={"k": 1})),
    ],
    Capability.USER_SCOPE: [
        ClaimedCall("create_session", "user_id", lambda memory, _: memory.create_session(user_id="u")),
        ClaimedCall("get_sessions", "user_id", lambda memory, _: memory.get_sessions(user_id="u")),
        ClaimedCall(
            "add_message",
            "user_id",
            lambda memory, s: memory.add_message(_new(s), "user", "x", create=True, user_id="u"),
            Capability.CREATE_ON_ADD,
        ),
        ClaimedCall("fork_session", "user_id", lambda memory, s: memory.fork_session(s, user_id="u"), Capability.FORK),
        ClaimedCall(
            "delete_sessions", "user_id", lambda memory, _: memory.delete_sessions(user_id="u"), Capability.RETENTION
        ),
    ],
    Capability.TITLES: [
        ClaimedCall("create_session", "title", lambda memory, _: memory.create_session("t")),
        ClaimedCall("update_session_title", "title", lambda memory, s: memory.update_session_title(s, "t")),
        ClaimedCall(
            "update_session", "title", lambda memory, s: memory.update_session(s, title="u"), Capability.SESSION_UPDATES
        ),
        ClaimedCall("fork_session", "title", lambda memory, s: memory.fork_session(s, title="v"), Capability.FORK),
    ],
    Capability.CLEAR_ALL: [ClaimedCall("clear_all", "clear_all", lambda memory, _: memory.clear_all())],
    Capability.MESSAGE_LOOKUP: [
        ClaimedCall("get_message", "message_id", lambda memory, s: memory.get_message(s, "m")),
    ],
    Capability.FORWARD_CURSOR: [
        ClaimedCall("get_history", "after", lambda memory, s: memory.get_history(s, after="m")),
    ],
    Capability.CREATE_ON_ADD: [
        ClaimedCall("add_message", "create", lambda memory, s: memory.add_message(_new(s), "user", "x", create=True)),
        ClaimedCall(
            "add_messages",
            "create",
            lambda memory, s: memory.add_messages(f"{_new(s)} too", [_MESSAGE], create=True),
            Capability.BATCH,
        ),
    ],
    Capability.REVISIONS: [
        ClaimedCall(
            # A session that does not exist has no other revision.
            "delete_session",
            "expected_revision",
            lambda memory, _: memory.delete_session("no session", expected_revision="any text"),
        ),
        ClaimedCall("get_session", "revision", _read_revision, Capability.SESSIONS),
        ClaimedCall(
            "update_session", "expected_revision", _update_as_read, Capability.SESSIONS | Capability.SESSION_UPDATES
        ),
    ],
    Capability.SESSION_UPDATES: [
        ClaimedCall("update_session", "messages", lambda memory, s: memory.update_session(s, messages=[_MESSAGE])),
    ],
    Capability.TRUNCATE: [
        ClaimedCall("update_session", "truncate_all", lambda memory, s: memory.update_session(s, truncate_all=True)),
        ClaimedCall("update_session", "truncate_from", _truncate_from, Capability.MESSAGE_IDS),
    ],
    Capability.POP: [ClaimedCall("pop_message", "pop_message", lambda memory, s: memory.pop_message(s))],
    Capability.FORK: [ClaimedCall("fork_session", "fork_session", lambda memory, s: memory.fork_session(s))],
    Capability.LIST_CURSOR: [
        ClaimedCall("get_sessions", "before", lambda memory, _: memory.get_sessions(before=_SEEN)),
        ClaimedCall("get_sessions", "with_metadata", lambda memory, _: memory.get_sessions(with_metadata=False)),
    ],
    Capability.COUNT_FILTER: [
        ClaimedCall(
            "count_sessions", "user_id", lambda memory, _: memory.count_sessions(user_id="u"), Capability.USER_SCOPE
        ),
        ClaimedCall(
            "count_sessions",
            "metadata",
            lambda memory, _: memory.count_sessions(metadata={"k": 1}),
            Capability.METADATA_FILTER,
        ),
    ],
    Capability.RETENTION: [
        ClaimedCall(
            "delete_sessions", "inactive_since", lambda memory, _: memory.delete_sessions(inactive_since=_LONG_AGO)
        ),
    ],
    Capability.FEEDBACK: [
        ClaimedCall("feedback", "feedback", lambda memory, s: memory.feedback.add(s, 1)),
        ClaimedCall("feedback", "feedback", lambda memory, _: memory.feedback.get()),
        ClaimedCall("feedback", "feedback", lambda memory, _: memory.feedback.stats()),
        ClaimedCall("feedback", "feedback", lambda memory, _: memory.feedback.delete("no entry")),
    ],
}
"""The calls that need a capability. Other clauses check what they do."""
