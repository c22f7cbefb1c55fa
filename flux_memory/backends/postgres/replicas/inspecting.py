"""Looks once at each replica of a DSN, for `flux-memory check`."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from flux_memory.backends.postgres.one_server import ONE_SERVER
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.backends.postgres.replicas.log import PrimaryLog
from flux_memory.backends.postgres.replicas.replica import Replica
from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.dsn import parse_dsn
from flux_memory.errors import InvalidInputError

_SECONDS: Final = 3.0
"""Seconds for the connection to the primary, which has just answered, and for closing."""


class ReplicaState(NamedTuple):
    """What a look at a replica found."""

    shown: str
    """Its host and port."""
    trouble: str
    """Why reads would not use it; empty if they would."""
    bytes_behind: int
    """The log that it has not replayed, in bytes."""


async def inspect_replicas(dsn: str, replica_dsn: str) -> list[ReplicaState]:
    """Return the state of each replica.

    Args:
        dsn: The DSN of the primary.
        replica_dsn: The DSN whose hosts are the replicas.

    Raises:
        InvalidInputError: A DSN is invalid.
    """
    try:
        target = parse_dsn(replica_dsn)
    except InvalidInputError as error:
        raise type(error)(f"POSTGRES_REPLICA_DSN: {error}") from None
    pool = OwnPool(parse_dsn(dsn), 0, 1, _SECONDS)
    replicas = [Replica(target._replace(addresses=(address,)), 1) for address in target.addresses]
    try:
        sample = await PrimaryLog(RetryingExecutor(pool, ONE_SERVER)).since(time.monotonic())
        if sample is None:
            return [ReplicaState(each.shown, "the primary does not say how far its log is", 0) for each in replicas]
        await asyncio.gather(*(each.look(sample) for each in replicas))
        return [ReplicaState(each.shown, each.trouble, max(sample.position - each.replayed, 0)) for each in replicas]
    finally:
        await asyncio.gather(pool.close(_SECONDS), *(each.close(_SECONDS) for each in replicas))
