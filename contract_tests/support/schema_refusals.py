"""Expects the same refusal of PostgreSQL tables from a check, a migration and the first use, and follows its advice."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from raw_postgres import connect, dump_through, execute

from flux_memory import PostgresConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.transfer.target.server import inspect_target


async def find_refusal(dsn: str) -> str | None:
    """Return what the first use of a database says, and a check and a migration before it; `None` if it is accepted."""
    said: list[str | None] = []

    async def say(action: Awaitable[object]) -> None:
        try:
            await action
            said.append(None)
        except SchemaError as error:
            said.append(str(error))

    async with connect(dsn) as raw:
        before = await dump_through(raw)
        await say(check_postgres(dsn, 10))
        await say(inspect_target(raw))
        async with PostgresConversationMemory(dsn, min_size=0) as memory:
            await say(memory.count_sessions())
        if said[-1] is not None:
            assert await dump_through(raw) == before
    assert len(set(said)) == 1, said
    return said[0]


async def follow_advice(dsn: str, says: str) -> bool:
    """Expect a refusal, and run the statements that it names; return whether there were any."""
    said = await find_refusal(dsn)
    assert said is not None
    assert re.search(says, said), said
    advised = re.search("Run as their owner: (.*); then retry$", said)
    if advised is not None:
        await execute(dsn, advised[1])
        assert await find_refusal(dsn) is None
    return advised is not None
