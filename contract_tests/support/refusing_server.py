"""A TCP server that speaks the beginning of PostgreSQL's protocol, and refuses each client with a given answer.

It injects the refusals of poolers and providers that cannot run here.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

_SSL_REQUEST: Final = 80877103


def message(kind: str, body: bytes) -> bytes:
    """A message of the protocol."""
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def error(code: str, text: str, severity: str = "FATAL") -> bytes:
    """An ErrorResponse without the untranslated severity, as poolers send it."""
    return message(
        "E",
        b"".join(f"{name}{value}\0".encode() for name, value in zip("SCM", (severity, code, text), strict=True))
        + b"\0",
    )


WELCOME: Final = (
    message("R", struct.pack("!i", 0))
    + message("S", b"server_version\x0015.0\0")
    + message("S", b"client_encoding\0UTF8\0")
    + message("Z", b"I")
)
"""The messages that begin a session."""


@dataclass
class Refusing:
    """The state of a running server."""

    port: int = 0
    refused: int = 0
    again: asyncio.Event = field(default_factory=asyncio.Event)
    """A client was refused for the second time."""

    @property
    def dsn(self) -> str:
        """A DSN with its address."""
        return f"postgresql://user:m4rker-of-a-p4ssword@127.0.0.1:{self.port}/chat"


@asynccontextmanager
async def refusing(answer: bytes, *, after_login: bool = False) -> AsyncIterator[Refusing]:
    """Answer each client's startup message, or its first statement, and close the connection."""
    server = Refusing()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await refuse(reader, writer)
        finally:
            writer.transport.abort()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length, code = struct.unpack("!ii", await reader.readexactly(8))
        if code == _SSL_REQUEST:
            writer.write(b"N")
            (length, _) = struct.unpack("!ii", await reader.readexactly(8))
        await reader.readexactly(length - 8)
        if after_login:
            writer.write(WELCOME)
            await reader.read(65_536)
        server.refused += 1
        if server.refused > 1:
            server.again.set()
        writer.write(answer)
        await writer.drain()
        # Not closed before the client is gone: a reset would overtake the answer.
        writer.write_eof()
        await reader.read()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    async with await asyncio.start_server(start, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        # The transports close in the next turn of the loop.
        await asyncio.sleep(0)
