"""Logs calls that take longer than a threshold, and the plans of their statements, without any value."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from flux_memory.backends.observation import Observer, Observers
from flux_memory.errors import MemoryClosedError

_LOG: Final = logging.getLogger("flux_memory.slow_calls")

PLAN_SECONDS: Final = 60.0
"""Seconds until the plan of the same statement is logged again: many slow calls must not add as many plans."""
PLAN_DEADLINE_SECONDS: Final = 5.0
"""Seconds for reading the plans of a call: `close()` waits for it."""

Statements = Mapping[str, Any]
"""The texts of a call's statements, each with what its engine needs to plan it; never a value."""
Explain = Callable[[Statements], Awaitable[Iterable[str]]]
"""Returns the plan of each statement, without running it."""


class _RunningCall:
    def __init__(self) -> None:
        self.statements: dict[str, Any] = {}
        self.explain: Explain | None = None


_CALL: Final[ContextVar[_RunningCall | None]] = ContextVar("flux_memory_slow_call", default=None)


_PLANNED: Final = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)


def has_plan(sql: str) -> bool:
    """Return whether a statement has a plan that can be read without running it."""
    return _PLANNED.match(sql) is not None


def note_statements(statements: Statements, explain: Explain) -> None:
    """Note the statements that the running call has executed; only their texts are kept.

    Args:
        statements: The statements.
        explain: Returns their plans, in case the call turns out to be slow.
    """
    if (call := _CALL.get()) is not None:
        call.statements.update(statements)
        call.explain = explain


class SlowCalls(Observer):
    """Logs each call that takes longer than a threshold, and then the plans of its statements.

    The call does not wait for the plans: they are read afterwards, by a task that takes its turn on a connection.

    Args:
        seconds: The threshold.
        shown: The store as messages show it.
    """

    def __init__(self, seconds: float, shown: str) -> None:
        self._seconds = seconds
        self._shown = shown
        self._explained: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def call(self, operation: str, handle: Observers) -> Iterator[None]:
        running = _RunningCall()
        token = _CALL.set(running)
        began = time.perf_counter()
        try:
            yield
        finally:
            _CALL.reset(token)
            if (took := time.perf_counter() - began) >= self._seconds:
                self._report(operation, took, running)

    def _report(self, operation: str, took: float, call: _RunningCall) -> None:
        _LOG.warning("slow call on %s: %s took %.3f s", self._shown, operation, took)
        now = time.monotonic()
        fresh = {
            sql: shape
            for sql, shape in call.statements.items()
            if now - self._explained.get(sql, -PLAN_SECONDS) >= PLAN_SECONDS
        }
        if call.explain is None or not fresh:
            return
        self._explained.update(dict.fromkeys(fresh, now))
        task = asyncio.get_running_loop().create_task(self._log_plans(operation, call.explain, fresh))
        # The event loop itself holds tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _log_plans(self, operation: str, explain: Explain, statements: Statements) -> None:
        try:
            plans = [*await explain(statements)]
        except MemoryClosedError:
            return
        except Exception as error:  # noqa: BLE001 - the plan is only an addition to the log
            _LOG.warning("the plan of the slow %s on %s cannot be read: %s", operation, self._shown, error)
            return
        for sql, plan in zip(statements, plans, strict=True):
            _LOG.warning(
                "plan of the slow %s on %s, read after it, without its values:\n%s\n%s",
                *(operation, self._shown, sql.strip(), plan),
            )
