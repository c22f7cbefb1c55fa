"""Opens the store of a PostgreSQL handle, and closes it if the event loop ends first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, NamedTuple, Protocol

from flux_memory.backends.postgres.borrowed_pool import BorrowedPool
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.distributed.finding import find_path
from flux_memory.backends.postgres.errors import translate_errors
from flux_memory.backends.postgres.one_server import ONE_SERVER
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.backends.postgres.preparing import prepare
from flux_memory.backends.postgres.replicas.reading import ReplicaOptions, ReplicaReads
from flux_memory.backends.postgres.retry import SERVER_GRACE_SECONDS, RetryingExecutor
from flux_memory.backends.postgres.write_path import WritePath
from flux_memory.backends.postgres.writers import MessageWriters
from flux_memory.errors import SchemaError

_OPENING_SHARE: Final = 0.9
"""Share of the deadline for opening; the rest lets waiting callers report the cause instead of a timeout."""
_PREPARING_SHARE: Final = 0.8
"""Share of the deadline for checking the database and its schema; then the connection is dropped."""


class OpenStore(NamedTuple):
    """The pool of a handle, and the two ways to use it."""

    pool: OwnPool | BorrowedPool
    executor: RetryingExecutor
    writers: MessageWriters
    replicas: ReplicaReads | None
    filling: asyncio.Task[None] | None
    """Opens further connections, up to `min_size`."""

    async def close(self, seconds: float) -> None:
        """Close all connections, by force after a number of seconds."""
        if self.filling is not None:
            self.filling.cancel()
        closing = [self.pool.close(seconds)]
        if self.replicas is not None:
            closing.append(self.replicas.close(seconds))
        await asyncio.gather(*closing)


class _Closable(Protocol):
    async def close(self, seconds: float, /) -> None: ...


async def open_store(
    pool: OwnPool | BorrowedPool,
    shown: str,
    timeout: float,  # noqa: ASYNC109 - shared out
    options: ReplicaOptions | None,
) -> OpenStore:
    """Connect to the server within the handle's timeout, and check and upgrade the database."""
    executor = RetryingExecutor(pool, ONE_SERVER, find_path)
    state = CallState(writes=False)
    if pool.loop_end is None:
        pool.loop_end = _close_at_end_of_loop(pool)
        await anext(pool.loop_end)
    loop = asyncio.get_running_loop()
    began = loop.time()
    filling: asyncio.Task[None] | None = None

    async def prepare_first(connection: Any) -> WritePath:
        nonlocal filling
        # Beside the checks and the first call, and only once the server has let the first connection in.
        filling = filling or loop.create_task(pool.fill())
        return await prepare(connection, shown, deadline=began + timeout * _PREPARING_SHARE)

    with translate_errors(shown, timeout * _OPENING_SHARE, state, pool):
        try:
            async with asyncio.timeout_at(began + timeout * _OPENING_SHARE):
                executor.path = await executor.run(state, prepare_first)
        except BaseException:
            if filling is not None:
                filling.cancel()
            pool.expire()
            raise
        replicas = None
        if options is not None:
            if executor.path.tables:
                # A replica's position in the coordinator's log says nothing about rows on the workers.
                raise SchemaError(
                    "the tables are distributed over a Citus cluster, and reads on replicas need the tables of one "
                    "server; leave out replica_dsn and POSTGRES_REPLICA_DSN"
                )
            replicas = ReplicaReads(options, executor)
            replicas.loop_end = _close_at_end_of_loop(replicas)
            await anext(replicas.loop_end)
            try:
                await replicas.look()
            except BaseException:
                replicas.terminate()
                raise
    return OpenStore(pool, executor, MessageWriters(executor), replicas, filling)


async def _close_at_end_of_loop(connections: _Closable) -> AsyncGenerator[None, None]:
    """Close the connections when the event loop shuts down its generators, which `asyncio.run` does last.

    By then every task was cancelled, and the server is still ending their statements. Without a close, the tasks that
    wait for it and the sockets would be destroyed with the loop, and asyncio would log each of them.
    """
    try:
        yield
    finally:
        await connections.close(SERVER_GRACE_SECONDS)
        # The sockets are closed by callbacks.
        await asyncio.sleep(0)
