"""`PostgresConversationMemory`: a `Memory` in PostgreSQL, and the SQL of its methods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from operator import methodcaller
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import asyncpg

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls, build_off_loop
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import refuse_other_loop, translate_errors
from flux_memory.backends.postgres.opening import OpenStore, open_store
from flux_memory.backends.postgres.pool import BorrowedPool, OwnPool
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn
from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records import building
from flux_memory.records.checking import list_messages
from flux_memory.records.filters import check_filter

Result = TypeVar("Result")

# Times and JSON cross the wire as text: a borrowed pool may have codecs of its own, and the records need text. A time
# before Christ keeps its BC, so that it is not read as a later one.

INSERT_SESSION: Final = """
INSERT INTO sessions (id, user_id, title, created_at, updated_at, metadata, creation_id)
SELECT $1, $2, $3, now.utc, now.utc, $4::text::jsonb, $5::text::uuid
FROM (SELECT clock_timestamp() AT TIME ZONE 'UTC' AS utc) AS now
ON CONFLICT (id) DO NOTHING
RETURNING TRUE
"""
SELECT_OWN_SESSION: Final = "SELECT TRUE FROM sessions WHERE id::text = $1 AND creation_id = $2::text::uuid"

SELECT_HISTORY: Final = """
SELECT id, role, content, metadata::text, rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD')
FROM messages
WHERE session_id::text = $1
ORDER BY seq DESC
LIMIT $2
"""
SELECT_HISTORY_BEFORE: Final = """
SELECT id, role, content, metadata::text, rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD')
FROM messages
WHERE session_id::text = $1
    AND seq < (SELECT seq FROM messages WHERE session_id::text = $1 AND id::text = $3)
ORDER BY seq DESC
LIMIT $2
"""
SELECT_SESSIONS: Final = """
SELECT
    id,
    user_id,
    title,
    rtrim(to_char(created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    rtrim(to_char(updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"AD'), 'AD'),
    metadata::text,
    message_count
FROM sessions
"""
SELECT_SESSION: Final = SELECT_SESSIONS + "WHERE id::text = $1"
NEWEST_FIRST: Final = """
ORDER BY sessions.updated_at DESC, id COLLATE "C" DESC
LIMIT $1 OFFSET $2
"""
SELECT_PAGE: Final = SELECT_SESSIONS + NEWEST_FIRST
SELECT_PAGE_OF_USER: Final = SELECT_SESSIONS + "WHERE user_id = $3" + NEWEST_FIRST
SELECT_PAGE_BY_METADATA: Final = SELECT_SESSIONS + "WHERE metadata @> $3::text::jsonb" + NEWEST_FIRST
# OFFSET 0 is an optimizer fence: PostgreSQL walks the user's sessions in order and tests each until the page is full.
# Without it, the planner reads the sessions of all users that have the metadata.
OWN_SESSIONS: Final = """
WITH sessions AS NOT MATERIALIZED (
    SELECT *
    FROM sessions
    WHERE user_id = $3
    ORDER BY updated_at DESC, id COLLATE "C" DESC
    OFFSET 0
)"""
SELECT_PAGE_OF_USER_BY_METADATA: Final = (
    OWN_SESSIONS + SELECT_SESSIONS + "WHERE metadata @> $4::text::jsonb\nLIMIT $1 OFFSET $2"
)
COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
# Each skips the session if it is locked, and returns whether the write was done, and whether the session exists.
UPDATE_TITLE: Final = """
WITH locked AS (
    SELECT id
    FROM sessions
    WHERE id::text = $1
    FOR NO KEY UPDATE SKIP LOCKED
), renamed AS (
    UPDATE sessions
    SET title = $2, updated_at = greatest(updated_at, clock_timestamp() AT TIME ZONE 'UTC')
    FROM locked
    WHERE sessions.id::text = locked.id::text
    RETURNING TRUE
)
SELECT EXISTS (SELECT 1 FROM renamed), EXISTS (SELECT 1 FROM sessions WHERE id::text = $1)
"""
DELETE_SESSION: Final = """
WITH locked AS (
    SELECT id
    FROM sessions
    WHERE id::text = $1
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM sessions
    USING locked
    WHERE sessions.id::text = locked.id::text
    RETURNING TRUE
)
SELECT EXISTS (SELECT 1 FROM deleted), EXISTS (SELECT 1 FROM sessions WHERE id::text = $1)
"""
# Not TRUNCATE, which deadlocks with adds that hold a session's row and wait for the messages' table.
DELETE_SESSIONS: Final = "DELETE FROM sessions"


class PostgresConversationMemory(Memory):
    """A `Memory` in PostgreSQL, safe for any number of tasks, handles, processes and machines.

    Args:
        dsn: `postgresql://user:password@host:5432/database`; by default the settings' `POSTGRES_DSN`.
        min_size: Connections opened at once, and kept.
        max_size: The largest number of connections; further calls wait for one.
        timeout: Seconds within which a call ends, unless `flux_memory.deadline()` overrides it.
        pool: An asyncpg pool to borrow; it is never closed, and `dsn` is not read.

    Raises:
        InvalidInputError: An argument is wrong, or there is no DSN.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        min_size: int = 2,
        max_size: int = 10,
        timeout: float = 30.0,
        pool: asyncpg.Pool | None = None,
    ) -> None:
        timeout = records.check_seconds("timeout", timeout)
        if pool is not None:
            if not all(callable(getattr(pool, name, None)) for name in ("acquire", "release")):
                raise InvalidTypeError(f"pool must be an asyncpg pool or None, not {type(pool).__name__}")
            self._bind("a borrowed pool", timeout, BorrowedPool(pool), refuse_other_loop)
            return
        if dsn is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            dsn = load_settings().require_postgres_dsn()
        # An invalid DSN's traceback shows the variables of this frame, too.
        dsn = SecretText(dsn) if isinstance(dsn, str) else dsn
        target = parse_dsn(dsn)
        if not records.check_count("min_size", min_size) <= records.check_count("max_size", max_size) or not max_size:
            raise InvalidInputError(f"min_size is {min_size} and max_size {max_size}; give 0 <= min_size <= max_size")
        make_pool = partial(OwnPool, target, min_size, max_size, timeout)
        self._bind(mask_dsn(dsn), timeout, make_pool(), make_pool)

    def _bind(self, shown: str, timeout: float, pool: OwnPool | BorrowedPool, make_pool: Callable[[], OwnPool]) -> None:
        self.timeout, self._shown, self._pool = timeout, shown, pool
        self._life: Lifecycle[OpenStore] = Lifecycle(
            partial(open_store, pool, shown, timeout),
            lambda store, seconds: store.pool.close(seconds),
            timeout,
            lambda _: _make_twin(shown, timeout, make_pool),
        )
        self._long = LongCalls(self._life)

    @on_any_loop
    async def create_session(
        self,
        title: str = "",
        metadata: Metadata | None = None,
        *,
        session_id: str | None = None,
        user_id: str = "",
    ) -> str:
        check = partial(records.check_new_session, session_id, user_id, title, metadata)
        row, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        state = CallState(writes=True)
        insert = partial(_insert_session, row, str(uuid4()), state)

        async def create(store: OpenStore) -> bool:
            # A concurrent call may create a session with the caller's id, and hold its lock until it commits.
            run = store.executor.run if session_id is None else store.executor.run_on_any_lock
            return await run(state, insert)

        if not await self._run(state, create, seconds):
            raise records.session_id_taken(row.id)
        return row.id

    @on_any_loop
    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Metadata | None = None,
        *,
        message_id: str | None = None,
    ) -> str:
        check = partial(records.check_new_message, role, content, metadata, message_id)
        row, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        await self._add(records.check_session_id(session_id), [row], seconds)
        return row.id

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        self._life.check_open()
        # Read on the caller's loop: it may be rows of a cursor that belongs to the caller's thread.
        return await self._add_messages(session_id, list_messages(messages))

    @on_any_loop
    async def _add_messages(self, session_id: str, messages: list[NewMessage]) -> list[str]:
        check = partial(records.check_batch, messages)
        batch, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        await self._add(records.check_session_id(session_id), records.drop_repeats(batch), seconds)
        return [row.id for row in batch]

    @on_any_loop
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        session = records.check_lookup("session_id", session_id)
        most = records.check_limit(limit)
        cursor = None if before is None else records.check_lookup("before", before)
        if cursor is None:
            rows = await self._rows(SELECT_HISTORY, session, most)
        else:
            rows = await self._rows(SELECT_HISTORY_BEFORE, session, most, cursor)
        return await build_off_loop(partial(building.build_messages, session, rows))

    @on_any_loop
    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        page = (records.check_limit(limit), records.check_count("offset", offset))
        user = None if user_id is None else records.check_lookup("user_id", user_id)
        part = check_filter(metadata)
        if user is None and part is None:
            rows = await self._rows(SELECT_PAGE, *page)
        elif part is None:
            rows = await self._rows(SELECT_PAGE_OF_USER, *page, user)
        elif user is None:
            rows = await self._rows(SELECT_PAGE_BY_METADATA, *page, part)
        else:
            rows = await self._rows(SELECT_PAGE_OF_USER_BY_METADATA, *page, user, part)
        return await build_off_loop(partial(building.build_sessions, rows))

    @on_any_loop
    async def get_session(self, session_id: str) -> Session | None:
        session = records.check_lookup("session_id", session_id)
        rows = await self._rows(SELECT_SESSION, session)
        return await build_off_loop(partial(building.build_session, rows[0])) if rows else None

    @on_any_loop
    async def count_sessions(self) -> int:
        return int((await self._rows(COUNT_SESSIONS))[0][0])

    @on_any_loop
    async def update_session_title(self, session_id: str, title: str) -> None:
        new_title = records.check_text("title", title)
        session = records.check_session_id(session_id)
        if not await self._write_session(UPDATE_TITLE, session, new_title):
            raise records.session_not_found(session)

    @on_any_loop
    async def delete_session(self, session_id: str) -> None:
        await self._write_session(DELETE_SESSION, records.check_lookup("session_id", session_id))

    @on_any_loop
    async def clear_all(self) -> None:
        state = CallState(writes=True)
        await self._run(
            state, lambda store: store.executor.run_on_any_lock(state, methodcaller("execute", DELETE_SESSIONS))
        )

    async def close(self) -> None:
        await self._life.close()
        if not self._life.forked:
            # An opening that failed may have left connections.
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, '_shown', 'not opened')!r})"

    def __del__(self) -> None:
        life: Lifecycle[OpenStore] | None = getattr(self, "_life", None)
        if life is not None and life.is_in_use:
            warn_never_closed(self)
        if life is not None and not life.forked:
            life.abandon()
            self._pool.terminate()

    async def _add(self, session_id: str, rows: list[records.MessageRow], seconds: float) -> None:
        state = CallState(writes=True)
        await self._run(state, lambda store: store.writer.add(session_id, rows, state), seconds)

    async def _rows(self, sql: str, *values: object) -> list[Any]:
        """Run a read and return its rows."""
        state = CallState(writes=False)
        return await self._run(state, lambda store: store.executor.run(state, methodcaller("fetch", sql, *values)))

    async def _write_session(self, sql: str, *values: object) -> bool:
        """Run an idempotent write to one session; return whether the session exists."""
        state = CallState(writes=True)
        return await self._run(state, lambda store: store.executor.run_on_session(state, sql, *values))

    async def _run(
        self, state: CallState, call: Callable[[OpenStore], Awaitable[Result]], seconds: float | None = None
    ) -> Result:
        """Run a call on the open store, within its deadline or the seconds that are left of it."""
        seconds = seconds_for(self.timeout) if seconds is None else seconds
        with self._life.in_flight(), translate_errors(self._shown, seconds, state, self._pool):
            async with asyncio.timeout(seconds):
                return await call(await self._life.opened())


def _make_twin(shown: str, timeout: float, make_pool: Callable[[], OwnPool]) -> PostgresConversationMemory:
    """Return another handle on the same server, for calls from other event loops."""
    twin = PostgresConversationMemory.__new__(PostgresConversationMemory)
    twin._bind(shown, timeout, make_pool(), make_pool)  # noqa: SLF001 - a second constructor
    return twin


async def _insert_session(row: records.SessionRow, creation_id: str, state: CallState, connection: Any) -> bool:
    """Store a session; return whether this attempt stored it, or an earlier one whose reply was lost."""
    stored = await connection.fetch(INSERT_SESSION, *row, creation_id)
    if not stored and state.lost:
        stored = await connection.fetch(SELECT_OWN_SESSION, row.id, creation_id)
    return bool(stored)
