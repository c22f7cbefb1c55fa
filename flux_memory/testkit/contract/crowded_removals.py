"""The clause on removals and copies that want the same sessions at the same time as writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flux_memory import BackendUnavailableError, ConflictError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents, gather_outcomes

SESSIONS: Final = 8
"""Sessions that every caller works on, in one order or the other."""
CALLERS: Final = 2
"""Concurrent callers of each handle."""


class CrowdedRemovalsContract(Binding):
    """The promises to removals, copies and writes that meet in the same sessions."""

    @clause(
        "FM-CON-041",
        promise="`delete_sessions(user_id=)` beside writers removes each session of the user that there was when it "
        "began: no add keeps its session.",
        impact="A user asks for the deletion of all conversations, and the one that is being written to stays.",
        needs=Capability.RETENTION | Capability.SESSIONS | Capability.USER_SCOPE | Capability.SEVERAL_HANDLES,
    )
    async def test_no_session_is_skipped(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        sessions = await together(memory.create_session(user_id="ann") for _ in range(SESSIONS))
        deleted = False

        async def write(session: str, number: int) -> None:
            while True:
                last = deleted
                try:
                    await other.add_message(session, "user", str(number))
                except SessionNotFoundError:
                    return
                assert not last, "a session was written to after the deletion of its user's sessions"
                await asyncio.sleep(0)

        async def delete() -> int:
            nonlocal deleted
            removed = await memory.delete_sessions(user_id="ann")
            deleted = True
            return removed

        writers = [asyncio.ensure_future(write(session, number)) for session in sessions for number in range(CALLERS)]
        try:
            # While each session is being written to.
            await asyncio.sleep(0)
            removed = await delete()
            await asyncio.gather(*writers)
        finally:
            for writer in writers:
                writer.cancel()
            await gather_outcomes(*writers)
        assert removed == SESSIONS
        assert await memory.count_sessions() == 0
        assert not any(await together(map(memory.get_history, sessions)))

    @clause(
        "FM-CON-040",
        promise="Bulk deletions, pops, forks and writes of the same sessions, by handles that take them in opposite "
        "orders, all end: each succeeds, or raises a documented error and has changed nothing.",
        impact="A retention job and a busy conversation block each other, and one of them fails or loses a message.",
        needs=Capability.RETENTION
        | Capability.POP
        | Capability.FORK
        | Capability.BATCH
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE
        | Capability.TITLES
        | Capability.TIMESTAMPS
        | Capability.SEVERAL_HANDLES,
    )
    async def test_removals_in_opposite_orders(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        sessions = [f"session {number}" for number in range(SESSIONS)]

        async def make(at: int, session: str) -> None:
            await handles[0].create_session(session_id=session, user_id=("ann", "bob")[at % 2])
            await handles[0].add_messages(session, numbered(*range(4)))

        await together(make(at, session) for at, session in enumerate(sessions))
        future = datetime.now(UTC) + timedelta(days=1)
        copies = list[str]()

        async def change(caller: int, at: int) -> list[Any]:
            memory, order = handles[at], slice(None, None, -1 if at else 1)
            mine = [f"copy {caller} {at} {session}" for session in sessions]
            outcomes = await gather_outcomes(
                *(memory.add_message(session, "user", "new") for session in sessions[order]),
                *(memory.pop_message(session) for session in sessions[order]),
                *(memory.update_session_title(session, "new") for session in sessions[order]),
                memory.delete_sessions(user_id="ann", inactive_since=future if caller else None),
                *(
                    memory.fork_session(session, new_session_id=copy)
                    for session, copy in list(zip(sessions, mine, strict=True))[order]
                ),
                *(memory.delete_session(session) for session in sessions[order][:2]),
            )
            copies.extend(mine)
            return outcomes

        work = await asyncio.gather(*(change(caller, at) for caller in range(CALLERS) for at in range(2)))
        _documented([one for outcomes in work for one in outcomes])
        for handle in handles:
            await handle.close()
        reader = store.open()
        await together(_is_sound(reader, session) for session in (*sessions, *copies))
        listed = await reader.get_sessions(None)
        assert {*sessions[3:-2:2]} <= {row["id"] for row in listed}, "a session of another user is gone"
        left = len([row for row in listed if row["user_id"] == "ann"])
        assert await reader.delete_sessions(user_id="ann") == left
        assert await reader.count_sessions() == len(listed) - left


async def _is_sound(memory: Memory, session: str) -> None:
    """Assert that a session is gone, or that its messages are the first ones and new ones, and counted."""
    record, history = await asyncio.gather(memory.get_session(session), memory.get_history(session))
    said = contents(history)
    if record is None:
        assert said == [], f"messages of a session that is gone: {said}"
        return
    old = [text for text in said if text != "new"]
    assert said == [*(str(number) for number in range(len(old))), *["new"] * (len(said) - len(old))]
    assert record["message_count"] == len(said), f"{len(said)} messages, counted {record['message_count']}"


def _documented(outcomes: Sequence[Any]) -> None:
    kinds = (BackendUnavailableError, SessionNotFoundError, ConflictError)
    wrong = [one for one in outcomes if isinstance(one, BaseException) and not isinstance(one, kinds)]
    if wrong:
        raise AssertionError(f"unexpected: {wrong[:3]!r}") from wrong[0]
