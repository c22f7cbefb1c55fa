"""A process with a memory under load and its metrics on a port: `scraped_load.py URL`; each outage happens once."""

from __future__ import annotations

import asyncio
import itertools
import sys
from contextlib import suppress

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from raw_postgres import with_address
from sqlite_locks import WRITE_LOCK, hold_lock

from flux_memory import BackendUnavailableError, ConversationMemory, PostgresConversationMemory, deadline
from flux_memory.operations.telemetry import instrument


async def load(memory: ConversationMemory | PostgresConversationMemory) -> None:
    """Call a memory from eight tasks until the process ends."""
    session = await memory.create_session("load")

    async def converse() -> None:
        for number in itertools.count():
            await memory.add_message(session, "user", f"message {number}")
            await memory.get_history(session, 10)
            await asyncio.sleep(0.05)

    await asyncio.gather(*(converse() for _ in range(8)))


async def come_and_go(dsn: str) -> None:
    """Open a connection, use it and close it, again and again."""
    while True:
        async with PostgresConversationMemory(dsn, min_size=0, max_size=1) as memory:
            await memory.ping()
        await asyncio.sleep(0.5)


async def suffer_on_postgres(dsn: str) -> None:
    """Have a full pool, and a server that is away."""
    async with PostgresConversationMemory(dsn, max_size=1, min_size=0) as memory:
        session = await memory.create_session()
        taken = await memory._pool.take()
        with deadline(0.1), suppress(BackendUnavailableError):
            await memory.ping()
        memory._pool.put_back(taken)
        await asyncio.gather(*(memory.add_message(session, "user", "x") for _ in range(5)))
    async with PostgresConversationMemory(with_address(dsn, port=1), timeout=5) as away:
        with deadline(0.3), suppress(BackendUnavailableError):
            await away.ping()


async def suffer_on_sqlite(path: str) -> None:
    """Wait for another process's lock, in vain."""
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        with hold_lock(path, *WRITE_LOCK), deadline(0.2), suppress(BackendUnavailableError):
            await memory.add_message(session, "user", "x")


async def main(dsn: str, path: str) -> None:
    """Load both engines, and say on which port the metrics are."""
    server, _ = start_http_server(0, "127.0.0.1")
    instrument(meter_provider=MeterProvider([PrometheusMetricReader()]))
    await suffer_on_postgres(dsn)
    await suffer_on_sqlite(path)
    async with PostgresConversationMemory(dsn) as postgres, ConversationMemory(path) as sqlite:
        print(server.server_port, flush=True)
        await asyncio.gather(load(postgres), load(sqlite), come_and_go(dsn))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
