"""`ConversationMemory`: a `Memory` in one SQLite file, and the SQL of its methods."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, Self, TypeVar

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls, build_off_loop
from flux_memory.backends.sqlite import listing
from flux_memory.backends.sqlite.errors import check_changed, translate_errors
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.opening import connect
from flux_memory.backends.sqlite.queue import Work, not_begun
from flux_memory.backends.sqlite.worker import SQLiteWorker
from flux_memory.errors import (
    BackendUnavailableError,
    InvalidInputError,
    InvalidTypeError,
)
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records import building, timestamps
from flux_memory.records.checking import check_session_time, list_messages
from flux_memory.records.filters import check_filter

Result = TypeVar("Result")

INSERT_SESSION: Final = """
INSERT INTO sessions (id, user_id, title, created_at, updated_at, metadata)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING
"""
# max() compares texts: the pattern keeps a corrupt time from becoming a message's.
BUMP_COUNTER: Final = """
UPDATE sessions
SET message_count = message_count + 1, updated_at = max(updated_at, ?)
WHERE id = ?
    AND typeof(updated_at) = 'text'
    AND updated_at GLOB '[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].??????+00:00'
RETURNING message_count, updated_at
"""
SELECT_COUNTER: Final = "SELECT message_count, updated_at FROM sessions WHERE id = ?"
SELECT_SAME_ID: Final = "SELECT role, content, metadata FROM messages WHERE session_id = ? AND id = ?"
INSERT_MESSAGE: Final = """
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
UPDATE_COUNTER: Final = "UPDATE sessions SET message_count = ?, updated_at = ? WHERE id = ?"
UPDATE_TITLE: Final = "UPDATE sessions SET title = ?, updated_at = max(updated_at, ?) WHERE id = ?"
SELECT_HISTORY: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
ORDER BY seq DESC
LIMIT ?
"""
SELECT_HISTORY_BEFORE: Final = """
SELECT id, role, content, metadata, created_at
FROM messages
WHERE session_id = ?
  AND seq < (SELECT seq FROM messages WHERE session_id = ? AND id = ?)
ORDER BY seq DESC
LIMIT ?
"""
SELECT_SESSION: Final = listing.SELECT_SESSIONS + "WHERE id = ?"
COUNT_SESSIONS: Final = "SELECT count(*) FROM sessions"
DELETE_SESSION: Final = "DELETE FROM sessions WHERE id = ?"
DELETE_SESSIONS: Final = "DELETE FROM sessions"


class ConversationMemory(Memory):
    """A `Memory` in a SQLite file, safe for any number of tasks, handles and processes on one machine.

    Args:
        db_path: The file, created if it is missing; `:memory:` is a store of this handle alone. By default the file
            in the settings.
        timeout: Seconds within which a call ends, waiting for other processes' locks included.

    Raises:
        InvalidInputError: An argument is wrong.
    """

    def __init__(self, db_path: str | os.PathLike[str] | None = None, *, timeout: float = 30.0) -> None:
        if db_path is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            db_path = load_settings().sqlite_path
        path = os.fspath(db_path) if isinstance(db_path, os.PathLike) else db_path
        if not isinstance(path, str):
            raise InvalidTypeError(f"db_path must be a str or a path, not {type(db_path).__name__}")
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError:
            name = b""
        if not name or b"\x00" in name:
            raise InvalidInputError("db_path is empty, has a NUL or a lone surrogate; give the path of a file")
        self.db_path: Final = path
        if "://" in self.db_path:
            raise InvalidInputError("db_path is a URL; give the path alone, such as ./data/sqlite.db")
        self.timeout: Final = records.check_seconds("timeout", timeout)
        self._bind(partial(_open_worker, self.db_path, self.timeout), SQLiteWorker.finish)

    def _bind(
        self,
        open_worker: Callable[[], Coroutine[Any, Any, SQLiteWorker]],
        close_worker: Callable[[SQLiteWorker, float], Awaitable[None]],
    ) -> None:
        make_twin = partial(_make_twin, self.db_path, self.timeout)
        self._life: Lifecycle[SQLiteWorker] = Lifecycle(open_worker, close_worker, self.timeout, make_twin)
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
        return await self._write(partial(_create_session, row), seconds)

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
        session = records.check_session_id(session_id)
        if message_id is None:
            await self._write(partial(_add_message, session, row), seconds)
        else:
            await self._write(partial(_add_messages, session, [row]), seconds)
        return row.id

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        self._life.check_open()
        # Read on the caller's loop: it may be rows of a cursor that belongs to the caller's thread.
        return await self._add_messages(session_id, list_messages(messages))

    @on_any_loop
    async def _add_messages(self, session_id: str, messages: list[NewMessage]) -> list[str]:
        check = partial(records.check_batch, messages)
        batch, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        session = records.check_session_id(session_id)
        await self._write(partial(_add_messages, session, records.drop_repeats(batch)), seconds)
        return [row.id for row in batch]

    @on_any_loop
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None
    ) -> list[Message]:
        session = records.check_lookup("session_id", session_id)
        most = records.check_limit(limit)
        cursor = None if before is None else records.check_lookup("before", before)
        if cursor is None:
            rows = partial(fetch, SELECT_HISTORY, (session, most))
        else:
            rows = partial(fetch, SELECT_HISTORY_BEFORE, (session, session, cursor, most))
        return await build_off_loop(partial(building.build_messages, session, await self._read(rows)))

    @on_any_loop
    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
    ) -> list[Session]:
        most, skipped = records.check_limit(limit), records.check_count("offset", offset)
        user = None if user_id is None else records.check_lookup("user_id", user_id)
        part = check_filter(metadata)
        rows = await self._read(partial(_page, most, skipped, user, part))
        return await build_off_loop(partial(building.build_sessions, rows))

    @on_any_loop
    async def get_session(self, session_id: str) -> Session | None:
        session = records.check_lookup("session_id", session_id)
        rows = await self._read(partial(fetch, SELECT_SESSION, (session,)))
        return await build_off_loop(partial(building.build_session, rows[0])) if rows else None

    @on_any_loop
    async def count_sessions(self) -> int:
        rows = await self._read(partial(fetch, COUNT_SESSIONS, ()))
        return int(rows[0][0])

    @on_any_loop
    async def update_session_title(self, session_id: str, title: str) -> None:
        new_title = records.check_text("title", title)
        await self._write(partial(_update_title, records.check_session_id(session_id), new_title))

    @on_any_loop
    async def delete_session(self, session_id: str) -> None:
        await self._write(partial(_delete, records.check_lookup("session_id", session_id)))

    @on_any_loop
    async def clear_all(self) -> None:
        await self._write(_clear)

    async def close(self) -> None:
        await self._life.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'db_path', 'not opened')!r})"

    def __del__(self) -> None:
        life: Lifecycle[SQLiteWorker] | None = getattr(self, "_life", None)
        if life is not None and life.is_in_use:
            warn_never_closed(self)
            life.abandon()
            if life.resource is not None:
                life.resource.abandon()

    async def _read(self, work: Work[Result]) -> Result:
        with self._life.in_flight(), translate_errors(self.db_path):
            worker, timeout = await self._worker()
            return await worker.read(work, timeout)

    async def _write(self, work: Work[Result], seconds: float | None = None) -> Result:
        with self._life.in_flight(), translate_errors(self.db_path):
            worker, timeout = await self._worker(seconds)
            return await worker.write(work, timeout)

    async def _worker(self, seconds: float | None = None) -> tuple[SQLiteWorker, float]:
        """Return the open worker, and the seconds that are left of the call's deadline."""
        seconds = seconds_for(self.timeout) if seconds is None else seconds
        if self._life.resource is not None:
            return await self._life.opened(), seconds
        ends = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                worker = await self._life.opened()
        except TimeoutError as error:
            raise BackendUnavailableError(not_begun(seconds)) from error
        return worker, max(0.0, ends - time.monotonic())


def _make_twin(path: str, timeout: float, life: Lifecycle[SQLiteWorker]) -> ConversationMemory:
    """Return another handle on the same file, for calls from other event loops; `:memory:` is the same connection."""
    twin = ConversationMemory(path, timeout=timeout)
    if path == ":memory:":
        twin._bind(life.share, _leave_open)  # noqa: SLF001 - the same module
    return twin


async def _leave_open(worker: SQLiteWorker, seconds: float) -> None:
    """Leave a shared connection to the handle that owns it."""


async def _open_worker(path: str, timeout: float) -> SQLiteWorker:  # noqa: ASYNC109 - given to SQLite
    worker = SQLiteWorker(partial(connect, path, timeout))
    await worker.open(timeout)
    return worker


def _create_session(row: records.SessionRow, db: sqlite3.Connection) -> str:
    now = timestamps.utc_now()
    values = (row.id, row.user_id, row.title, now, now, row.metadata)
    changed = db.execute(INSERT_SESSION, values).rowcount
    if changed == 0 and fetch(SELECT_COUNTER, (row.id,), db):
        raise records.session_id_taken(row.id)
    check_changed(changed)
    return row.id


def _add_message(session_id: str, row: records.MessageRow, db: sqlite3.Connection) -> None:
    """Add a message whose id is new, so that no stored message can have it."""
    counter = db.execute(BUMP_COUNTER, (timestamps.utc_now(), session_id)).fetchall()
    if not counter:
        # The session does not exist, or its time is corrupt: `_add_messages` raises the right error.
        _add_messages(session_id, [row], db)
        return
    ((seq, now),) = counter
    values = (session_id, row.id, seq, row.role, row.content, row.metadata, now)
    check_changed(db.execute(INSERT_MESSAGE, values).rowcount)


def _add_messages(session_id: str, rows: list[records.MessageRow], db: sqlite3.Connection) -> None:
    session = fetch(SELECT_COUNTER, (session_id,), db)
    if not session:
        raise records.session_not_found(session_id)
    fresh = []
    for row in rows:
        stored = fetch(SELECT_SAME_ID, (session_id, row.id), db)
        if not stored:
            fresh.append(row)
        elif not row.same_as(*stored[0]):
            raise records.message_id_taken(session_id, row.id)
    if not fresh:
        return
    ((count, updated_at),) = session
    now = max(check_session_time(session_id, updated_at), timestamps.utc_now())
    values = [
        (session_id, row.id, seq, row.role, row.content, row.metadata, now) for seq, row in enumerate(fresh, count + 1)
    ]
    check_changed(db.executemany(INSERT_MESSAGE, values).rowcount, len(fresh))
    check_changed(db.execute(UPDATE_COUNTER, (count + len(fresh), now, session_id)).rowcount)


def _update_title(session_id: str, title: str, db: sqlite3.Connection) -> None:
    changed = db.execute(UPDATE_TITLE, (title, timestamps.utc_now(), session_id)).rowcount
    if changed == 0 and not fetch(SELECT_COUNTER, (session_id,), db):
        raise records.session_not_found(session_id)
    check_changed(changed)


def _delete(session_id: str, db: sqlite3.Connection) -> None:
    db.execute(DELETE_SESSION, (session_id,))
    check_changed(len(fetch(SELECT_COUNTER, (session_id,), db)), 0)


def _clear(db: sqlite3.Connection) -> None:
    db.execute(DELETE_SESSIONS)
    check_changed(fetch(COUNT_SESSIONS, (), db)[0][0], 0)


def _page(
    limit: int, offset: int, user_id: str | None, part: str | None, db: sqlite3.Connection
) -> list[tuple[Any, ...]]:
    def run(sql: str, values: dict[str, object]) -> list[tuple[Any, ...]]:
        return fetch(sql, values, db)

    if part is not None:
        # A filter takes several statements, which must see one state of the file. The worker ends the transaction.
        db.execute("BEGIN")
    return listing.page(run, limit, offset, user_id, part)
