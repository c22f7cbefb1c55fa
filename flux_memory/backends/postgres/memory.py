"""`PostgresConversationMemory`: a `Memory` in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from typing import TypeVar

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import on_any_loop
from flux_memory.backends.long_calls import build_off_loop
from flux_memory.backends.postgres import creating, deleting, queries, updating
from flux_memory.backends.postgres.adds import Add
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.feedback import Access, PostgresFeedback
from flux_memory.backends.postgres.handle import PostgresHandle
from flux_memory.errors import SessionNotFoundError
from flux_memory.protocol import Memory, Message, Metadata, NewMessage, Session
from flux_memory.records import building
from flux_memory.records.changes import check_keys
from flux_memory.records.checking import list_messages
from flux_memory.records.filters import check_filter

Result = TypeVar("Result")


class PostgresConversationMemory(PostgresHandle, Memory):
    """A `Memory` in PostgreSQL, safe for any number of tasks, handles, processes and machines.

    Args:
        dsn: `postgresql://user:password@host:5432/database`; by default the settings' `POSTGRES_DSN`.
        min_size: Connections opened at once, and kept.
        max_size: The largest number of connections; further calls wait for one.
        timeout: Seconds within which a call ends, unless `flux_memory.deadline()` overrides it.
        pool: An asyncpg pool to borrow; it is never closed, and `dsn` is not read.
        replica_dsn: A DSN whose hosts are streaming replicas of the server, for reads; by default the settings'
            `POSTGRES_REPLICA_DSN` if `dsn` comes from the settings, too.
        max_replica_lag: Seconds that a read may be behind the writes of other handles; the handle's own writes show
            at once.

    Raises:
        InvalidInputError: An argument is wrong, or there is no DSN.
    """

    @property
    def feedback(self) -> PostgresFeedback:
        return PostgresFeedback(self._run_here)

    @on_any_loop
    async def _run_here(self, call: Callable[[Access], Awaitable[Result]], *, operation: str) -> Result:
        return await call(Access(self._rows, self._write, self._long, self.timeout))

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
        waits = session_id is not None
        await self._write(
            lambda store, state: creating.create_session(store.executor, state, row, waits=waits),
            seconds,
            session_id=row.id,
        )
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
        create: bool = False,
        user_id: str = "",
    ) -> str:
        check = partial(records.check_new_message, role, content, metadata, message_id)
        row, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        await self._add(session_id, [row], create, user_id, seconds)
        return row.id

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        self._life.check_open()
        # Read on the caller's loop: it may be rows of a cursor that belongs to the caller's thread.
        return await self._add_messages(session_id, list_messages(messages), create, user_id)

    @on_any_loop
    async def _add_messages(self, session_id: str, messages: list[NewMessage], create: bool, user_id: str) -> list[str]:
        check = partial(records.check_batch, messages)
        batch, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        await self._add(session_id, records.drop_repeats(batch), create, user_id, seconds)
        return [row.id for row in batch]

    @on_any_loop
    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        session = records.check_lookup("session_id", session_id)
        most = records.check_limit(limit)
        older_than, newer_than = records.check_cursors(before, after)
        if newer_than is not None:
            rows = (await self._rows(queries.SELECT_HISTORY_AFTER, session, most, newer_than, session_id=session))[::-1]
        elif older_than is not None:
            rows = await self._rows(queries.SELECT_HISTORY_BEFORE, session, most, older_than, session_id=session)
        else:
            rows = await self._rows(queries.SELECT_HISTORY, session, most, session_id=session)
        return await build_off_loop(partial(building.build_messages, session, rows))

    @on_any_loop
    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        session = records.check_lookup("session_id", session_id)
        message = records.check_lookup("message_id", message_id)
        rows = await self._rows(queries.SELECT_MESSAGE, session, message, session_id=session)
        found = await build_off_loop(partial(building.build_messages, session, rows))
        return found[0] if found else None

    @on_any_loop
    async def pop_message(self, session_id: str) -> Message | None:
        session = records.check_lookup("session_id", session_id)
        return await self._write(
            lambda store, state: updating.pop_message(store.executor, state, session), session_id=session
        )

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
    async def _update_session(self, session_id: str, check: partial[records.SessionUpdate]) -> Session:
        update, seconds = await self._long.check_in_order(session_id, seconds_for(self.timeout), check)
        session = records.check_session_id(session_id)
        return await self._write(
            lambda store, state: updating.update_session(store.executor, state, session, update),
            seconds,
            session_id=session,
        )

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
        session = records.check_session_id(session_id)
        waits = new_session_id is not None
        await self._write(
            lambda store, state: creating.fork_session(store.executor, state, session, fork, waits=waits),
            session_id=fork.new_id,
        )
        return fork.new_id

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
        criteria = {
            "user": None if user_id is None else records.check_lookup("user_id", user_id),
            "part": check_filter(metadata),
            "before": records.check_session_cursor(before),
            "with_metadata": records.check_flag("with_metadata", with_metadata),
        }
        rows = await self._read(lambda path: path.select_page(most, skipped, **criteria))
        return await build_off_loop(partial(building.build_sessions, rows))

    @on_any_loop
    async def get_session(self, session_id: str) -> Session | None:
        session = records.check_lookup("session_id", session_id)
        rows = await self._rows(queries.SELECT_SESSION, session, session_id=session)
        return await build_off_loop(partial(building.build_session, rows[0])) if rows else None

    @on_any_loop
    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        user = None if user_id is None else records.check_lookup("user_id", user_id)
        sql, values = queries.select_count(user, check_filter(metadata))
        return int((await self._rows(sql, *values))[0][0])

    @on_any_loop
    async def update_session_title(self, session_id: str, title: str) -> None:
        new_title = records.check_text("title", title)
        session = records.check_session_id(session_id)
        if not await self._write(
            lambda store, state: updating.update_title(store.executor, state, session, new_title), session_id=session
        ):
            raise records.session_not_found(session)

    @on_any_loop
    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        session = records.check_lookup("session_id", session_id)
        expected = records.check_revision(expected_revision)
        await self._write(
            lambda store, state: deleting.delete_session(store.executor, state, session, expected), session_id=session
        )

    @on_any_loop
    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        user, moment = records.check_deletion(user_id, inactive_since)
        return await self._write(lambda store, state: deleting.delete_sessions(store.executor, state, user, moment))

    @on_any_loop
    async def clear_all(self) -> None:
        await self._write(lambda store, state: deleting.clear_all(store.executor, state))

    async def _add(
        self, session_id: str, rows: list[records.MessageRow], create: object, user_id: object, seconds: float
    ) -> None:
        creates, owner = records.check_flag("create", create), records.check_owner(user_id)
        session = records.check_id("session_id", session_id) if creates else records.check_session_id(session_id)
        added = Add(session, rows, owner)
        state = CallState(writes=True)
        try:
            await self._run(
                state,
                lambda store: store.writers.find(session).add(added, state, creates=creates and bool(rows)),
                seconds,
            )
        except SessionNotFoundError:
            if not creates:
                raise
        finally:
            self._note_write(session)
