"""Fixtures of the tests of the PostgreSQL backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from flux_memory import PostgresConversationMemory


@pytest_asyncio.fixture
async def impatient_memory(flux_empty_database: str) -> AsyncIterator[PostgresConversationMemory]:
    """An open handle with the sessions `one`, `two` and `held`, whose calls end within a second."""
    # A busy machine does not always create the tables within a second.
    async with PostgresConversationMemory(flux_empty_database) as maker:
        for id_ in ("one", "two", "held"):
            await maker.create_session(session_id=id_)
    async with PostgresConversationMemory(flux_empty_database, timeout=1.0) as memory:
        await memory.get_sessions(1)
        yield memory
