"""A `Memory` in the service of `service.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self
from uuid import uuid4

import aiohttp

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    InvalidInputError,
    Memory,
    MemoryClosedError,
    Message,
    Metadata,
    NewMessage,
    OutcomeUnknownError,
    Session,
    SessionNotFoundError,
    records,
    seconds_for,
)

ERRORS: Final = {400: InvalidInputError, 404: SessionNotFoundError, 409: ConflictError}
FIRST_TRY_SECONDS: Final = 1.0
"""How long the first try of a call waits for its answer; each later one waits twice as long as the one before.

A firewall may have forgotten a connection of the pool: nothing but a limit ends a try on it.
"""
PAUSE_SECONDS: Final = 0.05
"""The pause between two tries."""


@dataclass(slots=True)
class Call:
    """One call, which may take several tries."""

    path: str
    body: bytes
    ends: float
    writes: bool
    sent: bool = False
    """Whether the service may have received it."""
    abandoned: bool = False
    """Whether its caller was cancelled."""

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body once a connection is there to send it."""
        self.sent = True
        yield self.body

    def error(self, reason: BaseException | None) -> BackendUnavailableError:
        """Return the error of a call that was not answered."""
        why = f"{self.path} was not answered" + (f": {reason!r}" if reason else "")
        if self.writes and self.sent:
            return OutcomeUnknownError(f"{why}; it may be done: retry with the same ids, or read back")
        return BackendUnavailableError(f"{why}; nothing was stored: try again later")


class HttpMemory(Memory):
    """A handle on one space of the service.

    Args:
        url: The service, such as `http://127.0.0.1:8080`.
        space: The space: lower-case letters and digits.
        timeout: Seconds within which a call ends, unless `flux_memory.deadline()` overrides it.
    """

    def __init__(self, url: str, space: str, *, timeout: float = 30.0) -> None:
        self._url, self._space, self._timeout = url, space, records.check_seconds("timeout", timeout)
        self._closed = self._given_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: aiohttp.ClientSession | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def create_session(
        self, title: str = "", metadata: Metadata | None = None, *, session_id: str | None = None, user_id: str = ""
    ) -> str:
        self._check_open()
        row = records.check_new_session(session_id, user_id, title, metadata)
        await self._write("create", session=row)
        return row.id

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
        self._check_open()
        row = records.check_new_message(role, content, metadata, message_id)
        return (await self._add(session_id, [row], create, user_id))[0]

    async def add_messages(
        self, session_id: str, messages: Iterable[NewMessage], *, create: bool = False, user_id: str = ""
    ) -> list[str]:
        self._check_open()
        return await self._add(session_id, records.check_batch(messages), create, user_id)

    async def _add(self, session_id: str, rows: list[records.MessageRow], create: bool, user_id: str) -> list[str]:
        owner, creates = records.check_owner(user_id), records.check_flag("create", create)
        key = records.check_id("session_id", session_id) if creates else records.check_session_id(session_id)
        await self._write("add", session_id=key, messages=rows, create_missing=creates, user_id=owner)
        return [row.id for row in rows]

    async def get_history(
        self, session_id: str, limit: int | None = None, *, before: str | None = None, after: str | None = None
    ) -> list[Message]:
        self._check_open()
        session_id, most = records.check_lookup("session_id", session_id), records.check_limit(limit)
        older_than, newer_than = records.check_cursors(before, after)
        rows = await self._read("history", session_id=session_id, limit=most, before=older_than, after=newer_than)
        return records.build_messages(session_id, rows)

    async def get_message(self, session_id: str, message_id: str) -> Message | None:
        self._check_open()
        session_id = records.check_lookup("session_id", session_id)
        wanted = records.check_lookup("message_id", message_id)
        rows = await self._read("message", session_id=session_id, message_id=wanted)
        return records.build_messages(session_id, rows)[0] if rows else None

    async def pop_message(self, session_id: str) -> Message | None:
        self._check_open()
        session_id = records.check_lookup("session_id", session_id)
        rows = await self._write("pop", session_id=session_id)
        return records.build_messages(session_id, rows)[0] if rows else None

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
        self._check_open()
        update = records.check_update(
            expected_revision=expected_revision,
            title=title,
            merge_metadata=merge_metadata,
            remove_metadata=remove_metadata,
            truncate_from=truncate_from,
            truncate_all=truncate_all,
            messages=messages,
        )
        session_id = records.check_session_id(session_id)
        return records.build_session((await self._write("update", session_id=session_id, **update._asdict()))[0])

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
        fork = records.check_fork(through, new_session_id, user_id, title)
        await self._write("fork", session_id=records.check_session_id(session_id), **fork._asdict())
        return fork.new_id

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
        self._check_open()
        page = {"limit": records.check_limit(limit), "offset": records.check_count("offset", offset)}
        more = {
            "before": records.check_session_cursor(before),
            "with_metadata": records.check_flag("with_metadata", with_metadata),
        }
        return records.build_sessions(await self._read("sessions", **page, **more, **_filter(user_id, metadata)))

    async def get_session(self, session_id: str) -> Session | None:
        self._check_open()
        rows = await self._read("session", session_id=records.check_lookup("session_id", session_id))
        return records.build_session(rows[0]) if rows else None

    async def count_sessions(self, *, user_id: str | None = None, metadata: Metadata | None = None) -> int:
        self._check_open()
        return int((await self._read("count", **_filter(user_id, metadata)))[0][0])

    async def update_session_title(self, session_id: str, title: str) -> None:
        self._check_open()
        title = records.check_text("title", title)
        await self._write("rename", session_id=records.check_session_id(session_id), title=title)

    async def delete_session(self, session_id: str, *, expected_revision: str | None = None) -> None:
        self._check_open()
        expected = records.check_revision(expected_revision)
        session_id = records.check_lookup("session_id", session_id)
        await self._write("delete", session_id=session_id, expected_revision=expected)

    async def delete_sessions(self, *, user_id: str | None = None, inactive_since: datetime | None = None) -> int:
        self._check_open()
        user, since = records.check_deletion(user_id, inactive_since)
        return int((await self._write("delete_many", user_id=user, inactive_since=since))[0][0])

    async def clear_all(self) -> None:
        self._check_open()
        await self._write("clear")

    async def close(self) -> None:
        """Refuse new calls, wait for those under way until the deadline, and close the pool."""
        self._closed = True
        loop = asyncio.get_running_loop()
        if here := {call for call in self._calls if call.get_loop() is loop}:
            await asyncio.wait(here, timeout=seconds_for(self._timeout))
        self._given_up = True
        for call in [*self._calls]:
            with suppress(RuntimeError):  # its event loop is closed
                call.get_loop().call_soon_threadsafe(call.cancel)
        if self._pool is not None and self._loop is loop:  # else the pool ends with its event loop
            await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        """Refuse a call on a closed handle."""
        if self._closed:
            raise MemoryClosedError("this memory is closed; open another one")

    async def _write(self, operation: str, **arguments: Any) -> list[Any]:
        # The service does a request once, so it can be sent again.
        return await self._call(operation, {**arguments, "request": str(uuid4())}, writes=True)

    async def _read(self, operation: str, **arguments: Any) -> list[Any]:
        return await self._call(operation, arguments, writes=False)

    async def _call(self, operation: str, arguments: dict[str, Any], *, writes: bool) -> list[Any]:
        """Send a call until it is answered, and return the rows of the answer."""
        ends = asyncio.get_running_loop().time() + seconds_for(self._timeout)
        body = json.dumps({**arguments, "space": self._space}).encode()
        call = Call(f"/call/{operation}", body, ends, writes)
        # A try under way goes on without its caller, so that close() can wait until the service has answered it.
        sending = asyncio.create_task(self._send(call))
        self._calls.add(sending)
        sending.add_done_callback(self._end)
        try:
            status, answer = await asyncio.shield(sending)
        finally:
            call.abandoned = True
        if status == 200:
            rows: list[Any] = json.loads(answer)
            return rows
        raise ERRORS.get(status, FluxMemoryError)(json.loads(answer))

    def _end(self, sending: asyncio.Task[Any]) -> None:
        self._calls.discard(sending)
        if not sending.cancelled():
            sending.exception()  # or asyncio logs it, if the caller is gone

    async def _send(self, call: Call) -> tuple[int, bytes]:
        reason: BaseException | None = None
        patience = FIRST_TRY_SECONDS
        try:
            while (left := call.ends - asyncio.get_running_loop().time()) > 0 and not call.abandoned:
                try:
                    return await self._try(call, min(left, patience))
                except (aiohttp.ClientError, TimeoutError) as error:
                    reason, patience = error, 2 * patience
                await asyncio.sleep(min(PAUSE_SECONDS, left))
        except asyncio.CancelledError:
            # close() cancels tries; their callers were not cancelled.
            if not self._given_up:
                raise
        raise call.error(reason) from reason

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Yield the pool, or on another event loop than the pool's a connection for one call."""
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._loop, self._pool = loop, aiohttp.ClientSession()
        if self._loop is loop:
            yield self._pool
        else:
            async with aiohttp.ClientSession() as own:
                yield own

    async def _try(self, call: Call, seconds: float) -> tuple[int, bytes]:
        limit, url = aiohttp.ClientTimeout(total=seconds), self._url + call.path
        async with self._connections() as pool, pool.post(url, data=call.parts(), timeout=limit) as response:
            if response.content_type != "application/json":
                raise aiohttp.ClientPayloadError(f"status {response.status}, not from the store")
            return response.status, await response.read()


def _filter(user_id: object, metadata: object) -> dict[str, str | None]:
    """Return the checked filters of a list of sessions."""
    user = None if user_id is None else records.check_lookup("user_id", user_id)
    return {"user_id": user, "part": records.check_filter(metadata)}
