"""What each caller was told of its write, and what PostgreSQL has of it when nothing is in flight any more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from raw_postgres import BUSY, CONNECTIONS, rows, until_none

from flux_memory import FluxMemoryError, Memory, OutcomeUnknownError, PostgresConversationMemory, deadline

CONTENTS: Final = "SELECT session_id, content FROM messages ORDER BY session_id, seq"
MISCOUNTED: Final = """
SELECT sessions.id, sessions.message_count, count(seq), min(seq), max(seq)
FROM sessions LEFT JOIN messages ON messages.session_id = sessions.id
GROUP BY sessions.id, sessions.message_count
HAVING sessions.message_count <> count(seq) OR count(seq) <> coalesce(max(seq), 0) OR count(seq) <> count(DISTINCT seq)
"""
AWAITING_A_LOCK: Final = f"SELECT count(*) {CONNECTIONS} AND wait_event_type = 'Lock'"
"""Statements of a `named` DSN that wait for a lock."""
ASLEEP: Final = f"SELECT count(*) {CONNECTIONS} AND wait_event = 'PgSleep'"
SLOW_SESSIONS: Final = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END';
CREATE TRIGGER slow
AFTER INSERT OR UPDATE OR DELETE ON sessions
FOR EACH STATEMENT EXECUTE FUNCTION take_time();
"""
"""Make each write take 0.1 s on the server: adds bump the session's counter."""


@dataclass
class Told:
    """Contents by what their callers were told."""

    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """The error says that nothing was stored."""
    unknown: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def note(self, content: str, outcome: object) -> None:
        """Add one call: `outcome` is its result or its exception.

        Raises:
            BaseException: The exception is neither of the library's family nor a cancellation.
        """
        if not isinstance(outcome, BaseException):
            self.acknowledged.append(content)
            return
        self.errors.append(outcome)
        if isinstance(outcome, asyncio.CancelledError):
            self.cancelled.append(content)
        elif isinstance(outcome, OutcomeUnknownError):
            self.unknown.append(content)
        elif isinstance(outcome, FluxMemoryError):
            self.refused.append(content)
        else:
            raise outcome


async def told(calls: dict[str, Awaitable[Any]], *, within: float = 30.0) -> Told:
    """Await calls, each named by its content, which must end in time."""
    async with asyncio.timeout(within):
        outcomes = await asyncio.gather(*calls.values(), return_exceptions=True)
    found = Told()
    for content, outcome in zip(calls, outcomes, strict=True):
        found.note(content, outcome)
    return found


async def quiet(memory: Memory, dsn: str, sessions: Iterable[str], *, close: bool = True) -> Counter[str]:
    """Return how often each content is stored, once nothing that the handle began can be stored any more.

    An add to each session comes behind everything that still waits for one; their contents are not returned.

    Args:
        memory: The handle, which can reach the server again.
        dsn: The same database, past anything that breaks. The handle's DSN is a `named` one.
        sessions: Those that were added to.
        close: Close the handle before the look.
    """
    with deadline(20):
        await asyncio.gather(*(memory.add_message(session, "user", "afterwards") for session in sessions))
    if close:
        await memory.close()
        await until_none(dsn, BUSY)
    assert await rows(dsn, MISCOUNTED) == []
    return await stored(dsn)


async def stored(dsn: str) -> Counter[str]:
    """Return how often each content is stored now."""
    return Counter(content for _, content in await rows(dsn, CONTENTS) if content != "afterwards")


async def in_order(dsn: str, wanted: Sequence[str]) -> bool:
    """Return whether the stored contents of each session that are among the wanted ones stand in their order."""
    places = {content: place for place, content in enumerate(wanted)}
    found: dict[str, list[int]] = {}
    for session, content in await rows(dsn, CONTENTS):
        if content in places:
            found.setdefault(session, []).append(places[content])
    return all(numbers == sorted(numbers) for numbers in found.values())


@asynccontextmanager
async def opened(dsn: str, *, borrowed: bool = False, **arguments: Any) -> AsyncIterator[PostgresConversationMemory]:
    """Open a handle with a pool of its own, or with one of ten connections that it borrows."""
    if not borrowed:
        async with PostgresConversationMemory(dsn, **arguments) as memory:
            yield memory
        return
    pool = await asyncpg.create_pool(dsn, min_size=0, max_size=10)
    try:
        async with PostgresConversationMemory(pool=pool, **arguments) as memory:
            yield memory
    finally:
        pool.terminate()


async def make_sessions(dsn: str, ids: Iterable[str]) -> None:
    """Make the tables, and sessions, through a handle that nothing breaks."""
    async with PostgresConversationMemory(dsn) as memory:
        for id_ in ids:
            await memory.create_session(session_id=id_)
