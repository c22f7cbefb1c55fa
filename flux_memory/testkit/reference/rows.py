"""The reference model's rows: sessions and messages as they are kept, and as callers see them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from flux_memory import ConflictError, FluxMemoryError, Message, Session, SessionNotFoundError
from flux_memory.testkit.reference import arguments, values
from flux_memory.testkit.reference.store import Sessions

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid6 import uuid7


def new_id() -> str:
    """Return a new id."""
    return str(uuid7())


def new_session(moment: str, **given: Any) -> dict[str, Any]:
    """Return a session without messages, as it is kept."""
    return given | {"created_at": moment, "updated_at": moment, "revision": str(uuid4()), "messages": []}


def place(session: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the place of a session in lists, which show the largest first."""
    return session["updated_at"], session["id"].encode()


def change(state: dict[str, Any], moment: str) -> None:
    """Note a change of a session: its time never goes back, and its revision is new."""
    state["updated_at"], state["revision"] = max(moment, state["updated_at"]), str(uuid4())


def check_revision(state: dict[str, Any], expected: str | None) -> None:
    """Refuse a change of a session that is not as its caller expects."""
    if expected not in {None, state["revision"]}:
        raise ConflictError(f"session {state['id']!r} has another revision")


def find_message(state: dict[str, Any], message_id: str) -> int:
    """Return the place of a message, which has to exist."""
    ids = [message["id"] for message in state["messages"]]
    if message_id not in ids:
        raise ConflictError(f"session {state['id']!r} has no message {message_id!r:.60}")
    return ids.index(message_id)


def append(state: dict[str, Any], batch: list[arguments.Draft], moment: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the messages of a batch that are to be added to a session, and the ids of the batch."""
    known: dict[str, dict[str, Any]] = {message["id"]: message for message in state["messages"]}
    added: list[dict[str, Any]] = []
    ids: list[str] = []
    for one in batch:
        message = one._asdict() | {"id": one.id or new_id(), "created_at": moment}
        ids.append(message["id"])
        stored = known.setdefault(message["id"], message)
        if stored is message:
            added.append(message)
        elif not same_content(stored, message):
            raise ConflictError(f"message {message['id']!r} has different content")
    return added, ids


def existing(sessions: Sessions, session_id: str) -> dict[str, Any]:
    """Return a session, which has to exist."""
    if session_id not in sessions:
        raise SessionNotFoundError(f"session {session_id!r:.60} does not exist")
    return sessions[session_id]


def refuse_contradictions(batch: list[arguments.Draft]) -> None:
    """Reject a batch that has one id twice with different contents."""
    first: dict[str, arguments.Draft] = {}
    for one in batch:
        if one.id is not None and not same_content(first.setdefault(one.id, one)._asdict(), one._asdict()):
            raise ConflictError(f"the batch has message {one.id!r} twice, with different contents")


def session_record(state: dict[str, Any]) -> Session:
    """Return a session as callers see it."""
    return {
        "id": state["id"],
        "user_id": state["user_id"],
        "title": state["title"],
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "metadata": values.copy_json(state["metadata"]),
        "message_count": len(state["messages"]),
        "revision": state["revision"],
    }


def message_record(stored: dict[str, Any]) -> Message:
    """Return a message as callers see it."""
    if not isinstance(stored["metadata"], dict):
        raise FluxMemoryError(f"message {stored['id']!r} is damaged: its metadata is not an object")
    return {
        "id": stored["id"],
        "role": stored["role"],
        "content": stored["content"],
        "metadata": values.copy_json(stored["metadata"]),
        "created_at": stored["created_at"],
    }


def same_content(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether adding one message over the other is a retry."""
    return (one["role"], one["content"]) == (other["role"], other["content"]) and values.equal(
        one["metadata"], other["metadata"]
    )
