"""The reference model behind a network: every call takes a round trip, and the store's clock may be coarse."""

from __future__ import annotations

import asyncio
import inspect
import random
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Final

from bound_stores import make_reference_corrupter, make_reference_reader, run_async_clause
from outage_stores import TIMEOUT_SECONDS, Switch, needs_lock

from flux_memory import BackendUnavailableError, OutcomeUnknownError
from flux_memory.backends.deadlines import seconds_for
from flux_memory.testkit import CLAUSES, MemoryContract, ReferenceMemory, ReferenceStore
from flux_memory.testkit.clauses import Clause
from flux_memory.testkit.contract.hooks import Record
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.reference.memory import READS, WRITES

LARGE: Final = frozenset({"FM-LIM-003", "FM-LIM-004", "FM-LIM-009", "FM-LIM-012"})
"""Clauses that spend seconds on large values, which has nothing to do with distance and would delay the others."""
ALONE: Final = re.compile(r"clock_at|process_time_zone|all_tasks|open_things|time\.sleep")
"""What clauses do that concerns the whole process or event loop, so that they cannot share it with others."""
AT_ONCE: Final = 64
"""Clauses that share the loop. With hundreds, a turn of the loop on a busy machine takes as long as a deadline."""

IN_A_FILE: Final = re.compile(r"corrupt_message|_compare_stored")
"""How clauses look into the store without a handle."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far away a store is.

    Args:
        seconds: A round trip; requests of one turn of the event loop arrive in any order.
        first_seconds: How long the first call on a handle takes in addition.
        clock_seconds: The resolution of the store's times, at most 1.
    """

    seconds: float
    first_seconds: float = 0.0
    clock_seconds: float = 1e-6


class DistantMemory(ReferenceMemory):
    """A correct client of a distant store.

    A request that was sent cannot be called back: it arrives after its call was cancelled, until the call's deadline.
    `close()` waits for such requests.
    """

    def __init__(self, store: ReferenceStore, distance: Distance, switch: Switch | None = None) -> None:
        super().__init__(store)
        self._distance = distance
        self._switch = switch or Switch()
        self._chance: Final = random.Random(0)
        self._sent: set[asyncio.Task[Any]] = set()
        self._ready_at: float | None = None

    async def request(self, call: Callable[[], Any], needs: Callable[[Record], bool]) -> Any:
        """Send a request, which waits at the store for the locks that it needs, and return the store's answer."""
        self._check_open()
        loop = asyncio.get_running_loop()
        seconds = seconds_for(TIMEOUT_SECONDS)
        ends = loop.time() + seconds
        if self._ready_at is None:
            self._ready_at = loop.time() + self._distance.first_seconds
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self._ready_at - loop.time())
                await self._switch.reach()
        except TimeoutError:
            raise BackendUnavailableError("the store did not answer in time; nothing was stored") from None
        self._check_open()
        sent = loop.create_task(self._travel(call, needs, ends))
        self._sent.add(sent)
        sent.add_done_callback(self._arrived)
        done, _ = await asyncio.wait({sent}, timeout=ends - loop.time())
        if not done or sent.cancelled():
            raise OutcomeUnknownError("the store did not answer in time")
        return sent.result()

    async def close(self) -> None:
        """See `Memory`."""
        self._closed = True
        while self._sent:
            await asyncio.wait(set(self._sent))

    async def _travel(self, call: Callable[[], Any], needs: Callable[[Record], bool], ends: float) -> Any:
        out = self._distance.seconds * self._chance.uniform(0.3, 0.7)
        await asyncio.sleep(out)
        await self._switch.reach(needs)
        if asyncio.get_running_loop().time() > ends:
            raise BackendUnavailableError("the request arrived after its deadline; nothing was stored")
        try:
            answer, error = await call(), None
        except Exception as raised:  # noqa: BLE001 - it travels back like an answer
            answer, error = None, raised
        await asyncio.sleep(self._distance.seconds - out)
        if error is not None:
            raise error
        return answer

    def _arrived(self, sent: asyncio.Task[Any]) -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            # The call that sent it may be gone: then asyncio would log the error.
            sent.exception()

    def _now(self) -> str:
        moment = datetime.now(UTC)
        past = moment.microsecond % round(self._distance.clock_seconds * 1e6)
        return (moment - timedelta(microseconds=past)).isoformat(timespec="microseconds")


def _at_a_distance(name: str) -> Callable[..., Any]:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        sent = partial(getattr(ReferenceMemory, name), self, *args, **kwargs)
        return await self.request(sent, partial(needs_lock, name, args, kwargs))

    return call


for _name in (*WRITES, *READS):
    setattr(DistantMemory, _name, _at_a_distance(_name))


def make_distant_store(path: Path, distance: Distance, *, shared_by_processes: bool = True) -> StoreUnderTest:
    """Return a distant store, in a file or in memory."""
    shared, switch = ReferenceStore(path if shared_by_processes else None), Switch()

    def open_memory() -> DistantMemory:
        return DistantMemory(shared, distance, switch)

    return StoreUnderTest(
        open_memory,
        corrupt_message=make_reference_corrupter(path),
        read_raw=make_reference_reader(path),
        hold_locks=switch.hold,
        outages=switch.outages(open_memory),
    )


def run_at_the_same_time(clause_ids: Iterable[str], directory: Path, distance: Distance) -> dict[str, BaseException]:
    """Run asynchronous clauses, each on its own distant store, on one event loop; return what the broken ones raised.

    A store is in a file, which takes time that is not the network's, only for clauses that look into it. The loop has
    a thread of its own: an interrupt for calls that block it, of which the main thread has one, cannot belong to
    several clauses.
    """

    stores = {
        each: make_distant_store(
            directory / f"{each}.json",
            distance,
            shared_by_processes=IN_A_FILE.search(inspect.getsource(CLAUSES[each].test)) is not None,
        )
        for each in clause_ids
    }

    async def run() -> list[BaseException | None]:
        free = asyncio.Semaphore(AT_ONCE)

        async def check(clause_id: str, store: StoreUnderTest) -> None:
            async with free:
                await run_async_clause(clause_id, store)

        return await asyncio.gather(*starmap(check, stores.items()), return_exceptions=True)

    with ThreadPoolExecutor(1) as thread:
        outcomes = thread.submit(asyncio.run, run()).result()
    return {name: outcome for name, outcome in zip(stores, outcomes, strict=True) if outcome is not None}


def choose(wanted: Callable[[Clause], bool]) -> list[str]:
    """Return the ids of the contract's clauses that are wanted."""
    ours = [each for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)]
    return [each.id for each in ours if wanted(each)]


def is_small(each: Clause) -> bool:
    """Return whether a clause is about more than amounts, and needs no server of its own."""
    return each.id not in LARGE and not each.id.startswith(("FM-AMT", "FM-NET"))


def is_sociable(each: Clause) -> bool:
    """Return whether a clause can share an event loop with others."""
    return inspect.iscoroutinefunction(each.test) and ALONE.search(inspect.getsource(each.test)) is None
