"""Tests what opening costs far from the server: few exchanges, and the answers of single statements."""

from __future__ import annotations

import asyncio

import pytest
from raw_postgres import connect

from flux_memory import PostgresConversationMemory
from flux_memory.schema import history
from flux_memory.schema.postgres import SELECT_COLUMNS, SELECT_VERSIONS
from flux_memory.schema.postgres.faults import SELECT_FAULTS
from flux_memory.schema.postgres.narrowing import SELECT_NARROWING_FAULTS
from flux_memory.schema.postgres.one_exchange import CatalogueReader
from flux_memory.schema.postgres.tables import MEMORY, SELECT_RELATIONS
from flux_memory.schema.postgres.trust import SELECT_OPEN_SCHEMAS, SELECT_STRANGERS
from flux_memory.testkit import Proxy

CONNECTING = 4
"""TLS or not, the start, and two of SCRAM; a server with another method needs fewer."""
CHECKING = 3
CALLING = 2
"""A statement is prepared in one exchange, and runs in another."""
CREATING = 9


async def count_exchanges(dsn: str) -> int:
    """Return the requests of a first call; connecting by TCP precedes them."""
    with Proxy(dsn) as proxy, proxy.watch() as turns:
        async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
            assert await memory.count_sessions() == 0
            return sum(turn.direction == "request" for turn in turns)


@pytest.mark.asyncio
async def test_a_first_call_takes_few_exchanges(flux_empty_database: str) -> None:
    """Each one is a round trip for a function that starts cold; the schema costs more, once."""
    assert await count_exchanges(flux_empty_database) <= CONNECTING + CHECKING + CREATING + CALLING
    assert await count_exchanges(flux_empty_database) <= CONNECTING + CHECKING + CALLING


@pytest.mark.asyncio
async def test_one_exchange_returns_the_rows_of_the_statement(flux_empty_database: str) -> None:
    """Also of queries whose columns have no name, or the same; several are read at once, each for one call."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
    latest = history("postgres")[-1].version
    queries = (
        (SELECT_OPEN_SCHEMAS, None),
        (SELECT_RELATIONS, MEMORY),
        (SELECT_STRANGERS, MEMORY),
        (SELECT_VERSIONS, None),
        (SELECT_COLUMNS, None),
        (SELECT_FAULTS, latest),
        (SELECT_FAULTS, 1),
        (SELECT_NARROWING_FAULTS, 2),
        ("SELECT 'back\\slash', 1, TRUE, NULL", None),
    )
    async with connect(flux_empty_database) as connection:
        reader = CatalogueReader(connection)
        await reader.read_ahead(*queries)
        for attempt in ("read ahead", "read alone"):
            for sql, constant in queries:
                given = () if constant is None else (constant,)
                expected = [tuple(row) for row in await connection.fetch(sql, *given)]
                assert await reader.fetch(sql, constant) == expected, (attempt, sql)


@pytest.mark.asyncio
async def test_a_text_from_outside_never_becomes_sql(flux_empty_database: str) -> None:
    """The query of a copy has no parameters, so only the library's own constants are written into it."""
    async with connect(flux_empty_database) as connection:
        with pytest.raises(ValueError, match="array of the library's names"):
            await CatalogueReader(connection).fetch(SELECT_RELATIONS, "{a}'; DROP TABLE sessions; --")


@pytest.mark.asyncio
async def test_calls_wait_for_connections_that_open_already(flux_empty_database: str) -> None:
    """The first call does not wait for spare connections; calls beside it open no more than `min_size`."""
    with Proxy(flux_empty_database) as proxy:
        async with PostgresConversationMemory(proxy.dsn, min_size=3, max_size=9) as memory:
            assert await asyncio.gather(*(memory.count_sessions() for _ in range(3))) == [0] * 3
            assert proxy.connections <= 3
