"""Adds to PostgreSQL: what gathers while one statement is in flight goes out as the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from flux_memory import records
from flux_memory.backends.postgres_pool import Connections
from flux_memory.errors import ConflictError, SessionNotFoundError
from flux_memory.records import MessageRow

# The session's row lock puts concurrent adds in a line; the counter it guards gives each its number. A message that
# is already there stops the update, so that a retry changes nothing. Two retries at once: the second breaks the
# unique key, fails whole, and finds the message when it is run again.
ADD_MESSAGE: Final = """
WITH stored AS (
    SELECT role = $3 AND content = $4 AND metadata = $5::text::jsonb AS same
    FROM messages
    WHERE session_id = $1 AND id = $2
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + 1,
        updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    WHERE id = $1 AND NOT EXISTS (SELECT FROM stored)
    RETURNING message_count, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT $1, $2, message_count, $3, $4, $5::text::jsonb, updated_at
    FROM bumped
)
SELECT coalesce((SELECT same FROM stored), (SELECT TRUE FROM bumped))
"""

# The same for several calls, each of which is refused by itself. Sessions are locked in the order of their ids, so
# that the batches of two handles never wait for each other.
ADD_MESSAGES: Final = """
WITH item AS (
    SELECT *
    FROM unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
        WITH ORDINALITY AS item (call, session_id, id, role, content, metadata, position)
), stored AS (
    SELECT
        item.call,
        item.position,
        item.id,
        messages.role = item.role
            AND messages.content = item.content
            AND messages.metadata = item.metadata::jsonb AS same
    FROM item
    JOIN messages ON messages.session_id = item.session_id AND messages.id = item.id
), fresh AS (
    SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY position) AS number
    FROM item
    WHERE position NOT IN (SELECT position FROM stored)
        AND call NOT IN (SELECT call FROM stored WHERE NOT same)
), locked AS (
    SELECT id
    FROM sessions
    WHERE id = ANY ($1::text[])
    ORDER BY id
    FOR UPDATE
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + growth.messages,
        updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    FROM (SELECT session_id, count(*) AS messages FROM fresh GROUP BY session_id) AS growth
    JOIN locked ON locked.id = growth.session_id
    WHERE sessions.id = growth.session_id
    RETURNING sessions.id, message_count - growth.messages AS before, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT
        fresh.session_id,
        fresh.id,
        bumped.before + fresh.number,
        fresh.role,
        fresh.content,
        fresh.metadata::jsonb,
        bumped.updated_at
    FROM fresh
    JOIN bumped ON bumped.id = fresh.session_id
)
SELECT
    ARRAY (SELECT id FROM locked),
    ARRAY (SELECT call FROM stored WHERE NOT same ORDER BY position),
    ARRAY (SELECT id FROM stored WHERE NOT same ORDER BY position)
"""

_MOST_ROWS: Final = 256
_MOST_CHARACTERS: Final = 1_000_000
"""Bounds of one statement, so that readers and other handles get their turn."""


class _Call:
    """One `add_message` or `add_messages`: all its rows or none."""

    __slots__ = ("future", "rows", "session_id")

    def __init__(self, session_id: str, rows: Sequence[MessageRow], future: asyncio.Future[None]) -> None:
        self.session_id = session_id
        self.rows = rows
        self.future = future


class MessageWriter:
    """Sends one statement at a time and never waits for company: what comes meanwhile shares the next one.

    Messages are stored in the order of the calls. Each call has its own outcome; one that is cancelled before it was
    sent is not stored, and one that was sent is stored whole or not at all.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._waiting: deque[_Call] = deque()
        self._busy = False
        self._flushing: asyncio.Task[None] | None = None

    async def add(self, session_id: str, rows: Sequence[MessageRow]) -> None:
        """Store the rows at the end of a session's history.

        Raises:
            SessionNotFoundError: There is no such session.
            ConflictError: An id is taken by another content.
        """
        call = _Call(session_id, rows, asyncio.get_running_loop().create_future())
        if self._busy:
            self._waiting.append(call)
            await call.future
            return
        # Nothing is in flight: no task is needed to send this at once.
        self._busy = True
        try:
            await self._send([call])
        finally:
            if self._waiting:
                self._flushing = asyncio.get_running_loop().create_task(self._flush())
            else:
                self._busy = False
        call.future.result()

    async def _flush(self) -> None:
        try:
            while calls := self._next_calls():
                try:
                    await self._send(calls)
                except Exception as error:  # noqa: BLE001 - each caller gets it as its own outcome
                    await self._send_one_by_one(calls, error)
        finally:
            self._busy = False

    def _next_calls(self) -> list[_Call]:
        calls: list[_Call] = []
        ids: set[tuple[str, str]] = set()
        size = characters = 0
        while self._waiting:
            call = self._waiting[0]
            own = {(call.session_id, row.id) for row in call.rows}
            # A retry of what is in this statement has to see it stored.
            if calls and (size >= _MOST_ROWS or characters >= _MOST_CHARACTERS or not ids.isdisjoint(own)):
                break
            self._waiting.popleft()
            if not call.future.cancelled():
                calls.append(call)
                ids |= own
                size += len(call.rows)
                characters += sum(len(row.content) for row in call.rows)
        return calls

    async def _send_one_by_one(self, calls: list[_Call], error: Exception) -> None:
        """Find out whose the failure is: a bad call fails alone."""
        if len(calls) == 1:
            _fail(calls[0], error)
            return
        for call in calls:
            try:
                await self._send([call])
            except Exception as own_error:  # noqa: BLE001 - the caller gets it
                _fail(call, own_error)

    async def _send(self, calls: list[_Call]) -> None:
        if len(calls) == 1 and len(calls[0].rows) == 1:
            (call,) = calls
            ((same,),) = await self._connections.fetch(ADD_MESSAGE, call.session_id, *call.rows[0])
            _settle(call, found=same is not None, taken=call.rows[0].id if same is False else None)
            return
        items = [(number, call.session_id, *row) for number, call in enumerate(calls) for row in call.rows]
        columns = [list(column) for column in zip(*items, strict=True)] or [[] for _ in range(6)]
        sessions = list({call.session_id for call in calls})
        ((found, refused, taken),) = await self._connections.fetch(ADD_MESSAGES, sessions, *columns)
        first_taken = dict(zip(reversed(refused), reversed(taken), strict=True))
        for number, call in enumerate(calls):
            _settle(call, found=call.session_id in found, taken=first_taken.get(number))


def _settle(call: _Call, *, found: bool, taken: str | None) -> None:
    if not found:
        _fail(call, SessionNotFoundError(records.no_session(call.session_id)))
    elif taken is not None:
        _fail(call, ConflictError(records.taken_id(call.session_id, taken)))
    elif not call.future.done():
        call.future.set_result(None)


def _fail(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
