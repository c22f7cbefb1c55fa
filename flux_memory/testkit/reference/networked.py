"""The reference model behind a real socket: a server of lines of JSON, and the handle that calls it."""

from __future__ import annotations

import asyncio
import copy
import json
import socketserver
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, Self, cast

import flux_memory
from flux_memory import BackendUnavailableError, FluxMemoryError, OutcomeUnknownError, seconds_for
from flux_memory.testkit.reference.memory import READS, WRITES, ReferenceMemory
from flux_memory.testkit.reference.rows import new_id
from flux_memory.testkit.reference.store import ReferenceStore
from flux_memory.testkit.reference.wire import Wire, decode_time, encode_line

TIMEOUT_SECONDS: Final = 30.0
"""The deadline of a call without one."""
LOCK_SECONDS: Final = 10.0
"""How long a write waits for the lock on a session by default; then the server refuses it."""
RETRY_SECONDS: Final = 0.01
"""The pause before the next attempt of a call."""
POOL_SIZE: Final = 4
"""The largest number of connections of a handle."""
LINE_BYTES: Final = 2**27

_OF_ALL_SESSIONS: Final = ("delete_sessions", "clear_all")

Request = dict[str, Any]
Address = tuple[str, int]


class ReferenceServer:
    """A server on the loopback interface that runs the calls of its clients on one store.

    Each connection has settings of its own, which a client can change: `hours` is the offset of the times that it
    reads, `read_only` refuses writes, and in a `transaction` writes take effect at its end and lock their session, for
    which they wait `lock_seconds`.

    Args:
        store: The data.
    """

    def __init__(self, store: ReferenceStore) -> None:
        self.store = store
        self.outcomes: dict[str, list[bytes]] = {}
        """The reply to each write by its token, so that a write that is sent again is not done again."""
        self.locks: dict[str, object] = {}
        """The connection that holds the lock on a session."""
        self.unlocked = threading.Condition()
        owner = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, ValueError):
                    _Connection(owner).serve(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address: Final[Address] = ("127.0.0.1", self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def lock(self, session: str, owner: object, seconds: float) -> None:
        """Wait for the lock on a session, so many seconds.

        Raises:
            BackendUnavailableError: another connection holds it for too long.
        """
        with self.unlocked:
            if not self.unlocked.wait_for(lambda: self.locks.get(session, owner) is owner, seconds):
                raise BackendUnavailableError("the session stayed locked; nothing was stored")
            self.locks[session] = owner

    def unlock(self, owner: object) -> None:
        """Release each lock of a connection."""
        with self.unlocked:
            self.locks = {session: one for session, one in self.locks.items() if one is not owner}
            self.unlocked.notify_all()


class _Connection:
    """A client's connection, as the server sees it."""

    def __init__(self, server: ReferenceServer) -> None:
        self._server = server
        self._settings: dict[str, Any] = {}
        self._draft: ReferenceStore | None = None
        self._touched: set[str] = set()
        self._told: dict[str, list[bytes]] = {}
        """The replies to writes that are not committed yet."""

    def serve(self, requests: Any, replies: Any) -> None:
        """Answer the requests until the client ends the connection; then undo what it has not committed."""
        try:
            for line in requests:
                if not line.endswith(b"\n"):
                    return
                replies.write(b"".join(self._answer(json.loads(line))))
                replies.flush()
        finally:
            self._server.unlock(self)

    def _answer(self, request: Request) -> list[bytes]:
        token = request.get("token")
        if token in self._server.outcomes:
            return self._server.outcomes[token]
        try:
            found = self._perform(request)
            rows = found if isinstance(found, list) else []
            done = {"count": len(rows)} if isinstance(found, list) else {"value": found}
            reply = [encode_line({"row": row}) for row in rows] + [encode_line(done)]
        except FluxMemoryError as error:
            reply = [encode_line({"error": _public_name(error), "text": str(error)})]
        if token is not None:
            self._told[token] = reply
        if self._draft is None:
            self._server.outcomes |= self._told
            self._told = {}
        return reply

    def _perform(self, request: Request) -> Any:
        method, args = request["call"], request["args"]
        given = {name: decode_time(value) for name, value in request["given"].items()}
        if method == "set":
            return self._set(**given)
        store = self._draft or self._server.store
        if method in WRITES and self._settings.get("read_only"):
            raise FluxMemoryError("the connection is read-only")
        memory = ReferenceMemory(store)
        try:
            if method in WRITES:
                self._lock(method, args)
            found = _finish(getattr(memory, method)(*args, **given))
            if method in {"create_session", "fork_session"}:
                self._touched.add(found)
        finally:
            _finish(memory.close())
            if self._draft is None:
                self._server.unlock(self)
        return _shifted(found, self._settings.get("hours", 0))

    def _lock(self, method: str, args: list[Any]) -> None:
        with self._server.store.reading() as sessions:
            touched = list(sessions) if method in _OF_ALL_SESSIONS else args[:1] if method != "create_session" else []
        for session in touched:
            self._server.lock(session, self, self._settings.get("lock_seconds", LOCK_SECONDS))
        fresh = set(touched) - self._touched
        self._touched |= fresh
        if self._draft is not None:
            # Another connection may have changed the session since the transaction began.
            with self._server.store.reading() as sessions, self._draft.writing() as drafted:
                drafted.update({key: copy.deepcopy(sessions[key]) for key in fresh if key in sessions})

    def _set(self, **given: Any) -> None:
        self._settings |= given
        if given.get("transaction"):
            self._draft, self._touched = ReferenceStore(), set()
            self._draft.share_feedback(self._server.store)
            # `_lock` copies a session before it changes: copies of all of them would take longer than others wait.
            with self._server.store.reading() as sessions, self._draft.writing() as drafted:
                drafted.update(sessions)
        elif given.get("transaction") is False and self._draft is not None:
            with self._draft.reading() as drafted, self._server.store.writing() as sessions:
                for key in self._touched - drafted.keys():
                    sessions.pop(key, None)
                sessions.update({key: drafted[key] for key in self._touched & drafted.keys()})
            self._draft = None
            self._server.unlock(self)


class NetworkedMemory(ReferenceMemory):
    """The reference model as a client of a `ReferenceServer`, with a pool of connections and retries.

    Args:
        address: The host and the port of the server.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(ReferenceStore())
        self._address = address
        self._idle: list[Wire] = []
        self._permits = asyncio.Semaphore(POOL_SIZE)

    async def close(self) -> None:
        """See `Memory`."""
        self._closed = True
        while self._idle:
            self._idle.pop().drop()
        # A transport closes in the next turn of the loop.
        await asyncio.sleep(0)

    async def call(self, method: str, *args: Any, **given: Any) -> Any:
        """Make a call on the server and return its result; send it again if its reply is lost."""
        self._check_open()
        request: Request = {"call": method, "args": args, "given": given}
        if method in WRITES:
            request["token"] = new_id()
        sent: list[Wire] = []
        try:
            async with asyncio.timeout(seconds_for(TIMEOUT_SECONDS)):
                return await self._repeat(request, sent)
        except TimeoutError:
            raise self._late(request, sent) from None

    def _late(self, request: Request, sent: list[Wire]) -> FluxMemoryError:
        """Return the error of a call that passed its deadline."""
        if sent and request["call"] in WRITES:
            return OutcomeUnknownError("no reply within the deadline; the call may have taken effect")
        return BackendUnavailableError("the server was out of reach; nothing was stored")

    async def _repeat(self, request: Request, sent: list[Wire]) -> Any:
        """Send a request until there is a reply; note the connections that it was sent on."""
        while True:
            async with self._permits:
                try:
                    wire = await self._take()
                    sent.append(wire)
                    return await self._use(wire, request)
                except FluxMemoryError:
                    # Among them is the server's own `BackendUnavailableError`, an OSError.
                    raise
                except (OSError, EOFError):
                    request = self._again(request)
            await asyncio.sleep(RETRY_SECONDS)

    async def _use(self, wire: Wire, request: Request) -> Any:
        """Exchange a request for its reply on a connection, and put it back unless the exchange was interrupted."""
        try:
            found = await self._exchange(wire, request)
        except FluxMemoryError:
            self._idle.append(wire)
            raise
        except BaseException:
            self._interrupted(wire)
            raise
        self._idle.append(wire)
        return found

    def _again(self, request: Request) -> Request:
        """Return the request to send after a reply was lost."""
        return request

    def _interrupted(self, wire: Wire) -> None:
        """Dispose of a connection on which a reply may still arrive; the network may have forgotten the others, too."""
        wire.drop()
        while self._idle:
            self._idle.pop().drop()

    async def _take(self) -> Wire:
        while self._idle:
            wire = self._idle.pop(0)
            if not wire.lost:
                return wire
            wire.drop()
        return Wire(*await asyncio.open_connection(*self._address, limit=LINE_BYTES))

    async def _exchange(self, wire: Wire, request: Request) -> Any:
        wire.writer.write(encode_line(request))
        rows: list[Any] = []
        while True:
            reply = await self._read(wire, rows)
            if "row" not in reply:
                break
            rows.append(reply["row"])
        if "error" in reply:
            raise cast("type[Exception]", getattr(flux_memory, reply["error"]))(reply["text"])
        return rows if "count" in reply else reply["value"]

    async def _read(self, wire: Wire, rows: list[Any]) -> Any:
        """Return the next line of a reply, after some rows."""
        del rows
        line = await wire.reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)


def _remote(method: str) -> Callable[..., Any]:
    async def call(self: NetworkedMemory, *args: Any, **given: Any) -> Any:
        return await self.call(method, *args, **given)

    return call


for _method in (*WRITES, *READS):
    setattr(NetworkedMemory, _method, _remote(_method))


def _public_name(error: FluxMemoryError) -> str:
    return next(each.__name__ for each in type(error).__mro__ if hasattr(flux_memory, each.__name__))


def _finish(call: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a call that never waits."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a call of the reference model does not wait")


def _shifted(found: Any, hours: float) -> Any:
    """Return records with their times moved, as a connection with another time zone reads them."""
    if isinstance(found, list):
        return [_shifted(each, hours) for each in found]
    if not hours or not isinstance(found, dict):
        return found
    times = {
        key: (datetime.fromisoformat(found[key]) + timedelta(hours=hours)).isoformat(timespec="microseconds")
        for key in ("created_at", "updated_at")
        if key in found
    }
    return found | times
