"""The handle of a PostgreSQL store: opens it on first use, runs calls within their deadlines, and closes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from operator import methodcaller
from typing import Any, Final, Self, TypeVar

import asyncpg

from flux_memory import records
from flux_memory.backends.deadlines import seconds_for
from flux_memory.backends.lifecycle import Lifecycle, on_any_loop, warn_never_closed
from flux_memory.backends.long_calls import LongCalls
from flux_memory.backends.observation import Observers, StoreName, name_server
from flux_memory.backends.pool_stats import PoolStats
from flux_memory.backends.postgres.borrowed_pool import BorrowedPool
from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.errors import refuse_other_loop, translate_errors
from flux_memory.backends.postgres.explaining import explain
from flux_memory.backends.postgres.opening import OpenStore, open_store
from flux_memory.backends.postgres.pool import OwnPool
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
        slow_call_seconds: float | None = None,
    ) -> None:
        timeout = records.check_seconds("timeout", timeout)
        if slow_call_seconds is not None:
            slow_call_seconds = records.check_seconds("slow_call_seconds", slow_call_seconds)

        def observe(store: StoreName, shown: str) -> Observers:
            return Observers(store, None if slow_call_seconds is None else SlowCalls(slow_call_seconds, shown))

        if pool is not None:
            if not all(callable(getattr(pool, name, None)) for name in ("acquire", "release")):
                raise InvalidTypeError(f"pool must be an asyncpg pool or None, not {type(pool).__name__}")
            shown = "a borrowed pool"
            observers = observe(StoreName("postgresql", "", pool=shown), shown)
            self._bind(shown, timeout, BorrowedPool(pool, observers), refuse_other_loop)
            return
        if dsn is None:
            from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic only where it is needed

            dsn = load_settings().require_postgres_dsn()
        # An invalid DSN's traceback shows the variables of this frame, too.
        dsn = SecretText(dsn) if isinstance(dsn, str) else dsn
        target = parse_dsn(dsn)
        if not records.check_count("min_size", min_size) <= records.check_count("max_size", max_size) or not max_size:
            raise InvalidInputError(
                f"min_size is {min_size} and max_size {max_size}; give 0 <= min_size <= max_size, and 1 <= max_size"
            )
        observers = observe(name_server(target), mask_dsn(dsn))
        make_pool = partial(OwnPool, target, min_size, max_size, timeout, observers)
        self._bind(mask_dsn(dsn), timeout, make_pool(), make_pool)

    def _bind(self, shown: str, timeout: float, pool: OwnPool | BorrowedPool, make_pool: Callable[[], OwnPool]) -> None:
        self.timeout, self._shown, self._pool = timeout, shown, pool
        kind = type(self)  # not the handle itself: it would keep itself alive
        self._life: Lifecycle[OpenStore] = Lifecycle(
            partial(open_store, pool, shown, timeout),
            lambda store, seconds: store.pool.close(seconds),
            timeout,
            lambda _: kind._make_twin(shown, timeout, make_pool),  # noqa: SLF001 - our own
            pool.meter.observers,
        )
        self._long = LongCalls(self._life)

    @classmethod
    def _make_twin(cls, shown: str, timeout: float, make_pool: Callable[[], OwnPool]) -> Self:
        """Return another handle on the same server, for calls from other event loops."""
        twin = cls.__new__(cls)
        twin._bind(shown, timeout, make_pool(), make_pool)  # noqa: SLF001 - a second constructor
        return twin

    def pool_stats(self) -> PoolStats:
        """Return the figures of the connection pool: sizes, waits and counters. Costs a few microseconds.

        It may be called at any time and from any thread, also before the first call and after `close()`.
        """
        return self._life.observers.pool_stats()

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

    async def _rows(self, sql: str, *values: object) -> list[Any]:
        """Run a read and return its rows."""
        state = CallState(writes=False)
        return await self._run(state, lambda store: store.executor.run(state, methodcaller("fetch", sql, *values)))

    async def _write(
        self, write: Callable[[OpenStore, CallState], Awaitable[Result]], seconds: float | None = None
    ) -> Result:
        """Run a write on the open store; see `_run`."""
        state = CallState(writes=True)
        return await self._run(state, lambda store: write(store, state), seconds)

    async def _run(
        self, state: CallState, call: Callable[[OpenStore], Awaitable[Result]], seconds: float | None = None
    ) -> Result:
        """Run a call on the open store, within its deadline or the seconds that are left of it."""
        seconds = seconds_for(self.timeout) if seconds is None else seconds
        with self._life.in_flight(), translate_errors(self._shown, seconds, state, self._pool):
            try:
                async with asyncio.timeout(seconds):
                    return await call(await self._life.opened())
            except TimeoutError:
                if state.waits_for_connection:
                    self._pool.meter.note_timeout()
                raise
            finally:
                if state.statements is not None:
                    note_statements(state.statements, self._explain)

    async def _explain(self, statements: Statements) -> list[str]:
        """Return the plans of statements, read on a connection of the pool."""
        state = CallState(writes=False)
        return await self._run(
            state, lambda store: store.executor.run(state, partial(explain, statements)), PLAN_DEADLINE_SECONDS
        )
