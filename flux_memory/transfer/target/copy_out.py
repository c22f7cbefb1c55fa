"""Receives the output of COPY, and ends a cancelled COPY by closing its connection.

A cancellation must not reach asyncpg here: if it arrives together with a chunk of output, the driver forgets that COPY
is running, and the next chunk is a "Fatal error" in the log of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class _StopError(BaseException):
    """Ends the driver's COPY without its attempt to cancel the statement: the connection is closed already."""


async def copy_out(connection: Any, query: str, receive: Callable[[bytes], Awaitable[None]]) -> None:
    """Run COPY with binary output.

    A cancellation terminates the connection, and the call ends after `receive` has returned.

    Args:
        connection: A connection of asyncpg.
        query: A SELECT.
        receive: Called with each chunk of output, one at a time.

    Raises:
        CancelledError: The call was cancelled.
        Exception: Errors of the driver, and of `receive`.
    """
    copying = asyncio.create_task(_copy(connection, query, receive))
    cancelled: asyncio.CancelledError | None = None
    while not copying.done():
        try:
            await asyncio.wait([copying])
        except asyncio.CancelledError as interruption:
            cancelled = interruption
            connection.terminate()
    error = asyncio.CancelledError() if copying.cancelled() else copying.result()
    if cancelled is not None:
        raise cancelled from error
    if error is not None:
        raise error


async def _copy(connection: Any, query: str, receive: Callable[[bytes], Awaitable[None]]) -> BaseException | None:
    """Return the error instead of raising it: `asyncio.run` reports each task that raises while it shuts down."""

    async def forward(data: bytes) -> None:
        if not connection.is_closed():
            await receive(data)
        if connection.is_closed():
            raise _StopError

    try:
        await connection.copy_from_query(query, output=forward, format="binary")
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        # On a connection that this process closed, the driver may also fail with an AttributeError of its own.
        if not (isinstance(error, _StopError | AttributeError) and connection.is_closed()):
            return error
        lost = ConnectionError("the connection was lost")
        lost.__cause__ = error
        return lost
    return None
