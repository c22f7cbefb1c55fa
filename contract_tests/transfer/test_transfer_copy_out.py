"""A cancelled COPY ends without a "Fatal error" of the driver, whichever moment the cancellation hits."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from flux_memory.transfer.target.copy_out import copy_out

MANY_CHUNKS = "SELECT repeat('x', 1000) FROM generate_series(1, 5000)"
MOMENTS = 60


@pytest.mark.asyncio
async def test_cancelled_at_each_turn_of_the_loop_it_ends_silently(flux_memory_postgres_dsn: str) -> None:
    """The event loop reports no error, also where the cancellation arrives together with output."""
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    cancelled = 0
    for moment in range(1, MOMENTS + 1):
        connection = await asyncpg.connect(flux_memory_postgres_dsn)

        async def receive(data: bytes) -> None:
            assert data
            await asyncio.sleep(0)

        copying = asyncio.create_task(copy_out(connection, MANY_CHUNKS, receive))
        for _ in range(moment):
            await asyncio.sleep(0)
        copying.cancel()
        try:
            await copying
        except asyncio.CancelledError:
            cancelled += 1
            assert connection.is_closed()
        # Output that was on its way arrives now.
        await asyncio.sleep(0.01)
        connection.terminate()
    assert cancelled > MOMENTS / 4
    assert reported == []


@pytest.mark.asyncio
async def test_an_error_of_the_receiver_is_raised_and_the_connection_stays(flux_memory_postgres_dsn: str) -> None:
    """A full disk on the reading side is reported as such, and the transaction can be rolled back."""
    connection = await asyncpg.connect(flux_memory_postgres_dsn)

    async def receive(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await copy_out(connection, MANY_CHUNKS, receive)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.asyncio
async def test_a_connection_lost_in_the_middle_is_an_error(flux_memory_postgres_dsn: str) -> None:
    """Output that ends early is never taken for a complete one."""
    connection = await asyncpg.connect(flux_memory_postgres_dsn)

    async def receive(data: bytes) -> None:
        connection.terminate()

    with pytest.raises(ConnectionError, match="lost"):
        await copy_out(connection, MANY_CHUNKS, receive)
