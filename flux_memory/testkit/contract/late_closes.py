"""A clause on a close() that takes its deadline several times, for each thing that it waits for."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from flux_memory import deadline
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import turns_of_the_loop
from flux_memory.testkit.contract.ledger import LONG_SECONDS, Ledger
from flux_memory.testkit.contract.outages import Outage, in_each
from flux_memory.testkit.contract.under_test import StoreUnderTest, gather_outcomes

CLOSE_SECONDS: Final = 2.0
"""The deadline of a close() on a store that answers within `NEAR_SECONDS`; a slower one has more time in proportion."""
NEAR_SECONDS: Final = 0.5
OVERRUN: Final = 1.75
"""How many deadlines a close() may take: less than two, also on a busy machine or a distant store."""


class LateClosesContract(Binding):
    """The promise of a `close()` with a deadline."""

    @clause(
        "FM-DLN-008",
        promise="A close() ends by its own deadline, not by twice that, while the store is unreachable and calls with "
        "longer deadlines wait; what it reported as not stored is not stored.",
        impact="A shutdown with a limit of ten seconds takes twenty, and the process is killed before it ends.",
        needs=Capability.OUTAGES,
        away=True,
    )
    async def test_close_takes_its_deadline_once(self, store: StoreUnderTest) -> None:
        async def check(outage: Outage) -> None:
            memory = store.open_through(outage)
            ledger = Ledger(await memory.create_session())
            began = time.monotonic()
            assert await ledger.add(memory, "before")
            seconds = CLOSE_SECONDS * max(1.0, (time.monotonic() - began) / NEAR_SECONDS)
            async with outage.away():
                calls = [ledger.adding(memory, f"call {number}", within=LONG_SECONDS) for number in range(3)]
                await turns_of_the_loop(4)
                with deadline(seconds):
                    closing = asyncio.ensure_future(memory.close())
                _, late = await asyncio.wait([closing], timeout=seconds * OVERRUN)
            for call in calls:
                call.cancel()
            await gather_outcomes(closing, *calls)
            assert not late, (
                f"{outage.name}: close() with a deadline of {seconds:.1f} s had not ended after {OVERRUN} times that"
            )
            await ledger.judge(store)

        await in_each(store.outages(), check)
