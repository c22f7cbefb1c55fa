"""What times must do: they are the store's own, so the model takes them over once it has looked at them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flux_memory.testkit.contract.model.answers import ANY_TIME
from flux_memory.testkit.contract.model.worlds import Sessions, World

Rows = list[dict[str, Any]]


def unsorted(rows: Rows) -> str | None:
    """Say that a listing is not the newest activity first."""
    times = [row["updated_at"] for row in rows]
    return None if times == sorted(times, reverse=True) else f"a listing is not the newest activity first: {times}"


def problem_of_times(
    world: World, before: Sessions, rows: Rows, histories: dict[str, Rows], *, alone: bool
) -> str | None:
    """Say which time runs backwards or was not set.

    Args:
        world: The state as it should be.
        before: The sessions before the calls.
        rows: All sessions, as the store lists them.
        histories: Their messages.
        alone: One call was made, by itself.
    """
    for row in rows:
        name, updated = row["id"], row["updated_at"]
        times = [message["created_at"] for message in histories[name]]
        if times != sorted(times):
            return f"created_at decreases along the history of {name!r}: {times}"
        if updated < max([row["created_at"], *times]):
            return f"session {name!r} was updated at {updated}, before its newest message or its creation"
        last = before[name]["updated_at"] if name in before else ANY_TIME
        if last != ANY_TIME and updated < last:
            return f"updated_at of session {name!r} went back from {last} to {updated}"
        messages = world.sessions[name]["messages"]
        if alone and messages and messages[-1]["created_at"] == ANY_TIME and updated != times[-1]:
            return f"session {name!r} was updated at {updated}, but its newest message is of {times[-1]}"
        new = {time for time, message in zip(times, messages, strict=True) if message["created_at"] == ANY_TIME}
        if alone and len(new) > 1:
            return f"the messages of one batch have several times: {sorted(new)}"
    return None


def adopted(world: World, rows: Rows, histories: dict[str, Rows]) -> World:
    """Return the state with the times that the store has set."""
    listed = {row["id"]: row for row in rows}
    sessions: Sessions = {}
    for name, state in world.sessions.items():
        row, history = listed[name], histories[name]
        sessions[name] = state | {
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
            "messages": [
                message | {"created_at": seen["created_at"]}
                for message, seen in zip(state["messages"], history, strict=True)
            ],
        }
    return replace(world, sessions=sessions)
