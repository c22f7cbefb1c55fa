"""The process of one contender: fills a store and runs measurements on orders in JSON. Standard library only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from harness import samples
from harness.contenders import Contender, Reply, load
from harness.samples import HISTORY_LIMIT, MeasuredCall

_PERCENTILES: Final = {"p50_us": 0.50, "p95_us": 0.95, "p99_us": 0.99}
_PARALLEL_FILLS: Final = 8
_PAGE_ROWS: Final = 50


class _Window:
    """The calls between the end of the warm-up and the end of the measurement."""

    def __init__(self, callers: int) -> None:
        self.latencies: list[int] = []
        self.errors: list[str] = []
        self.by_caller = [0] * callers
        self.open()

    def open(self) -> None:
        self.first = len(self.latencies)
        self.by_caller[:] = [0] * len(self.by_caller)
        self.errors.clear()
        self.began = time.perf_counter()
        self.cpu = time.process_time()

    def figure(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        cpu = time.process_time() - self.cpu
        taken = sorted(self.latencies[self.first :])
        calls = len(taken)
        return {
            "calls": calls,
            "ops": calls / seconds,
            **{name: taken[int(part * (calls - 1))] / 1000 if taken else None for name, part in _PERCENTILES.items()},
            "cpu_us": cpu / calls * 1e6 if calls else None,
            "rss_mb": resident_mb(),
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "fewest_calls": min(self.by_caller),
            "most_calls": max(self.by_caller),
        }


def resident_mb() -> float:
    """Return the resident memory of this process; its peak if the system has no `/proc`."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


async def fill(contender: Contender, engine: str, seed: int, *, long: bool) -> None:
    """Create the sessions, and check that a history can be read back."""
    pool = samples.samples(seed, samples.LONG_HISTORY)
    wanted = [(samples.short_session(n), pool[:0]) for n in range(samples.SHORT_SESSIONS[engine])]
    if long:
        wanted += [(samples.long_session(n), pool) for n in range(samples.LONG_SESSIONS)]
    queue = iter(wanted)

    async def take() -> None:
        for session, messages in queue:
            await contender.fill(session, messages)

    await asyncio.gather(*(take() for _ in range(1 if contender.synchronous else _PARALLEL_FILLS)))
    if long:
        reply = contender.history(samples.long_session(0), HISTORY_LIMIT)
        found = reply if contender.synchronous else await reply
        if len(found) != HISTORY_LIMIT:
            raise AssertionError(f"a history of {samples.LONG_HISTORY} gave {len(found)} of {HISTORY_LIMIT} messages")


async def measure(contender: Contender, task: dict[str, Any]) -> dict[str, Any]:
    """Run calls for a fixed time and return their figures."""
    calls = samples.picks(task["engine"], task["work"], task["seed"])
    call = _call_of(contender, task["work"])
    if contender.synchronous:
        return _measure_synchronous(call, calls, task)
    window = _Window(task["concurrency"])
    stopped = False

    async def keep_calling(caller: int) -> None:
        while not stopped:
            pick = next(calls)
            began = time.perf_counter_ns()
            try:
                await call(pick)
            except Exception as error:  # noqa: BLE001 - failures are counted
                window.errors.append(f"{type(error).__name__}: {error}"[:300])
                # Yield: a loop of immediate failures would block the timer.
                await asyncio.sleep(0)
            else:
                window.latencies.append(time.perf_counter_ns() - began)
                window.by_caller[caller] += 1

    running = [asyncio.ensure_future(keep_calling(number)) for number in range(task["concurrency"])]
    await asyncio.sleep(task["warmup"])
    window.open()
    await asyncio.sleep(task["seconds"])
    figure = window.figure()
    stopped = True
    await asyncio.gather(*running)
    return figure


def _measure_synchronous(
    call: Callable[[MeasuredCall], Reply], calls: Iterator[MeasuredCall], task: dict[str, Any]
) -> dict[str, Any]:
    window = _Window(1)
    for seconds in (task["warmup"], task["seconds"]):
        window.open()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pick = next(calls)
            began = time.perf_counter_ns()
            call(pick)
            window.latencies.append(time.perf_counter_ns() - began)
            window.by_caller[0] += 1
    return window.figure()


def _call_of(contender: Contender, work: str) -> Callable[[MeasuredCall], Reply]:
    if work == "list":
        return lambda pick: contender.listing(_PAGE_ROWS)
    return lambda pick: (
        contender.history(pick.session, HISTORY_LIMIT) if pick.read else contender.add(pick.session, pick.sample)
    )


async def serve(contender: Contender, orders: Any, answer: Callable[[dict[str, Any]], None]) -> None:
    """Execute each order until the input ends."""
    for line in orders:
        order = json.loads(line)
        if order["do"] == "open":
            await contender.open(order["target"], order["connections"])
            if order["fill"]:
                await fill(contender, order["engine"], order["seed"], long=order["long"])
            answer({"versions": contender.versions(), "loop": type(asyncio.get_running_loop()).__module__})
        else:
            answer(await measure(contender, order))
    await contender.close()


def main() -> None:
    # Keep stdout for answers: a contender's own prints go to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - optional

        run = uvloop.run
    run(serve(load(sys.argv[1]), sys.stdin, lambda value: print(json.dumps(value), file=answers)))


if __name__ == "__main__":
    main()
