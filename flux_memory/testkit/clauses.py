"""The registry of clauses. A clause is one promise of the contract, as one pytest test with a permanent id."""

from __future__ import annotations

import flux_memory.testkit.extra  # noqa: F401 - its error names the extra  # isort: skip

import asyncio
import functools
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pytest

from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.versions import parse_version

CONTRACT_VERSION: Final = "1.0"

GROUPS: Final = {
    "TXT": "Text",
    "MET": "Metadata",
    "LIM": "Limits and look-ups",
    "AMT": "Amounts",
    "ORD": "Order and paging",
    "TIM": "Times",
    "LST": "Listing and filters",
    "SES": "Sessions",
    "UPD": "Updates",
    "REV": "Revisions",
    "MSG": "Messages and retries",
    "GET": "Looking up messages",
    "POP": "Popping messages",
    "FRK": "Forks",
    "DEL": "Deletion",
    "BAT": "Batches",
    "CRE": "Sessions created by adds",
    "FBK": "Feedback",
    "CON": "Concurrency",
    "CAN": "Cancellation",
    "DLN": "Deadlines",
    "NET": "Network",
    "LIF": "Lifecycle",
    "DUR": "Durability, processes",
    "MOD": "Everything together",
    "CAP": "Claims",
}
"""The middle part of a clause's id, and the title of its group."""

Test = Callable[[Any, Any], Awaitable[None] | None]
"""A method of a contract class, and its `store`: the contract's `StoreUnderTest`, which this module does not import."""

_ID: Final = re.compile(r"FM-(?P<group>[A-Z]{3})-[0-9]{3}")


class _Store(Protocol):
    """What a clause's wrapper uses of the store under test."""

    clause_id: str
    finished: bool

    def limited(self) -> AbstractAsyncContextManager[None]: ...
    async def check_binding(self) -> None: ...

    async def close(self, *, quietly: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Clause:
    """One promise, the cost to users if it is broken, and the test that checks it."""

    id: str
    promise: str
    impact: str
    home: str
    test: Test
    fresh: bool
    away: bool
    thorough: bool
    since: str
    needs: Capability

    @property
    def group(self) -> str:
        """The title of the clause's group."""
        return group_of(self.id)

    def words(self) -> dict[str, str]:
        """Return the texts that reports show beside the id."""
        return {"group": self.group, "since": self.since, "promise": self.promise, "impact": self.impact}


CLAUSES: Final[dict[str, Clause]] = {}
"""Every imported clause, by id."""


def group_of(clause_id: str) -> str:
    """Return the title of the group of the clause with this id."""
    return GROUPS[clause_id.split("-")[1]]


def clause(
    clause_id: str,
    *,
    promise: str,
    impact: str,
    needs: Capability = NOTHING,
    fresh: bool = False,
    away: bool = False,
    thorough: bool = False,
    since: str = "1.0",
) -> Callable[[Test], Test]:
    """Register a method of a contract class as the clause with this id.

    The method takes the `store` under test. It becomes one pytest node named `test_...[clause_id]`, independent of the
    asyncio mode, the default loop scope and the naming convention of the project that runs it. Its handles are closed
    when it ends.

    Args:
        clause_id: `FM-` group `-` number. It never changes and is never reused.
        promise: The promise to users, as a sentence.
        impact: What users lose if a backend breaks it, as a sentence.
        needs: The capabilities that the clause needs; without them it does not count.
        fresh: The clause needs a store on which no handle was ever opened.
        away: The clause puts the store out of reach or breaks its network, by the binding's fixtures for that.
        thorough: The clause takes too long for the fast profile, which leaves it out and names it.
        since: The version of the contract that added it. A clause of a minor version is advisory until the next one.

    Raises:
        ValueError: the id or the version is malformed, or another clause has the id or the method's name.
    """
    match = _ID.fullmatch(clause_id)
    if match is None or match["group"] not in GROUPS:
        raise ValueError(f"{clause_id!r} is not a clause id; write FM-GRP-000 with a group of {sorted(GROUPS)}")
    parse_version(since)

    def register(function: Test) -> Test:
        home = f"{function.__module__}.{function.__qualname__}"
        for known in CLAUSES.values():
            if known.home != home and clause_id == known.id:
                raise ValueError(f"the clauses {known.home} and {home} have the same id, {clause_id}")
            if known.home != home and function.__name__ == known.home.rpartition(".")[2]:
                # In a class that inherits both, one hides the other.
                raise ValueError(f"the clauses {known.id} and {clause_id} have the same name, {function.__name__}")
        test = _closing(function, clause_id)
        CLAUSES[clause_id] = Clause(clause_id, promise, impact, home, test, fresh, away, thorough, since, needs)
        if inspect.iscoroutinefunction(test):
            test = pytest.mark.asyncio(loop_scope="function")(test)
        # pytest collects a function with this attribute under any `python_functions`.
        test.__test__ = True  # type: ignore[attr-defined]
        test.flux_clause_id = clause_id  # type: ignore[attr-defined]
        return pytest.mark.parametrize("flux_clause", [pytest.param(clause_id, id=clause_id)])(test)

    return register


def _closing(function: Test, clause_id: str) -> Test:
    """Limit a clause's time, close its handles on the loop that used them, and record that it ran to its end."""
    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def run_plain(self: object, store: _Store) -> None:
            store.clause_id = clause_id
            function(self, store)
            store.finished = True

        return run_plain

    @functools.wraps(function)
    async def run(self: object, store: _Store) -> None:
        if not _is_in_asyncio():
            pytest.fail(
                "the clause is not run by pytest-asyncio: another plugin has taken it; disable that plugin, or its "
                "mode that runs every coroutine"
            )
        store.clause_id = clause_id
        try:
            async with store.limited():
                await store.check_binding()
                await function(self, store)
        except BaseException:
            await store.close(quietly=True)
            raise
        await store.close()
        store.finished = True

    return run


def _is_in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
