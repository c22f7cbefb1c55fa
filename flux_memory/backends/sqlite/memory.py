"""`ConversationMemory`: a `Memory` in one SQLite file, whose calls run on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import on_any_loop
from flux_memory.backends.long_calls import build_off_loop
from flux_memory.backends.sqlite import adds, edits, listing
from flux_memory.backends.sqlite.feedback import Access, SQLiteFeedback, erase_some_of_user
from flux_memory.backends.sqlite.fetching import fetch
from flux_memory.backends.sqlite.handle import SQLiteHandle
from flux_memory.backends.sqlite.history import SELECT_MESSAGE, select_history
from flux_memory.backends.sqlite.queue import Work
from flux_memory.errors import BackendUnavailableError
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records import building
from flux_memory.records.changes import check_keys
from flux_memory.records.checking import list_messages

Result = TypeVar("Result")


_PAUSE_SECONDS: Final = 0.005
"""Seconds between two batches of `delete_sessions`, in which another process can take the lock."""


class ConversationMemory(SQLiteHandle, Memory):
    """A `Memory` in a SQLite file, safe for any number of tasks, handles and processes on one machine.

    Args:
        db_path: The file, created if it is missing; `:memory:` is a store of this handle alone. By default the file
            in the settings.
        timeout: Seconds within which a call ends, waiting for other processes' locks included.
        slow_call_seconds: Seconds from which a call is logged as slow, with the plans of its statements; `None` for
            never.

    Raises:
        InvalidInputError: An argument is wrong.
    """

    @property
    def feedback(self) -> SQLiteFeedback:
        return SQLiteFeedback(self._run_here)

    @on_any_loop
    async def _run_here(self, call: Callable[[Access], Awaitable[Result]], *, operation: str) -> Result:
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
