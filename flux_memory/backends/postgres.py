"""Conversation memory in PostgreSQL, through an asyncpg pool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, Self, TypeVar

from flux_memory import dsn as dsns
from flux_memory import metadata as json_metadata
from flux_memory import records
from flux_memory.backends import postgres_pool as pools
from flux_memory.backends.lifecycle import Lifecycle, warn_never_closed
from flux_memory.backends.postgres_errors import ROLLED_BACK_FOR_ANOTHER, translated
from flux_memory.errors import (
    ConflictError,
    SessionNotFoundError,
)
from flux_memory.protocol import Message, Metadata, NewMessage, Session

Result = TypeVar("Result")

# Times go out as text in the records' form, and JSON crosses the wire as text both ways: a borrowed pool may have
# codecs of its own, and text is what the records need.

INSERT_SESSION: Final = """
INSERT INTO sessions (id, user_id, title, created_at, updated_at, metadata)
SELECT $1, $2, $3, now.utc, now.utc, $4::text::jsonb
FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS utc) AS now
ON CONFLICT (id) DO NOTHING
RETURNING TRUE
"""

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
ADD_MESSAGES: Final = """
WITH item AS (
    SELECT *
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
        WITH ORDINALITY AS item (id, role, content, metadata, position)
), stored AS (
    SELECT
        item.id,
        messages.role = item.role
            AND messages.content = item.content
            AND messages.metadata = item.metadata::jsonb AS same
    FROM item
    JOIN messages ON messages.session_id = $1 AND messages.id = item.id
), fresh AS (
    SELECT item.*, row_number() OVER (ORDER BY position) AS number
    FROM item
    WHERE NOT EXISTS (SELECT FROM stored WHERE stored.id = item.id)
), bumped AS (
    UPDATE sessions
    SET message_count = message_count + (SELECT count(*) FROM fresh),
        updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    WHERE id = $1
        AND EXISTS (SELECT FROM fresh)
        AND NOT EXISTS (SELECT FROM stored WHERE NOT same)
    RETURNING message_count - (SELECT count(*) FROM fresh) AS before, updated_at
), added AS (
    INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
    SELECT $1, fresh.id, bumped.before + fresh.number, role, content, metadata::jsonb, updated_at
    FROM fresh, bumped
)
SELECT
    EXISTS (SELECT FROM bumped) OR EXISTS (SELECT FROM sessions WHERE id = $1) AS found,
    (SELECT min(id) FROM stored WHERE NOT same) AS taken
"""
SELECT_HISTORY: Final = """
SELECT id, role, content, metadata::text, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM messages
WHERE session_id = $1
ORDER BY seq DESC
LIMIT $2
"""
SELECT_HISTORY_BEFORE: Final = """
SELECT id, role, content, metadata::text, to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
FROM messages
WHERE session_id = $1
    AND seq < (SELECT seq FROM messages WHERE session_id = $1 AND id = $3)
ORDER BY seq DESC
LIMIT $2
"""
SELECT_SESSIONS: Final = """
SELECT
    id,
    user_id,
    title,
    to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
    metadata::text,
    message_count
FROM sessions
"""
SELECT_SESSION: Final = SELECT_SESSIONS + "WHERE id = $1"
NEWEST_FIRST: Final = """
ORDER BY sessions.updated_at DESC, id COLLATE "C" DESC
LIMIT $1 OFFSET $2
"""
SELECT_PAGE: Final = SELECT_SESSIONS + NEWEST_FIRST
SELECT_PAGE_OF_USER: Final = SELECT_SESSIONS + "WHERE user_id = $3" + NEWEST_FIRST
SELECT_PAGE_BY_METADATA: Final = SELECT_SESSIONS + "WHERE metadata @> $3::text::jsonb" + NEWEST_FIRST
SELECT_PAGE_OF_USER_BY_METADATA: Final = (
    SELECT_SESSIONS + "WHERE user_id = $3 AND metadata @> $4::text::jsonb" + NEWEST_FIRST
)
COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
UPDATE_TITLE: Final = """
UPDATE sessions
SET title = $2, updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
WHERE id = $1
RETURNING TRUE
"""
DELETE_SESSION: Final = "DELETE FROM sessions WHERE id = $1"
# Not TRUNCATE, which deadlocks with adders that hold a session's row and want the messages' table.
DELETE_SESSIONS: Final = "DELETE FROM sessions"

_ATTEMPTS: Final = 5
"""How often a statement runs that the server rolled back for the sake of another one."""


class PostgresConversationMemory:
    """A `Memory` in PostgreSQL, safe for any number of tasks, handles, processes and machines.

    Args:
        dsn: `postgresql://user:password@host:5432/database`; by default the settings' `POSTGRES_DSN`.
        min_size: Connections kept open.
        max_size: Connections at most; further calls wait for one.
        timeout: Seconds within which a call ends.
        pool: An asyncpg pool to borrow; it is never closed, and `dsn` is not read.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        min_size: int = 2,
        max_size: int = 10,
        timeout: float = 30.0,
        pool: Any = None,
    ) -> None:
        self.timeout: Final = timeout
        self._borrowed: Final = pool is not None
        if pool is not None:
            self._shown = "a borrowed pool"
            self._life: Lifecycle[Any] = Lifecycle(partial(pools.borrow, pool), pools.give_back, timeout)
            return
        if dsn is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            dsn = load_settings().require_postgres_dsn()
        target = dsns.parse(dsn)
        self._shown = dsns.masked(dsn)
        arguments = {"timeout": timeout, **target.arguments, "min_size": min_size, "max_size": max_size}
        self._life = Lifecycle(
            partial(pools.open_pool, target.url, arguments), partial(pools.close_pool, timeout), timeout
        )

    async def create_session(
        self,
        title: str = "",
        metadata: Metadata | None = None,
        *,
        session_id: str | None = None,
        user_id: str = "",
    ) -> str:
        self._life.check_open()
        row = records.new_session(session_id, user_id, title, metadata)
        if not await self._value(INSERT_SESSION, *row):
            raise ConflictError(records.taken_session(row.id))
        return row.id

    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Metadata | None = None,
        *,
        message_id: str | None = None,
    ) -> str:
        self._life.check_open()
        session = records.existing_session(session_id)
        row = records.new_message(role, content, metadata, message_id)
        same = await self._value(ADD_MESSAGE, session, *row)
        if same is None:
            raise SessionNotFoundError(records.no_session(session))
        if not same:
            raise ConflictError(records.taken_id(session, row.id))
        return row.id

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        self._life.check_open()
        session = records.existing_session(session_id)
        batch = records.new_batch(messages)
        rows = records.unique(batch)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        ((found, taken),) = await self._rows(ADD_MESSAGES, session, *columns)
        if not found:
            raise SessionNotFoundError(records.no_session(session))
        if taken is not None:
            raise ConflictError(records.taken_id(session, taken))
        return [row.id for row in batch]

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        self._life.check_open()
        session = records.lookup("session_id", session_id)
        most = records.limit(limit)
        cursor = None if before is None else records.lookup("before", before)
        if session is None or (before is not None and cursor is None):
            return []
        if cursor is None:
            rows = await self._rows(SELECT_HISTORY, session, most)
        else:
            rows = await self._rows(SELECT_HISTORY_BEFORE, session, most, cursor)
        return [records.message(session, row) for row in reversed(rows)]

    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        self._life.check_open()
        page = (records.limit(limit), records.count("offset", offset))
        user = None if user_id is None else records.lookup("user_id", user_id)
        if user_id is not None and user is None:
            return []
        part = None if metadata is None else json_metadata.encode(metadata)
        if user is None and part is None:
            rows = await self._rows(SELECT_PAGE, *page)
        elif part is None:
            rows = await self._rows(SELECT_PAGE_OF_USER, *page, user)
        elif user is None:
            rows = await self._rows(SELECT_PAGE_BY_METADATA, *page, part)
        else:
            rows = await self._rows(SELECT_PAGE_OF_USER_BY_METADATA, *page, user, part)
        return [records.session(row) for row in rows]

    async def get_session(self, session_id: str) -> Session | None:
        self._life.check_open()
        session = records.lookup("session_id", session_id)
        if session is None:
            return None
        rows = await self._rows(SELECT_SESSION, session)
        return records.session(rows[0]) if rows else None

    async def count_sessions(self) -> int:
        self._life.check_open()
        return int(await self._value(COUNT_SESSIONS))

    async def update_session_title(self, session_id: str, title: str) -> None:
        self._life.check_open()
        session = records.existing_session(session_id)
        if not await self._value(UPDATE_TITLE, session, records.new_title(title)):
            raise SessionNotFoundError(records.no_session(session))

    async def delete_session(self, session_id: str) -> None:
        self._life.check_open()
        session = records.lookup("session_id", session_id)
        if session is not None:
            await self._rows(DELETE_SESSION, session)

    async def clear_all(self) -> None:
        self._life.check_open()
        await self._rows(DELETE_SESSIONS)

    async def close(self) -> None:
        await self._life.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    def __del__(self) -> None:
        life: Lifecycle[Any] | None = getattr(self, "_life", None)
        if life is not None and life.resource is not None and not self._borrowed:
            warn_never_closed(self)
            pools.terminate(life.resource)

    async def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""

        async def fetch(connection: Any) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = await connection.fetch(sql, *values)
            return rows

        return await self._run(fetch)

    async def _value(self, sql: str, *values: object) -> Any:
        """Run one statement and return the first column of its first row, or `None`."""
        rows = await self._rows(sql, *values)
        return rows[0][0] if rows else None

    async def _run(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run work on a connection of the pool, within the deadline; it is one statement, so it is atomic."""
        with self._life.in_flight(), translated(self._shown, self.timeout):
            async with asyncio.timeout(self.timeout):
                pool = await self._life.opened()
                for attempt in range(1, _ATTEMPTS + 1):
                    try:
                        async with pool.acquire() as connection:
                            return await work(connection)
                    except ROLLED_BACK_FOR_ANOTHER:
                        if attempt == _ATTEMPTS:
                            raise
        raise AssertionError("unreachable")
