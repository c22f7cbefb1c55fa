"""A metadata filter leaves no server process at work after its caller is gone."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from raw_postgres import BUSY, wait_until_none

from flux_memory import BackendUnavailableError, PostgresConversationMemory, deadline

STORED: Final[dict[str, tuple[Any, Any]]] = {
    "numbers": ([n % 10 for n in range(40_000)], list(range(10, 26))),
    "arrays": ([[n % 10] for n in range(20_000)], [[n] for n in range(10, 18)]),
    "objects": ([{"k": n % 10} for n in range(20_000)], [{"k": n} for n in range(10, 18)]),
    "arrays in arrays": ([[[n % 10]] for n in range(20_000)], [[[n]] for n in range(10, 15)]),
}
"""A stored array, and elements that are not among its first."""


@pytest.mark.asyncio
@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "deadline"])
@pytest.mark.parametrize(("stored", "wanted"), STORED.values(), ids=STORED)
async def test_no_server_process_is_left_at_work(
    named_dsn: str, flux_postgres_dsn: str, stored: Any, wanted: Any, cancelled: bool
) -> None:
    """The server looks for a cancellation between two sessions only: the bound of a filter keeps one of them short."""
    async with PostgresConversationMemory(named_dsn) as memory:
        for _ in range(3):
            await memory.create_session(metadata={"a": stored + wanted})
        with deadline(60 if cancelled else 0.02):
            call = asyncio.ensure_future(memory.get_sessions(metadata={"a": wanted}))
            await asyncio.sleep(0.02)
            call.cancel() if cancelled else None
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(answer, asyncio.CancelledError | BackendUnavailableError | list), answer
        await wait_until_none(flux_postgres_dsn, BUSY)
        assert await memory.count_sessions() == 3
