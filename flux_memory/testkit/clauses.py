"""A clause: one promise of the contract, as one pytest test whose id never changes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.evidence.versions import parse_version
from flux_memory.testkit.patience import BlockedError, unblocked

if TYPE_CHECKING:
    from flux_memory.testkit.contract.under_test import StoreUnderTest

CONTRACT_VERSION: Final = "1.0"

GROUPS: Final = {
    "TXT": "Text",
    "MET": "Metadata",
    "LIM": "Limits and look-ups",
    "ORD": "Order and paging",
    "TIM": "Times",
    "LST": "Listing and filters",
    "SES": "Sessions",
    "MSG": "Messages and retries",
    "BAT": "Batches",
    "CON": "Concurrency",
    "CAN": "Cancellation",
    "DLN": "Deadlines",
    "LIF": "Lifecycle",
    "DUR": "Durability, processes",
    "MOD": "Everything together",
    "CAP": "Claims",
}
"""The middle part of a clause's id, and what it protects."""

Test = Callable[[Any, "StoreUnderTest"], Awaitable[None] | None]

_ID: Final = re.compile(r"FM-(?P<group>[A-Z]{3})-[0-9]{3}")


@dataclass(frozen=True, slots=True)
class Clause:
    """One promise, what users lose without it, and the test that checks it."""

    id: str
    promise: str
    loses: str
    home: str
    test: Test
    fresh: bool
    away: bool
    since: str
    needs: Capability

    @property
    def group(self) -> str:
        """What the clause protects, for people."""
        return group_of(self.id)

    def words(self) -> dict[str, str]:
        """Return what people are told of the clause besides its id."""
        return {"group": self.group, "since": self.since, "promise": self.promise, "loses": self.loses}


CLAUSES: Final[dict[str, Clause]] = {}
"""Every clause that was imported, by its id."""


def group_of(clause_id: str) -> str:
    """Return what the clause with this id protects, for people."""
    return GROUPS[clause_id.split("-")[1]]


def clause(
    clause_id: str,
    *,
    promise: str,
    loses: str,
    needs: Capability = NOTHING,
    fresh: bool = False,
    away: bool = False,
    since: str = "1.0",
) -> Callable[[Test], Test]:
    """Make a method of a contract class the clause with this id.

    The method takes the `store` under test. It becomes one pytest node named `test_...[clause_id]`, collected and
    run alike under every asyncio mode, default loop scope and naming convention of the project that runs it. Its
    handles are closed when it ends.

    Args:
        clause_id: `FM-` group `-` number; it never changes and is never used again for anything else.
        promise: What a backend keeps, as a sentence.
        loses: What users lose when it does not, as a sentence.
        needs: What a backend may lack, and then this clause does not count.
        fresh: It needs a store on which nobody has ever opened a handle.
        away: It takes the store out of reach, by the binding's `outages`.
        since: The version of the contract that added it. What a minor version adds is advisory until the next one.

    Raises:
        ValueError: The id or the version is malformed, or another clause has it, or the method's name.
    """
    match = _ID.fullmatch(clause_id)
    if match is None or match["group"] not in GROUPS:
        raise ValueError(f"{clause_id!r} is no clause id; write FM-GRP-000 with a group of {sorted(GROUPS)}")
    parse_version(since)

    def register(function: Test) -> Test:
        home = f"{function.__module__}.{function.__qualname__}"
        for known in CLAUSES.values():
            if known.home != home and clause_id == known.id:
                raise ValueError(f"the clauses {known.home} and {home} have one id, {clause_id}")
            if known.home != home and function.__name__ == known.home.rpartition(".")[2]:
                # In a class that inherits both, one would hide the other.
                raise ValueError(f"the clauses {known.id} and {clause_id} have one name, {function.__name__}")
        test = _closing(function)
        CLAUSES[clause_id] = Clause(clause_id, promise, loses, home, test, fresh, away, since, needs)
        if inspect.iscoroutinefunction(test):
            test = pytest.mark.asyncio(loop_scope="function")(test)
        # pytest collects a function with this mark whatever `python_functions` says.
        test.__test__ = True  # type: ignore[attr-defined]
        test.flux_clause_id = clause_id  # type: ignore[attr-defined]
        return pytest.mark.parametrize("flux_clause", [pytest.param(clause_id, id=clause_id)])(test)

    return register


def _closing(function: Test) -> Test:
    """Bound a clause in time, close its handles on the loop on which it used them, and note that it came to its end."""
    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def run_plain(self: object, store: StoreUnderTest) -> None:
            function(self, store)
            store.finished = True

        return run_plain

    @functools.wraps(function)
    async def run(self: object, store: StoreUnderTest) -> None:
        seconds = store.patience.seconds
        try:
            with unblocked(seconds):
                async with asyncio.timeout(seconds) as deadline:
                    await function(self, store)
        except BaseException as error:
            hung = deadline.expired()
            if hung or isinstance(error, BlockedError):
                store.patience.lose()
            await store.close(quietly=True)
            if hung and not isinstance(error, BlockedError):
                pytest.fail(f"the clause was not done within {seconds:.0f} s: a call hangs")
            raise
        await store.close()
        store.finished = True

    return run
