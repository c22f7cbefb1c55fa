"""`ConversationMemory`: a `Memory` in one SQLite file, whose calls run on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime
from functools import partial
from typing import Any, Final, Self, TypeVar

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls, build_off_loop
from flux_memory.backends.sqlite import adds, edits, listing
from flux_memory.backends.sqlite.errors import translate_errors
from flux_memory.backends.sqlite.feedback import Access, SQLiteFeedback, erase_some_of_user
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.history import SELECT_MESSAGE, select_history
from flux_memory.backends.sqlite.opening import connect
from flux_memory.backends.sqlite.queue import Work, not_begun
from flux_memory.backends.sqlite.worker import SQLiteWorker
from flux_memory.errors import (
    BackendUnavailableError,
    InvalidInputError,
    InvalidTypeError,
)
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records import building
from flux_memory.records.changes import check_keys
from flux_memory.records.checking import list_messages

Result = TypeVar("Result")

_PAUSE_SECONDS: Final = 0.005
"""Seconds between two batches of `delete_sessions`, in which another process can take the lock."""


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

    @property
    def feedback(self) -> SQLiteFeedback:
        return SQLiteFeedback(self._run_here)

    @on_any_loop
    async def _run_here(self, call: Callable[[Access], Awaitable[Result]]) -> Result:
        return await call(Access(self._read, self._write, self._long, self.timeout))

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
        return await self._write(partial(adds.create_session, row), seconds)

    @on_any_loop
    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Metadata | None = None,
        *,
        message_id: str | None = None,
        create: bool = False,
        user_id: str = "",
    ) -> str:
        check = partial(records.check_new_message, role, content, metadata, message_id)
        row, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        target = adds.check_target(session_id, create, user_id)
        if message_id is None:
            await self._write(partial(adds.add_message, target, row), seconds)
        else:
            await self._write(partial(adds.add_messages, target, [row]), seconds)
        return row.id

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        self._life.check_open()
        # Read on the caller's loop: it may be rows of a cursor that belongs to the caller's thread.
        return await self._add_messages(session_id, list_messages(messages), create=create, user_id=user_id)

    @on_any_loop
    async def _add_messages(
        self, session_id: str, messages: list[NewMessage], *, create: bool, user_id: str
    ) -> list[str]:
        check = partial(records.check_batch, messages)
        batch, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        target = adds.check_target(session_id, create, user_id)
        await self._write(partial(adds.add_messages, target, records.drop_repeats(batch)), seconds)
        return [row.id for row in batch]

    @on_any_loop
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        session = records.check_lookup("session_id", session_id)
        most = records.check_limit(limit)
        cursors = records.check_cursors(before, after)
        rows = await self._read(partial(select_history, session, most, *cursors))
        return await build_off_loop(partial(building.build_messages, session, rows))

    @on_any_loop
    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        session = records.check_lookup("session_id", session_id)
        key = (session, records.check_lookup("message_id", message_id))
        rows = await self._read(partial(fetch, SELECT_MESSAGE, key))
        return next(iter(await build_off_loop(partial(building.build_messages, session, rows))), None)

    @on_any_loop
    async def pop_message(self, session_id: str) -> Message | None:
        return await self._write(partial(edits.pop_message, records.check_lookup("session_id", session_id)))

    async def update_session(
        self,
        session_id: str,
        *,
        expected_revision: str | None = None,
        title: str | None = None,
        merge_metadata: Metadata | None = None,
        remove_metadata: Iterable[str] = (),
        truncate_from: str | None = None,
        truncate_all: bool = False,
        messages: Iterable[NewMessage] = (),
    ) -> Session:
        self._life.check_open()
        # As in `add_messages`.
        keys, batch = check_keys(remove_metadata), list_messages(messages)
        check = partial(
            records.check_update,
            expected_revision=expected_revision,
            title=title,
            merge_metadata=merge_metadata,
            remove_metadata=keys,
            truncate_from=truncate_from,
            truncate_all=truncate_all,
            messages=batch,
        )
        return await self._update_session(session_id, check)

    @on_any_loop
    async def _update_session(self, session_id: str, check: Callable[..., records.SessionUpdate]) -> Session:
        update, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        session = records.check_session_id(session_id)
        return await self._write(partial(edits.update_session, session, update), seconds)

    @on_any_loop
    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        fork = records.check_fork(through, new_session_id, user_id, title)
        return await self._write(partial(edits.fork_session, records.check_session_id(session_id), fork))

    @on_any_loop
    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Metadata | None = None,
        before: Session | None = None,
        with_metadata: bool = True,
    ) -> list[Session]:
        most, skipped = records.check_limit(limit), records.check_count("offset", offset)
        criteria = listing.check_criteria(user_id, metadata, before)
        whole = records.check_flag("with_metadata", with_metadata)
        rows = await self._read(partial(listing.select_page, most, skipped, criteria, whole))
        return await build_off_loop(partial(building.build_sessions, rows))

    @on_any_loop
    async def get_session(self, session_id: str) -> Session | None:
        session = records.check_lookup("session_id", session_id)
        rows = await self._read(partial(fetch, listing.SELECT_SESSION, (session,)))
        return await build_off_loop(partial(building.build_session, rows[0])) if rows else None

    @on_any_loop
    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        return await self._read(partial(listing.count, listing.check_criteria(user_id, metadata)))

    @on_any_loop
    async def update_session_title(self, session_id: str, title: str) -> None:
        new_title = records.check_text("title", title)
        await self._write(partial(edits.update_title, records.check_session_id(session_id), new_title))

    @on_any_loop
    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        session = records.check_lookup("session_id", session_id)
        await self._write(partial(edits.delete_session, session, records.check_revision(expected_revision)))

    @on_any_loop
    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        user, moment = records.check_deletion(user_id, inactive_since)
        seconds = seconds_for(self.timeout)
        ends = time.monotonic() + seconds
        deleted = await self._repeat(partial(edits.delete_some, user, moment), "sessions were deleted", seconds, ends)
        if user and moment is None:
            await self._repeat(partial(erase_some_of_user, user), "feedback was erased", seconds, ends)
        return deleted

    async def _repeat(self, remove_some: Work[int], what: str, seconds: float, ends: float) -> int:
        """Remove batches until there is nothing left, and return how much was removed."""
        removed = 0
        while found := await self._write(remove_some, max(ends - time.monotonic(), 0.0)):
            removed += found
            await asyncio.sleep(_PAUSE_SECONDS)
            if time.monotonic() >= ends:
                raise BackendUnavailableError(
                    f"not all {what} within {seconds:g} s, only {removed}; call again, or raise timeout="
                )
        return removed

    @on_any_loop
    async def clear_all(self) -> None:
        await self._write(edits.clear)

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
