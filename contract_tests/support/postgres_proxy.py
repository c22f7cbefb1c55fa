"""The kit's proxy with knowledge of PostgreSQL's messages: it breaks the network at a stage of a statement."""

from __future__ import annotations

import socket
import struct
from typing import Final, Literal

from flux_memory.testkit import Proxy
from flux_memory.testkit.proxy import Connection, Rule

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
_READY: Final = b"Z\0\0\0\5I"
"""The end of an answer, outside a transaction."""


class PostgresProxy(Proxy):
    """A proxy in front of a PostgreSQL server, whose connections must not use TLS."""

    def silence_at(self, stage: Stage | None) -> None:
        """Drop every byte of each connection from its next message of this stage on; `None` is at once."""
        if stage is None:
            self.silence()
        else:
            self._become(_SilenceAt(stage))

    def lose_reply_to(self, stage: Stage, *, containing: bytes = b"", times: int = 1) -> None:
        """Let the server execute the next messages of a stage, then drop its answer and reset the connection."""
        self._become(_LostReplyTo(stage, containing, times))

    def report_loss_of(self, stage: Stage, code: str, *, times: int = 1) -> None:
        """Let the server execute the next messages of a stage, then answer with an error over a living connection.

        So does a coordinator that has lost the connection to a worker.
        """
        self._become(_ReportedLoss(stage, code, times))

    def _connect(self, client: socket.socket, server: socket.socket) -> Connection:
        return _PostgresConnection(client, server)


class _PostgresConnection(Connection):
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        super().__init__(client, server)
        self.awaiting_reply = False
        self._started = False
        self._rest = b""

    def split(self, data: bytes) -> list[bytes]:
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


class _SilenceAt(Rule):
    def __init__(self, stage: Stage) -> None:
        self._type = _TYPES[stage]

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        if upwards and _is_at(self._type, data):
            connection.silent = True
        else:
            connection.send(data, upwards=upwards)


class _LostReplyTo(Rule):
    def __init__(self, stage: Stage, containing: bytes, times: int) -> None:
        self._type = _TYPES[stage]
        self._containing = containing
        self._left = times

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        assert isinstance(connection, _PostgresConnection)
        if upwards:
            if self._left > 0 and _is_at(self._type, data) and self._containing in data:
                self._left -= 1
                # Set before sending: the answer may arrive at once, on the other thread.
                connection.awaiting_reply = True
            connection.send(data, upwards=True)
        elif connection.awaiting_reply:
            # The answer shows that the server has executed the message.
            connection.reset()
        else:
            connection.send(data, upwards=False)


class _ReportedLoss(Rule):
    def __init__(self, stage: Stage, code: str, times: int) -> None:
        self._type = _TYPES[stage]
        self._code = code
        self._left = times
        self._held: dict[Connection, bytes] = {}

    def passes(self, connection: Connection, data: bytes, *, upwards: bool) -> None:
        if upwards:
            if self._left > 0 and _is_at(self._type, data):
                self._left -= 1
                # Set before sending: the answer may arrive at once, on the other thread.
                self._held[connection] = b""
            connection.send(data, upwards=True)
        elif connection in self._held:
            self._held[connection] += data
            if self._held[connection].endswith(_READY):
                del self._held[connection]
                fields = f"SERROR\0VERROR\0C{self._code}\0Mconnection to the worker lost\0\0".encode()
                connection.send(b"E" + struct.pack("!i", len(fields) + 4) + fields + _READY, upwards=False)
        else:
            connection.send(data, upwards=False)


def _is_at(kind: bytes, message: bytes) -> bool:
    """Return whether a client's message is of this type. A packet without a type begins with a zero byte."""
    return message[:1] == (kind or b"\x00")
