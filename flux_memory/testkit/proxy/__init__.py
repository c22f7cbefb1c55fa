"""A TCP proxy in front of any server that breaks the network on demand: refused, reset, silent, slow, cut, late.

It knows no protocol: it breaks at a byte, in a direction, or at an exchange, which is a request and its reply.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from flux_memory.testkit.proxy.rules import (
    Break,
    Connection,
    Cut,
    Delay,
    Direction,
    Hold,
    LostReply,
    Rule,
    Silence,
    Slow,
    reset_socket,
)

__all__ = ["Address", "Break", "Connection", "Direction", "Proxy", "Rule", "Turn"]

Address = tuple[str, int]
"""The host and the port of a server."""

_PORTS: Final = {"http": 80, "mariadb": 3306, "mongodb": 27017, "mysql": 3306, "redis": 6379}
_PORTS.update(dict.fromkeys(("postgres", "postgresql"), 5432))
_CHUNK_BYTES: Final = 1 << 20
"""Bytes that pass at once: a delay is one of distance, and would limit the rate if each chunk were small."""
_HOPELESS_SECONDS: Final = 10.0
"""Limit for a connection to the server."""


class Turn(NamedTuple):
    """Bytes that went in one direction without any in the other between them."""

    direction: Direction
    size: int


class Proxy:
    """A proxy between clients and a server. It runs in threads of its own, independent of any event loop.

        with Proxy("redis://127.0.0.1:6379/3") as proxy:
            memory = MyMemory(proxy.dsn)
            proxy.silence()      # from now on every byte is dropped, in both directions
            ...
            proxy.heal()

    Each method that breaks something replaces what the one before it set up.

    Args:
        server: The server's URL, such as a DSN, or its address, a host and a port.

    Raises:
        ValueError: The URL has no port, and its scheme has no known one.
    """

    def __init__(self, server: str | Address) -> None:
        self._target = _address_of(server)
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._listener: socket.socket | None = None
        self._rule = Rule()
        self._turns: list[Turn] = []
        self.port: Final = self._listen(0)
        self.address: Final[Address] = ("127.0.0.1", self.port)
        """The address of the proxy."""
        self.dsn: Final = _through(server, f"127.0.0.1:{self.port}") if isinstance(server, str) else ""
        """The server's URL through the proxy; empty if only its address is known."""

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

    def hang_up(self) -> None:
        """Close every open connection in order, as a server does with those that were idle for too long."""
        for connection in self._now_open():
            connection.close()

    def silence(self) -> None:
        """Drop every byte, in both directions."""
        self._become(Silence())

    def forget(self) -> None:
        """Drop every byte of the connections that are open now, like a firewall; new connections work."""
        self._become(Rule())
        for connection in self._now_open():
            connection.silent = True

    def slow(self, bytes_per_second: float) -> None:
        """Limit the rate in both directions."""
        self._become(Slow(bytes_per_second))

    def delay(self, seconds: float) -> None:
        """Deliver what is sent in either direction later, so that a request and its reply take twice that."""
        self._become(Delay(seconds))

    def hold(self, direction: Direction = "reply") -> None:
        """Keep what is sent in this direction from now on, until the next method is called; then deliver it."""
        self._become(Hold(upwards=direction == "request"))

    def cut(self, after: int, direction: Direction | None = None, how: Break = "reset") -> None:
        """Break the connection that carries the byte after the next `after` ones; others work.

        Args:
            after: The number of bytes that still pass, of all connections together.
            direction: Count and break in this direction only; by default in both together.
            how: How the connection ends.
        """
        self._become(Cut(after, direction, how))

    def lose_reply(self, exchange: int = 1, how: Break = "reset") -> None:
        """Let the server process one more request, then drop its reply and break the connection.

        Args:
            exchange: The request to lose the reply of, counted from 1 for each connection from now on.
            how: How the connection ends.
        """
        self._become(LostReply(exchange, how))

    def heal(self) -> None:
        """Restore the network. Dropped bytes stay lost, so silent connections are reset."""
        self._become(Rule())
        for connection in self._now_open():
            if connection.silent:
                self._end(connection)
        if self._listener is None:
            self._listen(self.port)

    @contextmanager
    def watch(self) -> Iterator[list[Turn]]:
        """Yield a list that fills with what passes in the block, in turns; it is exact for one call at a time."""
        with self._lock:
            turns: list[Turn] = []
            self._turns = turns
        try:
            yield turns
        finally:
            with self._lock:
                self._turns = []

    def close(self) -> None:
        """Stop the proxy and reset open connections."""
        self._closed = True
        self._become(Rule())
        self.refuse()
        self.reset()
        for thread in self._threads:
            thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _become(self, rule: Rule) -> None:
        """Apply a rule to what is sent from now on."""
        before, self._rule = self._rule, rule
        before.end()

    def _connect(self, client: socket.socket, server: socket.socket) -> Connection:
        """Return the state of a new connection; a subclass can add its protocol's."""
        return Connection(client, server)

    def _now_open(self) -> list[Connection]:
        with self._lock:
            return list(self._open)

    def _end(self, connection: Connection) -> None:
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
                server = socket.create_connection(self._target, timeout=_HOPELESS_SECONDS)
            except OSError:
                # A client sees a server that is down as a reset.
                reset_socket(client)
                continue
            server.settimeout(None)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._connect(client, server)
            with self._lock:
                self._open.add(connection)
            if self._closed:
                connection.reset()
            self._start(lambda connection=connection: self._pump(connection, upwards=True))  # type: ignore[misc]
            self._start(lambda connection=connection: self._pump(connection, upwards=False))  # type: ignore[misc]

    def _pump(self, connection: Connection, *, upwards: bool) -> None:
        source = connection.client if upwards else connection.server
        try:
            while data := source.recv(_CHUNK_BYTES):
                for piece in connection.split(data) if upwards else [data]:
                    self._note(len(piece), upwards=upwards)
                    if not (connection.silent or (connection.half_closed and not upwards)):
                        self._rule.passes(connection, piece, upwards=upwards)
        except OSError:
            pass
        else:
            # The end of a silent connection is dropped, too.
            if connection.silent:
                return
            if not connection.ended:
                connection.close()
        self._end(connection)

    def _note(self, size: int, *, upwards: bool) -> None:
        direction: Direction = "request" if upwards else "reply"
        with self._lock:
            turns = self._turns
            if turns and turns[-1].direction == direction:
                turns[-1] = Turn(direction, turns[-1].size + size)
            else:
                turns.append(Turn(direction, size))


def _through(dsn: str, address: str) -> str:
    url = urlsplit(dsn)
    user, at, _ = url.netloc.rpartition("@")
    return urlunsplit(url._replace(netloc=f"{user}{at}{address}"))


def _address_of(server: str | Address) -> Address:
    if not isinstance(server, str):
        return server
    url = urlsplit(server)
    port = url.port or _PORTS.get(url.scheme.partition("+")[0])
    if port is None:
        raise ValueError(f"the URL of the server has no port, and {url.scheme!r} has no usual one; write one into it")
    return url.hostname or "127.0.0.1", port
