"""The outcome of each write as its caller saw it, and the content of PostgreSQL once nothing is in flight."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from raw_postgres import BUSY, CONNECTIONS, OPEN, connect, fetch_rows, wait_until_none
from waiting import wait_until

from flux_memory import FluxMemoryError, Memory, OutcomeUnknownError, PostgresConversationMemory, deadline
from flux_memory.testkit import Proxy

CONTENTS: Final = "SELECT session_id, content FROM messages ORDER BY session_id, seq"
MISCOUNTED: Final = """
SELECT sessions.id, sessions.message_count, count(seq), min(seq), max(seq)
FROM sessions LEFT JOIN messages ON messages.session_id = sessions.id
GROUP BY sessions.id, sessions.message_count
HAVING sessions.message_count <> count(seq) OR count(seq) <> coalesce(max(seq), 0) OR count(seq) <> count(DISTINCT seq)
"""
AWAITING_A_LOCK: Final = f"SELECT count(*) {CONNECTIONS} AND wait_event_type = 'Lock'"
"""Counts statements on connections of a DSN `with_application_name` that wait for a lock."""
ASLEEP: Final = f"SELECT count(*) {CONNECTIONS} AND wait_event = 'PgSleep'"
SLOW_SESSIONS: Final = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END';
CREATE TRIGGER slow
AFTER INSERT OR UPDATE OR DELETE ON sessions
FOR EACH STATEMENT EXECUTE FUNCTION take_time();
"""
"""Makes each write take 0.1 s on the server: every add updates the session's counter."""


SESSIONS: Final = [f"s{number}" for number in range(8)]
ADDS: Final[dict[str, Callable[[Memory, str, str], Awaitable[object]]]] = {
    "message": lambda memory, session, content: memory.add_message(session, "user", content),
    "message with an id": lambda memory, session, content: memory.add_message(
        session, "user", content, message_id=content
    ),
    "batch": lambda memory, session, content: memory.add_messages(
        session, [{"role": "user", "content": f"{content}{part}"} for part in ("", " b", " c")]
    ),
}
"""Ways to add a message; one that has an id has its content as the id."""


@dataclass
class Outcomes:
    """Contents, grouped by the outcome their callers saw."""

    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Contents whose error says that nothing was stored."""
    unknown: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def note(self, content: str, outcome: object) -> None:
        """Add one call: `outcome` is its result or its exception.

        Raises:
            BaseException: the exception is neither an error of the library nor a cancellation.
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

    def check(self, found: Counter[str]) -> None:
        """Assert that refused contents are not stored, acknowledged ones once, and none twice."""
        assert [content for content in self.refused if content in found] == []
        assert [content for content in self.acknowledged if found[content] != 1] == []
        assert [content for content, times in found.items() if times > 1] == []


async def gather_outcomes(calls: Mapping[str, Awaitable[Any]], *, within: float = 30.0) -> Outcomes:
    """Await calls, keyed by their content, which must finish in time; return their outcomes."""
    async with asyncio.timeout(within):
        outcomes = await asyncio.gather(*calls.values(), return_exceptions=True)
    found = Outcomes()
    for content, outcome in zip(calls, outcomes, strict=True):
        found.note(content, outcome)
    return found


async def settle(memory: Memory, dsn: str, sessions: Iterable[str], *, close: bool = True) -> Counter[str]:
    """Return how often each content is stored, after every write of the handle has come to its end.

    Adds one message to each session, which queues behind all earlier writes; these messages are not returned.

    Args:
        memory: The handle; the server is reachable again.
        dsn: A direct DSN of the same database. The handle's own DSN is one `with_application_name`.
        sessions: The sessions that got messages.
        close: Whether to close the handle before reading.
    """
    with deadline(20):
        await asyncio.gather(*(memory.add_message(session, "user", "afterwards") for session in sessions))
    if close:
        await memory.close()
        await wait_until_none(dsn, BUSY)
    assert await fetch_rows(dsn, MISCOUNTED) == []
    return await count_contents(dsn)


async def count_contents(dsn: str) -> Counter[str]:
    """Return how often each content is stored now."""
    return Counter(content for _, content in await fetch_rows(dsn, CONTENTS) if content != "afterwards")


async def is_in_order(dsn: str, wanted: Sequence[str]) -> bool:
    """Return whether the wanted contents are stored in the wanted order within each session."""
    places = {content: place for place, content in enumerate(wanted)}
    found: dict[str, list[int]] = {}
    for session, content in await fetch_rows(dsn, CONTENTS):
        if content in places:
            found.setdefault(session, []).append(places[content])
    return all(numbers == sorted(numbers) for numbers in found.values())


@asynccontextmanager
async def open_postgres(
    dsn: str, *, borrowed: bool = False, **arguments: Any
) -> AsyncIterator[PostgresConversationMemory]:
    """Open a handle with its own pool, or with a borrowed pool of ten connections."""
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
    """Create the tables and the sessions over a connection that stays intact."""
    async with PostgresConversationMemory(dsn) as memory:
        for id_ in ids:
            await memory.create_session(session_id=id_)


@asynccontextmanager
async def used_memory(
    dsn: str, direct_dsn: str, sessions: Iterable[str] = SESSIONS, *, used: bool = True, **arguments: Any
) -> AsyncIterator[PostgresConversationMemory]:
    """Create sessions and open a handle that has added to each of them, unless `used` is false."""
    await make_sessions(direct_dsn, sessions)
    async with open_postgres(dsn, **arguments) as memory:
        if used:
            await settle(memory, direct_dsn, sessions, close=False)
        yield memory


def start_add(memory: Memory, seconds: float, session: str, content: str, kind: str = "message") -> asyncio.Future[Any]:
    """Start an add with a deadline of its own."""
    with deadline(seconds):
        return asyncio.ensure_future(ADDS[kind](memory, session, content))


async def cut_off(proxy: Proxy, dsn: str) -> None:
    """Refuse connections and end the open ones, so that nothing can be sent."""
    proxy.refuse()
    proxy.reset()
    await wait_until_none(dsn, OPEN)


def add_with_id(memory: Memory, seconds: float, session: str, content: str) -> asyncio.Future[Any]:
    """Start an add with its content as its id and a deadline of its own."""
    return start_add(memory, seconds, session, content, "message with an id")


@asynccontextmanager
async def lock_rows(dsn: str, sessions: Iterable[str]) -> AsyncIterator[None]:
    """Lock the rows of sessions, as a migration or another program's transaction does."""
    async with connect(dsn) as other, other.transaction():
        await other.execute("SELECT FROM sessions WHERE id = ANY ($1::text[]) FOR UPDATE", [*sessions])
        yield


async def until_statements_wait(connection: Any) -> None:
    """Return when statements wait for a lock, or after a moment if the implementation waits on the client."""
    with suppress(TimeoutError):
        await wait_until(lambda: connection.fetchval(AWAITING_A_LOCK), seconds=0.5)


async def measure_call(call: Awaitable[object], within: float) -> tuple[float, BaseException | None]:
    """Await a call that must end in time; return its duration and its error."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    done, _ = await asyncio.wait([task := asyncio.ensure_future(call)], timeout=within + 5)
    took = loop.time() - began
    assert done, "the call hangs"
    assert took < within
    return took, None if task.cancelled() else task.exception()
