"""Calls every method of a memory on scratch sessions, for `flux-memory check --full`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flux_memory.errors import FluxMemoryError

if TYPE_CHECKING:
    from flux_memory.health import CheckReport
    from flux_memory.protocol import Memory


async def check_methods(memory: Memory, report: CheckReport) -> None:
    """Create, change, read back and remove scratch sessions through every public method but `clear_all`.

    Raises:
        FluxMemoryError: A method failed, or returned other data than was stored.
    """
    title, metadata = "flux-memory check", {"check": True, "number": 1.0, "text": "ünï 漢字"}
    # Another check may run meanwhile, and `delete_sessions` removes all that a user has.
    owner = f"flux-memory check {uuid4()}"

    async def call(name: str, expected: Callable[[Any], bool], result: Awaitable[Any]) -> Any:
        value = await result
        if not expected(value):
            raise FluxMemoryError(f"{name}() returned other data than was stored; please report this as a bug")
        report.full.append(name)
        return value

    session = await call("create_session", bool, memory.create_session(title, metadata, user_id=owner))
    try:
        first = await call("add_message", bool, memory.add_message(session, "user", "one", metadata))
        batch = [{"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
        added = await call("add_messages", lambda ids: len(ids) == 2, memory.add_messages(session, batch))  # type: ignore[arg-type]
        ids = [first, *added]
        history = await call(
            "get_history", lambda rows: [row["id"] for row in rows] == ids, memory.get_history(session)
        )
        await call("get_message", lambda row: row == history[0], memory.get_message(session, first))
        await call("update_session_title", lambda _: True, memory.update_session_title(session, title + "ed"))
        found = await call(
            "get_session",
            lambda row: (row["title"], row["metadata"], row["message_count"]) == (title + "ed", metadata, 3),
            memory.get_session(session),
        )
        await call(
            "update_session",
            lambda row: row["metadata"] == {**metadata, "number": None} and row["revision"] != found["revision"],
            memory.update_session(session, expected_revision=found["revision"], merge_metadata={"number": None}),
        )
        await call("pop_message", lambda row: row == history[2], memory.pop_message(session))
        fork = await call("fork_session", bool, memory.fork_session(session, through=first))
        await call(
            "get_sessions",
            lambda rows: {row["id"]: row["message_count"] for row in rows} == {session: 2, fork: 1},
            memory.get_sessions(user_id=owner, metadata={"check": True}),
        )
        await call("count_sessions", lambda number: number == 2, memory.count_sessions(user_id=owner))
        await memory.delete_session(fork)
        await call("delete_session", lambda row: row is None, memory.get_session(fork))
        await _check_feedback(memory, session, call)
    finally:
        await memory.delete_sessions(user_id=owner)
    await call("delete_sessions", lambda rows: not rows, memory.get_sessions(user_id=owner))


async def _check_feedback(memory: Memory, session: str, call: Callable[..., Awaitable[Any]]) -> None:
    """Add, read, count and delete feedback on a scratch session, whose owner's feedback is erased afterwards."""
    feedback = memory.feedback
    added = await call("feedback.add", bool, feedback.add(session, 1, comment="good", metadata={"check": True}))
    await call(
        "feedback.get", lambda rows: [row["feedback_id"] for row in rows] == [added], feedback.get(session_id=session)
    )
    await call("feedback.stats", lambda counted: counted["total"] >= 1, feedback.stats())
    await feedback.delete(added)
    await call("feedback.delete", lambda rows: not rows, feedback.get(session_id=session))
