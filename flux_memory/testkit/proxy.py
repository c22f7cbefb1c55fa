"""A TCP proxy in front of a PostgreSQL server that breaks the network on demand: refused, reset, silent, slow, cut."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

Stage = Literal["startup", "authentication", "parse", "bind", "execute", "sync", "query"]
"""A message of the client: `query` in the simple protocol; `parse` to `sync`, which commits, in the extended one."""

_TYPES: Final[dict[Stage, bytes]] = {
    "startup": b"",
    "authentication": b"p",
    "parse": b"P",
    "bind": b"B",
    "execute": b"E",
    "sync": b"S",
    "query": b"Q",
}
_TLS_REQUEST: Final = 80877103
_CHUNK_BYTES: Final = 65536


class Proxy:
    """A proxy between a client and a server. It runs in threads of its own, independent of any event loop.

        with Proxy(dsn) as proxy:
            memory = PostgresConversationMemory(proxy.dsn)
            proxy.silence()      # from now on every byte is dropped, in both directions
            ...
            proxy.heal()

    Stages need a connection without TLS, because the proxy has to read the messages.

    Args:
        dsn: The DSN of the server, with a host and a port.
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener: socket.socket | None = None
        self._rule = _Rule()
        self.port: Final = self._listen(0)
        user, at, _ = parts.netloc.rpartition("@")
        self.dsn: Final = urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))
        """The DSN of the same database through the proxy."""

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._open)

    def refuse(self) -> None:
        """Refuse new connections; open ones continue."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone does not wake the accepting thread.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def interrupt(self) -> None:
        """Refuse new connections and reset open ones, like a server that is down, until `heal`."""
        self.refuse()
        self.reset()

    def reset(self) -> None:
        """Reset every open connection, on both sides."""
        for connection in self._now_open():
            self._end(connection)

    def silence(self, stage: Stage | None = None) -> None:
        """Drop every byte, in both directions: at once, or in each connection from its next `stage` on."""
        self._rule = _Silence(stage)

    def forget(self) -> None:
        """Drop every byte of the connections that are open now, like a firewall; new connections work."""
        self._rule = _Rule()
        for connection in self._now_open():
            connection.silent = True

    def lose_reply(self, stage: Stage, *, containing: bytes = b"", times: int = 1) -> None:
        """Let the server execute the next messages of a stage, then drop its answer and reset the connection."""
        self._rule = _LostReply(stage, containing, times)

    def slow(self, bytes_per_second: float) -> None:
        """Limit the rate in both directions."""
        self._rule = _Slow(bytes_per_second)

    def cut(self, after: int) -> None:
        """Reset the connection that carries the `after`-th byte from now on, in either direction; later ones work."""
        self._rule = _Cut(after)

    def heal(self) -> None:
        """Restore the network. Dropped bytes stay lost, so silent connections are reset."""
        self._rule = _Rule()
        for connection in self._now_open():
            if connection.silent:
                self._end(connection)
        if self._listener is None:
            self._listen(self.port)

    def close(self) -> None:
        """Stop the proxy and reset open connections."""
        self._closed = True
        self.refuse()
        self.reset()
        for thread in self._threads:
            thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _now_open(self) -> list[_Connection]:
        with self._lock:
            return list(self._open)

    def _end(self, connection: _Connection) -> None:
        connection.reset()
        with self._lock:
            self._open.discard(connection)

    def _listen(self, port: int) -> int:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._listener = listener
        self._start(lambda: self._accept(listener))
        return int(listener.getsockname()[1])

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="flux-memory proxy", daemon=True)
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                # A client sees a server that is down as a reset.
                _reset(client)
                continue
            server.settimeout(None)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, server)
            with self._lock:
                self._open.add(connection)
            if self._closed:
                connection.reset()
            self._start(lambda connection=connection: self._pump(connection, upwards=True))  # type: ignore[misc]
            self._start(lambda connection=connection: self._pump(connection, upwards=False))  # type: ignore[misc]

    def _pump(self, connection: _Connection, *, upwards: bool) -> None:
        source = connection.client if upwards else connection.server
        try:
            while data := source.recv(_CHUNK_BYTES):
                for piece in connection.messages(data) if upwards else [data]:
                    if not connection.silent:
                        self._rule.passes(connection, piece, upwards=upwards)
        except OSError:
            pass
        else:
            # The end of a silent connection is dropped, too.
            if connection.silent:
                return
            connection.close()
        self._end(connection)


class _Connection:
    """A client's connection to the proxy, with the proxy's own to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.silent = False
        self.awaiting_reply = False
        self._started = False
        self._rest = b""

    def messages(self, data: bytes) -> list[bytes]:
        """Add bytes from the client and return the messages that are now complete."""
        self._rest += data
        found: list[bytes] = []
        while True:
            head = 1 if self._started else 0
            if len(self._rest) < head + 4:
                return found
            (length,) = struct.unpack_from("!i", self._rest, head)
            if len(self._rest) < head + length:
                return found
            message, self._rest = self._rest[: head + length], self._rest[head + length :]
            if not self._started:
                (code,) = struct.unpack_from("!i", message, 4)
                self._started = code != _TLS_REQUEST
            found.append(message)

    def at(self, stage: Stage, message: bytes) -> bool:
        """Return whether a client's message belongs to a stage. A packet without a type begins with a zero byte."""
        return message[:1] == (_TYPES[stage] or b"\x00")

    def send(self, data: bytes, *, upwards: bool) -> None:
        """Forward bytes."""
        (self.server if upwards else self.client).sendall(data)

    def close(self) -> None:
        """Shut the connection down on both sides."""
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def reset(self) -> None:
        """Reset the connection on both sides."""
        for each in (self.client, self.server):
            _reset(each)


class _Rule:
    """What the proxy does with traffic; the base class forwards it."""

    def passes(self, connection: _Connection, data: bytes, *, upwards: bool) -> None:
        """Handle one message of the client, or some bytes of the server."""
        connection.send(data, upwards=upwards)


class _Silence(_Rule):
    def __init__(self, stage: Stage | None) -> None:
        self._stage: Final[Stage | None] = stage

    def passes(self, connection: _Connection, data: bytes, *, upwards: bool) -> None:
        if self._stage is None or (upwards and connection.at(self._stage, data)):
            connection.silent = True
        else:
            connection.send(data, upwards=upwards)


class _LostReply(_Rule):
    def __init__(self, stage: Stage, containing: bytes, times: int) -> None:
        self._stage: Final[Stage] = stage
        self._containing = containing
        self._left = times

    def passes(self, connection: _Connection, data: bytes, *, upwards: bool) -> None:
        if upwards:
            if self._left > 0 and connection.at(self._stage, data) and self._containing in data:
                self._left -= 1
                # Set before sending: the answer may arrive at once, on the other thread.
                connection.awaiting_reply = True
            connection.send(data, upwards=True)
        elif connection.awaiting_reply:
            # The answer shows that the server has executed the message.
            connection.reset()
        else:
            connection.send(data, upwards=False)


class _Slow(_Rule):
    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second

    def passes(self, connection: _Connection, data: bytes, *, upwards: bool) -> None:
        for begin in range(0, len(data), 16):
            piece = data[begin : begin + 16]
            time.sleep(len(piece) / self._rate)
            connection.send(piece, upwards=upwards)


class _Cut(_Rule):
    def __init__(self, after: int) -> None:
        self._left = after
        self._lock = threading.Lock()

    def passes(self, connection: _Connection, data: bytes, *, upwards: bool) -> None:
        with self._lock:
            before, self._left = self._left, self._left - len(data)
        if 0 <= before < len(data):
            connection.send(data[:before], upwards=upwards)
            # Otherwise the reset overtakes the bytes.
            time.sleep(0.002)
            connection.reset()
        else:
            connection.send(data, upwards=upwards)


def _reset(each: socket.socket) -> None:
    with suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A reading thread would keep the socket open.
        each.shutdown(socket.SHUT_RD)
    each.close()
