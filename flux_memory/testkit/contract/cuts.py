"""Places at which a network can break during one call, measured on the same call without a break."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from flux_memory import BackendUnavailableError, Memory, deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.routes import Route
from flux_memory.testkit.contract.under_test import StoreUnderTest, gather_outcomes
from flux_memory.testkit.proxy import Break, Direction, Turn

MOST_CUTS: Final = 18
"""Limit for the cuts of one call in the fast profile: a call of many exchanges has more places."""
MOST_STALLS: Final = 3
"""The last requests of a call that end in silence: the commit of a transaction, and what is sent before it."""
PATIENT_SECONDS: Final = 20.0
"""The deadline of a call that is not kept waiting: enough to connect again over any network."""
SILENT_SECONDS: Final = 0.1
"""The least deadline of a call whose connection becomes silent."""
SILENT_FACTOR: Final = 3.0
"""The deadline of such a call in durations of a call without a break."""

_REQUEST: Final[tuple[tuple[float, Break], ...]] = ((0, "reset"), (0.5, "close"), (0.5, "silence"))
_REPLY: Final[tuple[tuple[float, Break], ...]] = (
    (0, "reset"),
    (0, "close"),
    (0, "silence"),
    (0.5, "reset"),
    (0.5, "half-close"),
    (1, "close"),
)
"""The part of a request or reply that still passes, and how the connection ends then; of a whole, all but one byte."""


class CutPlace(NamedTuple):
    """One place, and how the connection ends there; see `Proxy.cut`."""

    after: int
    direction: Direction
    how: Break
    within: float
    """The deadline for a call that meets it, in seconds."""


Trial = Callable[[Memory, "Cutter"], Awaitable[None]]
"""Part of a clause, with a handle and the cutter of its route."""


class Cutter:
    """Cuts the network of a route at each place of a call.

    Args:
        store: The store.
        route: The route that the call takes.
        share: Which cuts are this cutter's: its number, and how many cutters share them.
    """

    def __init__(self, store: StoreUnderTest, route: Route, share: tuple[int, int] = (0, 1)) -> None:
        self.route = route
        self._silent = Capability.OUTAGES in store.capabilities
        self._store = store
        self.number, self._cutters = share
        self.cuts: Sequence[CutPlace] = ()
        self.stalls: Sequence[CutPlace] = ()
        """Silence in the middle of each of the last requests of a call, in any profile and share."""

    async def measure(self, call: Awaitable[Any]) -> Any:
        """Make a call without a break, find the places in it, and return its result."""
        began = time.monotonic()
        with self.route.proxy.watch() as turns:
            result = await call
        silent = max(SILENT_SECONDS, SILENT_FACTOR * (time.monotonic() - began))
        found = [cut for cut in _places(turns, silent) if self._silent or cut.how != "silence"]
        stalls = [cut for cut in found if cut.direction == "request" and cut.how == "silence"]
        self.stalls = stalls[-MOST_STALLS:]
        # A transaction commits in its last exchange, so each place of that one counts.
        last = len(_REQUEST) + len(_REPLY)
        if len(found) > MOST_CUTS and not self._store.includes(f"more than {MOST_CUTS} cuts of a call"):
            found = [*choose_cuts(found[:-last], MOST_CUTS - last), *found[-last:]]
        self.cuts = found[self.number :: self._cutters]
        return result

    async def cut(self, cut: CutPlace, call: Awaitable[Any]) -> Any:
        """Make a call that meets a cut, and restore the network after it."""
        self.route.proxy.cut(cut.after, cut.direction, cut.how)
        try:
            with deadline(cut.within):
                return await call
        finally:
            self.route.proxy.heal()


def choose_cuts(cuts: Sequence[CutPlace], most: int) -> Sequence[CutPlace]:
    """Return a few cuts, the same ones each time; with equal steps all would be the same place of an exchange."""
    chance = random.Random(0)  # noqa: S311 - no secret
    return sorted(chance.sample(cuts, most), key=cuts.index) if len(cuts) > most else cuts


def _places(turns: Sequence[Turn], silent: float) -> Iterator[CutPlace]:
    passed: dict[Direction, int] = {"request": 0, "reply": 0}
    for direction, size in turns:
        for part, how in _REQUEST if direction == "request" else _REPLY:
            after = passed[direction] + min(int(size * part), size - 1)
            yield CutPlace(after, direction, how, silent if how == "silence" else PATIENT_SECONDS)
        passed[direction] += size


async def over_routes(store: StoreUnderTest, *trials: Trial, shares: int = 1) -> None:
    """Run trials concurrently, each with a route and a handle of its own, and close the handles.

    Args:
        store: The store.
        trials: What to run.
        shares: How often to run each, with a share of the cuts each time, because a distant store takes long for each.
    """

    async def run(trial: Trial, number: int, route: Route) -> None:
        memory = store.open_over(route)
        await trial(memory, Cutter(store, route, (number, shares)))
        await memory.close()

    runs = [(trial, number, store.add_route()) for trial in trials for number in range(shares)]
    outcomes = await gather_outcomes(*(run(*each) for each in runs))
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def check_cut_reads(
    store: StoreUnderTest,
    reads: Sequence[Callable[[Memory], Awaitable[Any]]],
    *,
    most: int | None = None,
    shares: int = 1,
) -> None:
    """Check that a read whose network breaks returns its whole answer or raises, and that the next one answers.

    Args:
        store: The store.
        reads: The calls; each has a route of its own.
        most: Limit for the cuts of each; by default that of the profile.
        shares: See `over_routes`.
    """

    async def check(read: Callable[[Memory], Awaitable[Any]], memory: Memory, cutter: Cutter) -> None:
        await read(memory)
        whole = await cutter.measure(read(memory))
        for cut in cutter.cuts[:most]:
            with suppress(BackendUnavailableError):
                assert await cutter.cut(cut, read(memory)) == whole, cut
            assert await read(memory) == whole, f"the read after {cut}"

    await over_routes(store, *(partial(check, read) for read in reads), shares=shares)
