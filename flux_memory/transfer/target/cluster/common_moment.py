"""Reads the servers of a cluster, each at one moment, and finds out whether these moments show the same state.

The servers have no common snapshot: each takes its own when the first statement of a transaction reaches it, and one
connection to each server keeps it. If the revisions of all sessions are the same before and after the snapshots were
taken, no session changed in between, and the snapshots are those of one state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from flux_memory.transfer.target.server import TRANSACTION_SETTINGS, open_connection

# One connection to each server, for all statements. The digests of all sessions pass through the coordinator.
READING: Final = f"""{TRANSACTION_SETTINGS};
SET LOCAL citus.max_adaptive_executor_pool_size = 1;
SET LOCAL citus.max_intermediate_result_size = -1
"""
# Reaches each shard, so each server.
TAKE_SNAPSHOTS: Final = "SELECT count(*) FROM sessions"
# A revision is never used again, and an entry of feedback never changed. A sum does not depend on the order.
SELECT_STATE: Final = """
SELECT
    count(*),
    sum(hashtextextended(id::text || ' ' || revision::text, 0::bigint))::text,
    sum(hashtextextended(id::text || ' ' || revision::text, 1::bigint))::text
FROM sessions
"""
SELECT_FEEDBACK_STATE: Final = """
SELECT
    count(*),
    sum(hashtextextended(id::text, 0::bigint))::text,
    sum(hashtextextended(id::text, 1::bigint))::text
FROM feedback
"""

_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.2
"""Seconds before the second attempt; before each later one as many more."""


@asynccontextmanager
async def read_cluster(connection: Any, dsn: str) -> AsyncIterator[bool]:
    """Run a transaction that reads each server at one moment, and yield whether these show the same state.

    After an error there is no ROLLBACK, as in `server.read_transaction`.

    Args:
        connection: Connected to the coordinator.
        dsn: Opens another connection, which looks for changes.
    """
    async with open_connection(dsn) as watching:
        transaction, is_common = await _take_snapshots(connection, watching)
    yield is_common
    await transaction.commit()


async def _take_snapshots(connection: Any, watching: Any) -> tuple[Any, bool]:
    """Begin a transaction; after some attempts it begins although sessions change all the time."""
    attempt = 1
    while True:
        before = await _read_state(watching)
        transaction = connection.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        await connection.execute(READING)
        await connection.fetchval(TAKE_SNAPSHOTS)
        is_common = await _read_state(watching) == before
        if is_common or attempt == _ATTEMPTS:
            return transaction, is_common
        await transaction.rollback()
        await asyncio.sleep(attempt * _PAUSE_SECONDS)
        attempt += 1


async def _read_state(connection: Any) -> list[tuple[Any, ...]]:
    async with connection.transaction(isolation="read_committed", readonly=True):
        await connection.execute(TRANSACTION_SETTINGS)
        return [tuple(await connection.fetchrow(sql)) for sql in (SELECT_STATE, SELECT_FEEDBACK_STATE)]
