"""A primary with streaming replicas, ways to hold up or to lose these, and a count of the reads that they answer."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from fault_cluster import Cluster, run_cluster
from raw_postgres import execute, fetch_rows
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.backends.postgres.replicas.replica import Replica

RECEIVER: Final = "SELECT pid FROM pg_stat_wal_receiver"
RECEIVED: Final = "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()"


class Replicated:
    """A primary and its replicas."""

    def __init__(self, primary: Cluster, replicas: list[Cluster]) -> None:
        self.primary: Final = primary
        self.replicas: Final = replicas

    @property
    def replica_dsn(self) -> str:
        """The DSN whose hosts are the replicas."""
        return _with_hosts(self.replicas)

    @property
    def any_primary_dsn(self) -> str:
        """The DSN of the primary after any promotion."""
        return f"{_with_hosts([self.primary, *self.replicas])}?target_session_attrs=read-write"

    def open(self, **arguments: Any) -> PostgresConversationMemory:
        """Return a handle that reads on the replicas."""
        return PostgresConversationMemory(self.primary.dsn, replica_dsn=self.replica_dsn, **arguments)


@contextmanager
def run_replicated(number: int = 2, *, durable: bool = True) -> Iterator[Replicated]:
    """Run a primary and a number of streaming replicas during the block."""
    with run_cluster({"wal_level": "replica"}, durable=durable) as primary:
        yield Replicated(primary, [primary.start_standby(name=f"standby{each}") for each in range(number)])


@asynccontextmanager
async def replay_paused(*replicas: Cluster) -> AsyncIterator[None]:
    """Let replicas receive the log but not replay it during the block."""
    for replica in replicas:
        await execute(replica.admin_dsn, "SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        for replica in replicas:
            await execute(replica.admin_dsn, "SELECT pg_wal_replay_resume()")


@asynccontextmanager
async def receiver_stopped(replica: Cluster) -> AsyncIterator[None]:
    """Stop the process that receives the log during the block: its server still calls it streaming."""
    ((pid,),) = await fetch_rows(replica.admin_dsn, RECEIVER)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def look_at_replicas(memory: PostgresConversationMemory) -> list[Replica]:
    """Return what an open handle knows of its replicas."""
    store = memory._life.resource
    assert store is not None
    assert store.replicas is not None
    return store.replicas.replicas


async def wait_for_use(memory: PostgresConversationMemory, number: int) -> None:
    """Read until the handle uses so many replicas, and no more."""

    async def uses() -> bool:
        await memory.get_session("none")
        return sum(replica.in_use for replica in look_at_replicas(memory)) == number

    await wait_until(uses)


async def read_own_writes(memory: PostgresConversationMemory, number: int) -> None:
    """Add to a session and read it at once; each read shows the add, in the history, the session and the listing."""
    session = await memory.create_session(user_id="own")
    for each in range(number):
        message = await memory.add_message(session, "user", f"{each}")
        assert (await memory.get_history(session, 1))[0]["id"] == message
        assert (await memory.get_message(session, message)) is not None
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == each + 1
        assert (await memory.get_sessions(1, user_id="own"))[0]["message_count"] == each + 1
    await memory.delete_session(session)
    assert await memory.get_session(session) is None
    assert await memory.count_sessions(user_id="own") == 0


class ReplicaCounts:
    """Counts the reads that the replicas of an open handle answer, and those that are left to the primary."""

    def __init__(self, memory: PostgresConversationMemory) -> None:
        self.answered = 0
        self.left = 0
        for replica in look_at_replicas(memory):
            replica.read = self._counted(replica.read)  # type: ignore[method-assign]

    def _counted(self, read: Any) -> Any:
        async def count(*arguments: Any) -> Any:
            rows = await read(*arguments)
            self.answered += rows is not None
            self.left += rows is None
            return rows

        return count


def _with_hosts(clusters: list[Cluster]) -> str:
    first, *others = (cluster.dsn.partition("@")[2].partition("/")[0] for cluster in clusters)
    return clusters[0].dsn.replace(f"@{first}/", f"@{','.join([first, *others])}/")
