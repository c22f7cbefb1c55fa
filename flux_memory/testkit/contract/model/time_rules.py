"""Rules for times and revisions: the store chooses them, so the model checks them and then adopts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flux_memory.testkit.contract.model.answers import ANY_REVISION, ANY_TIME
from flux_memory.testkit.contract.model.calls import Answered, Returned
from flux_memory.testkit.contract.model.states import Sessions, State

Rows = list[dict[str, Any]]


def unsorted(rows: Rows) -> str | None:
    """Return the problem if a listing is not sorted by newest activity."""
    times = [row["updated_at"] for row in rows]
    return None if times == sorted(times, reverse=True) else f"a listing is not sorted by newest activity: {times}"


def problem_of_times(
    state: State, before: Sessions, rows: Rows, histories: dict[str, Rows], *, alone: bool
) -> str | None:
    """Return which time decreases or was not set.

    Args:
        state: The expected state.
        before: The sessions before the calls.
        rows: All sessions, as the store lists them.
        histories: The messages of each session.
        alone: Only one call was made, with no concurrent calls.
    """
    for row in rows:
        name, updated = row["id"], row["updated_at"]
        times = [message["created_at"] for message in histories[name]]
        if times != sorted(times):
            return f"created_at decreases along the history of {name!r}: {times}"
        if updated < max([row["created_at"], *times]):
            return f"updated_at of session {name!r} is {updated}, before its newest message or its creation"
        last = before[name]["updated_at"] if name in before else ANY_TIME
        if last != ANY_TIME and updated < last:
            return f"updated_at of session {name!r} decreased from {last} to {updated}"
        messages = state.sessions[name]["messages"]
        if alone and messages and messages[-1]["created_at"] == ANY_TIME and updated != times[-1]:
            return f"updated_at of session {name!r} is {updated}, but its newest message was created at {times[-1]}"
        new = {time for time, message in zip(times, messages, strict=True) if message["created_at"] == ANY_TIME}
        if alone and len(new) > 1:
            return f"the messages of one batch have different times: {sorted(new)}"
    return None


def problem_of_revisions(state: State, rows: Rows, used: Mapping[str, set[str]]) -> str | None:
    """Return which changed session has an empty revision, or one that it had before.

    Args:
        state: The expected state.
        rows: All sessions, as the store lists them.
        used: The revisions that each session has had.
    """
    for row in rows:
        name, revision = row["id"], row["revision"]
        if state.sessions[name]["revision"] != ANY_REVISION:
            continue
        if not revision:
            return f"the revision of session {name!r} is empty"
        if revision in used.get(name, ()):
            return f"session {name!r} has changed and has a revision again that it had before: {revision!r:.80}"
    return None


def problem_of_update(alone: Sequence[Answered], rows: Rows) -> str | None:
    """Return the problem if an update, which was the only call, returned something else than the session."""
    for made in alone:
        if made.call.method != "update_session" or not isinstance(made.answer, Returned):
            continue
        told = made.answer.value
        stored = next((row for row in rows if row["id"] == told["id"]), None)
        if told != stored:
            return f"update_session() returned {told!r:.300}, but the session is {stored!r:.300}"
    return None


def adopted(state: State, rows: Rows, histories: dict[str, Rows]) -> State:
    """Return the state with the times and revisions that the store set."""
    listed = {row["id"]: row for row in rows}
    sessions: Sessions = {}
    for name, session in state.sessions.items():
        row, history = listed[name], histories[name]
        sessions[name] = session | {
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
            "revision": row["revision"],
            "messages": [
                message | {"created_at": seen["created_at"]}
                for message, seen in zip(session["messages"], history, strict=True)
            ],
        }
    return replace(state, sessions=sessions)
