"""The handle of a PostgreSQL store: opens it on first use, runs calls within their deadlines, and closes it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any, Final, Self, TypeVar

import asyncpg

from flux_memory import records
from flux_memory.backends.deadlines import TimeLimit, seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls
from flux_memory.backends.observation import Observers, StoreName, name_server
from flux_memory.backends.pool_stats import PoolStats
from flux_memory.backends.postgres.borrowed_pool import BorrowedPool
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import refuse_other_loop, translate
from flux_memory.backends.postgres.explaining import explain
from flux_memory.backends.postgres.opening import OpenStore, open_store
from flux_memory.backends.postgres.pool import OwnPool
from flux_memory.backends.postgres.replicas.reading import ReplicaOptions, check_lag, choose_replicas
from flux_memory.backends.postgres.write_path import WritePath
from flux_memory.backends.slow_calls import PLAN_DEADLINE_SECONDS, SlowCalls, Statements, note_statements
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn
from flux_memory.errors import InvalidInputError, InvalidTypeError

Result = TypeVar("Result")

PING: Final = "SELECT 1"


class PostgresHandle:
    """A connection pool, opened on first use, and the way to run calls on it; see `PostgresConversationMemory`."""

    def __init__(
        self,
        dsn: str | None = None,
        *,
        min_size: int = 2,
        max_size: int = 10,
        timeout: float = 30.0,
        pool: asyncpg.Pool | None = None,
        replica_dsn: str | None = None,
        max_replica_lag: float = 1.0,
        slow_call_seconds: float | None = None,
    ) -> None:
        timeout = records.check_seconds("timeout", timeout)
        max_lag = check_lag(max_replica_lag)
        if slow_call_seconds is not None:
            slow_call_seconds = records.check_seconds("slow_call_seconds", slow_call_seconds)

        def observe(store: StoreName, shown: str) -> Observers:
            return Observers(store, None if slow_call_seconds is None else SlowCalls(slow_call_seconds, shown))

        if pool is not None:
            if not all(callable(getattr(pool, name, None)) for name in ("acquire", "release")):
                raise InvalidTypeError(f"pool must be an asyncpg pool or None, not {type(pool).__name__}")
            if replica_dsn is not None:
                raise InvalidInputError("a memory with pool= has no replicas; give dsn= instead of pool=")
            shown = "a borrowed pool"
            observers = observe(StoreName("postgresql", "", pool=shown), shown)
            self._bind(shown, timeout, BorrowedPool(pool, observers), refuse_other_loop, None)
            return
        if dsn is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            settings = load_settings()
            dsn = settings.require_postgres_dsn()
            replica_dsn = settings.find_replica_dsn() if replica_dsn is None else replica_dsn
        # An invalid DSN's traceback shows the variables of this frame, too.
        dsn = SecretText(dsn) if isinstance(dsn, str) else dsn
        target = parse_dsn(dsn)
        if not records.check_count("min_size", min_size) <= records.check_count("max_size", max_size) or not max_size:
            raise InvalidInputError(
                f"min_size is {min_size} and max_size {max_size}; give 0 <= min_size <= max_size, and 1 <= max_size"
            )
        observers = observe(name_server(target), mask_dsn(dsn))
        make_pool = partial(OwnPool, target, min_size, max_size, timeout, observers)
        options = None
        if replica_dsn is not None:
            replica_dsn = SecretText(replica_dsn) if isinstance(replica_dsn, str) else replica_dsn
            options = choose_replicas(replica_dsn, max_size, max_lag, timeout)
        self._bind(mask_dsn(dsn), timeout, make_pool(), make_pool, options)

    def _bind(
        self,
        shown: str,
        timeout: float,
        pool: OwnPool | BorrowedPool,
        make_pool: Callable[[], OwnPool],
        options: ReplicaOptions | None,
    ) -> None:
        self.timeout, self._shown, self._pool = timeout, shown, pool
        self._bookmarks = None if options is None else options.bookmarks
        self._replica_observers = {} if options is None else options.observers
        kind = type(self)  # not the handle itself: it would keep itself alive
        self._life: Lifecycle[OpenStore] = Lifecycle(
            partial(open_store, pool, shown, timeout, options),
            lambda store, seconds: store.close(seconds),
            timeout,
            lambda _: kind._make_twin(shown, timeout, make_pool, options),  # noqa: SLF001 - our own
            pool.meter.observers,
        )
        self._long = LongCalls(self._life)

    @classmethod
    def _make_twin(
        cls, shown: str, timeout: float, make_pool: Callable[[], OwnPool], options: ReplicaOptions | None
    ) -> Self:
        """Return another handle on the same server, for calls from other event loops."""
        twin = cls.__new__(cls)
        twin._bind(shown, timeout, make_pool(), make_pool, options)  # noqa: SLF001 - a second constructor
        return twin

    def pool_stats(self) -> PoolStats:
        """Return the figures of the connection pool: sizes, waits and counters. Costs a few microseconds.

        It may be called at any time and from any thread, also before the first call and after `close()`.
        """
        stats = self._life.observers.pool_stats()
        if not self._replica_observers:
            return stats
        found = {shown: observers.pool_stats() for shown, observers in self._replica_observers.items()}
        return replace(stats, replicas=found)

    @on_any_loop
    async def ping(self) -> float:
        """Return the seconds of a round trip to the store, on the way that every call takes.

        The first ping opens the store, as a first call does.

        Raises:
            BackendUnavailableError: The store did not answer within the deadline.
            SchemaError: The database's schema cannot be used.
        """
        began = time.perf_counter()
        await self._rows(PING)
        return time.perf_counter() - began

    async def close(self) -> None:
        await self._life.close()
        if not self._life.forked:
            # An opening that failed may have left connections.
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, '_shown', 'not opened')!r})"

    def __del__(self) -> None:
        life: Lifecycle[OpenStore] | None = getattr(self, "_life", None)
        if life is not None and life.is_in_use:
            warn_never_closed(self)
        if life is not None and not life.forked:
            life.abandon()
            self._pool.terminate()
            if life.resource is not None and life.resource.replicas is not None:
                life.resource.replicas.terminate()

    def _rows(self, sql: str, *values: object, session_id: str | None = None) -> Awaitable[Sequence[Any]]:
        """Run a read, of one session or else of several, and return its rows."""
        return self._read(lambda _: (sql, values), session_id)

    def _read(
        self, choose: Callable[[WritePath], tuple[str, Sequence[object]]], session_id: str | None = None
    ) -> Awaitable[Sequence[Any]]:
        """Run a read that the store chooses, and return its rows; see `_rows`."""
        state = CallState(writes=False)

        async def read(store: OpenStore) -> Sequence[Any]:
            sql, values = choose(store.executor.path)
            try:
                sql = store.executor.path.statement(sql)
                if store.replicas is not None and not store.executor.path.tables:
                    return await store.replicas.fetch(state, session_id, sql, values)
                rows: list[Any] = await store.executor.run(state, methodcaller("fetch", sql, *values))
            except asyncpg.StringDataRightTruncationError:
                # A cluster cuts an id to the column's length to find its server; no session has such an id.
                return []
            return rows

        return self._run(state, read)

    async def _write(
        self,
        write: Callable[[OpenStore, CallState], Awaitable[Result]],
        seconds: float | None = None,
        *,
        session_id: str | None = None,
    ) -> Result:
        """Run a write on the open store, to one session or else to several; see `_run`."""
        state = CallState(writes=True)
        try:
            return await self._run(state, lambda store: write(store, state), seconds)
        finally:
            self._note_write(session_id)

    def _note_write(self, session_id: str | None) -> None:
        """Note a write that has ended, so that the handle's next reads show it."""
        if (bookmarks := self._bookmarks) is not None:
            bookmarks.note_write(session_id)

    async def _run(
        self, state: CallState, call: Callable[[OpenStore], Awaitable[Result]], seconds: float | None = None
    ) -> Result:
        """Run a call on the open store, within its deadline or the seconds that are left of it."""
        seconds = seconds_for(self.timeout) if seconds is None else seconds
        life = self._life
        with life.in_flight:
            try:
                with TimeLimit(seconds, life.timer):
                    return await call(life.open_now or await life.opened())
            except Exception as error:
                if isinstance(error, TimeoutError) and state.waits_for_connection:
                    self._pool.meter.note_timeout()
                translated = translate(error, self._shown, seconds, state, self._pool)
                if translated is error:
                    raise
                raise translated from error
            finally:
                if state.statements is not None:
                    note_statements(state.statements, self._explain)

    async def _explain(self, statements: Statements) -> list[str]:
        """Return the plans of statements, read on a connection of the pool."""
        state = CallState(writes=False)
        return await self._run(
            state, lambda store: store.executor.run(state, partial(explain, statements)), PLAN_DEADLINE_SECONDS
        )
