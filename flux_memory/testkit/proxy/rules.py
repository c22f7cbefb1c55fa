"""A connection through the proxy, and the rules by which the proxy handles its traffic."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Final, Literal

Direction = Literal["request", "reply"]
"""From the client to the server, or back."""
Break = Literal["reset", "close", "half-close", "silence"]
"""How a connection ends: reset on both sides, closed on both sides, closed towards the client only, or not at all."""


class Connection:
    """A client's connection to the proxy, with the proxy's own to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.silent = False
        self.half_closed = False
        """Whether the client hears nothing any more; its requests, and the end of its connection, still pass."""
        self.ended = False
        """Whether this side has ended it; then the end that its threads see is not the client's or the server's."""

    def split(self, data: bytes) -> list[bytes]:
        """Return a client's bytes in the pieces that rules are applied to."""
        return [data]

    def send(self, data: bytes, *, upwards: bool) -> None:
        """Forward bytes."""
        (self.server if upwards else self.client).sendall(data)

    def close(self) -> None:
        """Close the connection on both sides."""
        self.ended = True
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def reset(self) -> None:
        """Reset the connection on both sides."""
        self.ended = True
        for each in (self.client, self.server):
            reset_socket(each)

    def end(self, how: Break) -> None:
        """End the connection, for the client at least."""
        self.silent = how == "silence"
        if how == "reset":
            self.reset()
        elif how == "close":
            self.close()
        elif how == "half-close":
            self.half_closed = True
            self.client.shutdown(socket.SHUT_WR)


class Rule:
    """What the proxy does with traffic; the base class forwards it."""

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """Handle one piece of a client's bytes, or some bytes of the server."""
        connection.send(data, upwards=upwards)

    def end(self) -> None:
        """Stop, because another rule is in force."""


class Silence(Rule):
    """Drops every byte of every connection that carries one."""

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        del data, upwards
        connection.silent = True


class LostReply(Rule):
    """Loses the reply of one exchange."""

    def __init__(self, exchange: int, how: Break) -> None:
        self._exchange = exchange
        self._how: Final[Break] = how
        self._lost = False
        self._asked: dict[Connection, int] = {}
        self._answered: set[Connection] = set()

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        if upwards:
            if connection not in self._asked or connection in self._answered:
                self._answered.discard(connection)
                self._asked[connection] = self._asked.get(connection, 0) + 1
            connection.send(data, upwards=True)
        elif not self._lost and self._asked.get(connection) == self._exchange:
            # The reply shows that the server has processed the request.
            self._lost = True
            connection.end(self._how)
        else:
            if connection in self._asked:
                self._answered.add(connection)
            connection.send(data, upwards=False)


class Slow(Rule):
    """Limits the rate."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        for begin in range(0, len(data), 16):
            piece = data[begin : begin + 16]
            time.sleep(len(piece) / self._rate)
            connection.send(piece, upwards=upwards)


class Delay(Rule):
    """Delivers later."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        time.sleep(self._seconds)
        connection.send(data, upwards=upwards)


class Hold(Rule):
    """Keeps what is sent in one direction until it ends."""

    def __init__(self, *, upwards: bool) -> None:
        self._upwards = upwards
        self._over = threading.Event()

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        if upwards == self._upwards:
            self._over.wait()
        connection.send(data, upwards=upwards)

    def end(self) -> None:
        """See `Rule`."""
        self._over.set()


class Cut(Rule):
    """Breaks the connection that carries one byte."""

    def __init__(self, after: int, direction: Direction | None, how: Break) -> None:
        self._left = after
        self._upwards = None if direction is None else direction == "request"
        self._how: Final[Break] = how
        self._counting = threading.Lock()

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        """See `Rule`."""
        if self._upwards not in {None, upwards}:
            connection.send(data, upwards=upwards)
            return
        with self._counting:
            before, self._left = self._left, self._left - len(data)
        if 0 <= before < len(data):
            connection.send(data[:before], upwards=upwards)
            # Otherwise the reset overtakes the bytes.
            time.sleep(0.002)
            connection.end(self._how)
        else:
            connection.send(data, upwards=upwards)


def reset_socket(each: socket.socket) -> None:
    """Close a socket without the orderly end of its connection."""
    with suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A reading thread would keep the socket open.
        each.shutdown(socket.SHUT_RD)
    each.close()
