"""Tests that a write whose caller left while the server was away does not take effect on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import pytest
from fault_outcomes import (
    SESSIONS,
    cut_off,
    gather_outcomes,
    is_in_order,
    make_sessions,
    settle,
    start_add,
    used_memory,
)
from raw_postgres import OPEN, fetch_rows, wait_until_none

from flux_memory import BackendUnavailableError, PostgresConversationMemory, deadline
from flux_memory.testkit import Proxy


@dataclass(frozen=True)
class LeavingCallers:
    """Callers that leave while the server is away."""

    count: int
    sessions: int = 8
    after_seconds: float = 0.2
    staying: int = 0
    """Number of callers that stay."""
    kind: str = "message"
    timed: bool = False
    """Whether they leave by `wait_for`, not by a cancellation from outside."""
    used: bool = True
    """Whether the handle was used before the server went away."""
    borrowed: bool = False


LEAVING_CALLERS: Final = {
    "alone": LeavingCallers(1),
    "alone at once": LeavingCallers(1, after_seconds=0.0),
    "eight": LeavingCallers(8),
    "eight at once": LeavingCallers(8, after_seconds=0.0),
    "eight, soon": LeavingCallers(8, after_seconds=0.03),
    "eight of one session": LeavingCallers(8, sessions=1),
    "eight batches": LeavingCallers(8, kind="batch"),
    "eight with ids": LeavingCallers(8, kind="message with an id"),
    "eight by wait_for": LeavingCallers(8, timed=True),
    "eight beside eight": LeavingCallers(8, sessions=3, staying=8),
    "forty beside forty": LeavingCallers(40, staying=40),
    "eight of a borrowed pool": LeavingCallers(8, borrowed=True),
    "eight of a handle not yet opened": LeavingCallers(8, used=False),
    "eight beside eight of a handle not yet opened": LeavingCallers(8, used=False, staying=8),
}


@pytest.mark.asyncio
@pytest.mark.fault("adds cancelled while the server is away", backend="postgres")
@pytest.mark.parametrize("name", LEAVING_CALLERS)
async def test_an_add_that_was_cancelled_before_it_could_be_sent_is_not_stored(
    proxy: Proxy, flux_empty_database: str, name: str
) -> None:
    """Alone or in a queue: the caller knows that nothing was sent, and can add the message elsewhere."""
    leaving = LEAVING_CALLERS[name]
    dsn, sessions = flux_empty_database, SESSIONS[: leaving.sessions]
    async with used_memory(
        proxy.dsn, dsn, sessions, used=leaving.used, borrowed=leaving.borrowed, timeout=20
    ) as memory:
        await cut_off(proxy, dsn)
        calls: dict[str, asyncio.Future[Any]] = {}
        staying: dict[str, asyncio.Future[Any]] = {}
        for number in range(max(leaving.count, leaving.staying)):
            session = sessions[number % len(sessions)]
            if number < leaving.count:
                call = start_add(memory, 15, session, f"{number} leaves", leaving.kind)
                if leaving.timed:
                    call = asyncio.ensure_future(asyncio.wait_for(call, leaving.after_seconds))
                calls[f"{number} leaves"] = call
            if number < leaving.staying:
                staying[f"{number} stays"] = start_add(memory, 15, session, f"{number} stays", leaving.kind)
        if leaving.after_seconds:
            await asyncio.wait(calls.values(), timeout=leaving.after_seconds)
        for call in calls.values():
            call.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*calls.values(), return_exceptions=True), 3)
        assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, TimeoutError}
        proxy.heal()
        seen = await gather_outcomes(staying, within=16)
        assert len(seen.acknowledged) == leaving.staying, seen.errors
        found = await settle(memory, dsn, sessions)
        assert [content for content in found if "leaves" in content] == []
        seen.check(found)
        assert await is_in_order(dsn, [*staying])


@pytest.mark.asyncio
@pytest.mark.fault("create_session refused while the server is away", backend="postgres")
async def test_other_writes_that_were_refused_or_cancelled_do_not_take_effect(
    proxy: Proxy, flux_empty_database: str
) -> None:
    """Of the creations, titles and deletions that wait for a server, only those of waiting callers take effect."""
    await make_sessions(flux_empty_database, ["kept", "gone"])
    async with PostgresConversationMemory(proxy.dsn, timeout=20) as memory:
        await memory.count_sessions()
        await cut_off(proxy, flux_empty_database)
        with deadline(0.5):
            impatient = [
                asyncio.ensure_future(call)
                for call in (
                    memory.create_session(session_id="refused"),
                    memory.update_session_title("kept", "refused"),
                    memory.delete_session("kept"),
                    memory.clear_all(),
                )
            ]
        cancelled = [
            asyncio.ensure_future(call)
            for call in (
                memory.create_session(session_id="cancelled"),
                memory.delete_session("kept"),
                memory.clear_all(),
            )
        ]
        with deadline(15):
            patient = [
                asyncio.ensure_future(call)
                for call in (memory.create_session(session_id="patient"), memory.delete_session("gone"))
            ]
        outcomes = await asyncio.wait_for(asyncio.gather(*impatient, return_exceptions=True), 3)
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
        assert all("Nothing was stored" in str(outcome) for outcome in outcomes)
        for call in cancelled:
            call.cancel()
        await asyncio.wait_for(asyncio.wait(cancelled), 3)
        proxy.heal()
        await asyncio.wait_for(asyncio.gather(*patient), 16)
        await memory.close()
        await wait_until_none(flux_empty_database, OPEN)
        titles = "SELECT session_id, title FROM session_details ORDER BY session_id"
        assert await fetch_rows(flux_empty_database, titles) == [("kept", ""), ("patient", "")]
