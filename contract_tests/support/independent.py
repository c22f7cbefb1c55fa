"""A second implementation of the contract, written from its text: sqlite3 in threads, the library's errors only."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from independent_feedback import ERASE, IndependentFeedback
from independent_rows import (
    MESSAGES,
    NEWER,
    OLDER,
    OUTDATED,
    SESSIONS,
    append_messages,
    build_record,
    change_session,
    check_revision,
    copy_session,
    current_time,
    find_session,
    insert_session,
    list_sessions,
    note_change,
    open_store,
    remove_newest,
    write_transaction,
)
from independent_values import (
    NewRow,
    check_change,
    check_flag,
    check_key,
    check_moment,
    check_place,
    check_row,
    check_row_count,
    check_rows,
    check_text,
    encode_json,
    make_id,
    parse_exact,
    refuse_long_filter,
)

from flux_memory import BackendUnavailableError, FluxMemoryError, InvalidInputError, MemoryClosedError

Result = TypeVar("Result")


class IndependentMemory:
    """One connection behind one lock. A call runs in a thread and ends with it, even when cancelled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False

    def __del__(self) -> None:
        if self._db is not None:
            warnings.warn(f"{self._path} was never closed", ResourceWarning, stacklevel=1)
            self._db.close()

    @property
    def feedback(self) -> IndependentFeedback:
        return IndependentFeedback(self._run, self._check_open)

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        self._check_open()
        made = make_id() if session_id is None else check_text("session_id", session_id, 1, 255)
        given = check_text("user_id", user_id, 0, 255), check_text("title", title), encode_json("metadata", metadata)
        await self._run(lambda db: insert_session(db, made, *given, current_time()))
        return made

    async def add_message(
        self,
        session_id: str,
        role: str,
        content: str,
        metadata: Any = None,
        *,
        message_id: str | None = None,
        create: bool = False,
        user_id: str = "",
    ) -> str:
        self._check_open()
        rows = [check_row(role, content, metadata, message_id)]
        return (await self._append(session_id, rows, create, user_id))[0]

    async def add_messages(
        self, session_id: str, messages: Any, *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        self._check_open()
        return await self._append(session_id, list(check_rows(messages)), create, user_id)

    async def _append(self, session_id: str, rows: list[NewRow], create: bool, user_id: str) -> list[str]:
        user, creates = check_text("user_id", user_id, 0, 255), check_flag("create", create)
        session = check_text("session_id", session_id, 1, 255) if creates else check_key("session_id", session_id)
        await self._run(lambda db: append_messages(db, session, rows, user, creates), write=True)
        return [row.id for row in rows]

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Any]:
        self._check_open()
        most = None if limit is None else check_row_count("limit", limit)
        asked = {
            "session": check_key("session_id", session_id),
            "before": None if before is None else check_key("before", before),
            "after": None if after is None else check_key("after", after),
        }
        if before is not None and after is not None:
            raise InvalidInputError("before and after exclude each other")
        sql = MESSAGES + (OLDER if after is None else NEWER)
        rows = await self._run(lambda db: list(islice(db.execute(sql, asked), most)))
        return [build_record(row) for row in (rows[::-1] if after is None else rows)]

    async def get_message(self, session_id: str, message_id: str) -> Any:
        self._check_open()
        asked = {"session": check_key("session_id", session_id), "id": check_key("message_id", message_id)}
        row = await self._run(lambda db: db.execute(f"{MESSAGES} AND id = :id", asked).fetchone())
        return row and build_record(row)

    async def pop_message(self, session_id: str) -> Any:
        self._check_open()
        session = check_key("session_id", session_id)
        return await self._run(lambda db: remove_newest(db, session), write=True)

    async def update_session(self, session_id: str, *, expected_revision: str | None = None, **parts: Any) -> Any:
        self._check_open()
        session = check_key("session_id", session_id)
        expected = None if expected_revision is None else check_key("expected_revision", expected_revision)
        change = check_change(**parts)
        return await self._run(lambda db: change_session(db, session, expected, change), write=True)

    async def fork_session(
        self,
        session_id: str,
        *,
        through: str | None = None,
        new_session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> str:
        self._check_open()
        session, last = check_key("session_id", session_id), None if through is None else check_key("through", through)
        new = make_id() if new_session_id is None else check_text("new_session_id", new_session_id, 1, 255)
        user = None if user_id is None else check_text("user_id", user_id, 0, 255)
        called = None if title is None else check_text("title", title)
        await self._run(lambda db: copy_session(db, session, last, new, user, called), write=True)
        return new

    async def get_sessions(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        user_id: str | None = None,
        metadata: Any = None,
        before: Any = None,
        with_metadata: bool = True,
    ) -> list[Any]:
        self._check_open()
        start, most = check_row_count("offset", offset), None if limit is None else check_row_count("limit", limit)
        user = None if user_id is None else check_key("user_id", user_id)
        wanted = parse_exact(encode_json("metadata", metadata))
        refuse_long_filter("metadata", wanted)
        place, whole = check_place("before", before), check_flag("with_metadata", with_metadata)

        def work(db: sqlite3.Connection) -> list[Any]:
            end = None if most is None else start + most
            return list(map(build_record, islice(list_sessions(db, user, wanted, place), start, end)))

        found = await self._run(work)
        return found if whole else [one | {"metadata": {}} for one in found]

    async def get_session(self, session_id: str) -> Any:
        self._check_open()
        session = check_key("session_id", session_id)
        row = await self._run(lambda db: db.execute(SESSIONS + " WHERE id = ?", (session,)).fetchone())
        return row and build_record(row)

    async def count_sessions(self, *, user_id: str | None = None, metadata: Any = None) -> int:
        self._check_open()
        user = None if user_id is None else check_key("user_id", user_id)
        wanted = parse_exact(encode_json("metadata", metadata))
        refuse_long_filter("metadata", wanted)
        return await self._run(lambda db: sum(1 for _ in list_sessions(db, user, wanted)))

    async def update_session_title(self, session_id: str, title: str) -> None:
        self._check_open()
        session, new = check_key("session_id", session_id), check_text("title", title)
        await self._run(lambda db: note_change(db, find_session(db, session), title=new), write=True)

    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        self._check_open()
        session = check_key("session_id", session_id)
        expected = None if expected_revision is None else check_key("expected_revision", expected_revision)

        def work(db: sqlite3.Connection) -> None:
            if row := db.execute(SESSIONS + " WHERE id = ?", (session,)).fetchone():
                check_revision(row, expected)
                db.execute("DELETE FROM sessions WHERE id = ?", (session,))

        await self._run(work, write=True)

    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        self._check_open()
        asked = {
            "user": None if user_id is None else check_key("user_id", user_id),
            "moment": None if inactive_since is None else check_moment("inactive_since", inactive_since),
        }
        if not any(value is not None for value in asked.values()):
            raise InvalidInputError("delete_sessions needs user_id or inactive_since")

        def work(db: sqlite3.Connection) -> int:
            if asked["user"] and asked["moment"] is None:
                db.execute(ERASE, asked)
            return db.execute(OUTDATED, asked).rowcount

        return await self._run(work, write=True)

    async def clear_all(self) -> None:
        self._check_open()

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sessions")
            db.execute("DELETE FROM feedback")

        await self._run(work, write=True)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosedError("this memory is closed")

    async def _run(self, work: Callable[[sqlite3.Connection], Result], *, write: bool = False) -> Result:
        running = asyncio.ensure_future(asyncio.to_thread(self._work, work, write))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # The next call on this handle must find the work done, or never to be done.
            await asyncio.wait({running})
            raise

    def _work(self, work: Callable[[sqlite3.Connection], Result], write: bool) -> Result:
        with self._lock:
            self._check_open()
            try:
                self._db = self._db or open_store(self._path)
                with write_transaction(self._db) if write else nullcontext():
                    return work(self._db)
            except sqlite3.OperationalError as error:
                raise BackendUnavailableError(f"{self._path}: {error}") from error
            except sqlite3.Error as error:
                raise FluxMemoryError(f"{self._path}: {error}") from error
