"""Cancels a call at every point where it suspends: by stepping its coroutine, not by sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

Result = TypeVar("Result")
When = Literal["asleep", "awoken", "turns"]

POINTS: Final = (*range(24), 28, 34, 41, 50, 60, 75, 100, 150, 250, 500)
"""Suspensions at which a call is cancelled: each of the first ones, and some of a driver that polls for the answer."""
TURNS: Final = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""Turns of the event loop after which a call is cancelled."""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Result]):
    """One call that may have been cancelled."""

    number: int
    cancelled: bool
    result: Result | None


async def cancelled_everywhere(
    call: Callable[[int], Coroutine[Any, Any, Result]],
) -> AsyncIterator[Attempt[Result]]:
    """Repeat the call, cancelled at a different point each time, and yield the outcome of each attempt.

    Each suspension is cancelled twice: as soon as the call sleeps there, and when the awaited result has arrived but
    the call has not resumed (so the result is lost). Further attempts are cancelled after a number of event loop
    turns, which reaches work in other tasks and threads. A call that never ends is left to the limit of its clause.

    Args:
        call: Makes the coroutine, given the number of the attempt.
    """
    number = 0
    for when in ("asleep", "awoken"):
        for point in POINTS:
            stepped = _CancelAt(call(number), point, when)
            outcome = await _outcome(asyncio.ensure_future(stepped.run()))
            yield Attempt(number, *outcome)
            number += 1
            if not stepped.reached:
                break
    for turns in TURNS:
        task = asyncio.ensure_future(call(number))
        await turns_of_the_loop(turns)
        task.cancel()
        yield Attempt(number, *await _outcome(task))
        number += 1


async def cut_short(call: Coroutine[Any, Any, Result], point: int, when: When) -> Result:
    """Await a call and cancel it at suspension number `point`; see `cancelled_everywhere`."""
    return await _CancelAt(call, point, when).run()


async def turns_of_the_loop(number: int) -> None:
    """Let the event loop turn this many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def _outcome(task: asyncio.Task[Result]) -> tuple[bool, Result | None]:
    await asyncio.wait({task})
    return (True, None) if task.cancelled() else (False, task.result())


class _CancelAt(Generic[Result]):
    """Awaits a call and cancels the task at the call's suspension number `point`."""

    def __init__(self, call: Coroutine[Any, Any, Result], point: int, when: When) -> None:
        self._call = call
        self._point = point
        self._when = when
        self.reached = False

    async def run(self) -> Result:
        return await self

    def __await__(self) -> Generator[Any, Any, Result]:
        steps = self._call.__await__()
        error: BaseException | None = None
        suspension = 0
        while True:
            try:
                awaited = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                result: Result = end.value
                return result
            if suspension == self._point:
                self._cancel_at(awaited)
            try:
                error = None
                yield awaited
            except BaseException as thrown:  # noqa: BLE001 - passed on to the call, which handles or raises it
                error = thrown
            suspension += 1

    def _cancel_at(self, awaited: object) -> None:
        self.reached = True
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("not in a task")
        if self._when == "awoken" and asyncio.isfuture(awaited):
            # Added before the task's own callback, and therefore run before it.
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)
