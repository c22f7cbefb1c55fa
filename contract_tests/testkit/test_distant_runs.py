"""Tests what a run does for a store that is far away: advice to wait in several processes, and outages at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from flux_memory.testkit import Outage, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.outages import in_each

pytest_plugins = ["pytester"]

INI: Final = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
BINDINGS: Final = """
    import asyncio
    import pytest
    from flux_memory.testkit import CORE, MemoryContract, ReferenceMemory, ReferenceStore


    class Far(ReferenceMemory):
        async def get_history(self, *args, **kwargs):
            await asyncio.sleep(0.06)
            return await super().get_history(*args, **kwargs)

        async def count_sessions(self, *args, **kwargs):
            await asyncio.sleep(0.06)
            return await super().count_sessions(*args, **kwargs)


    class TestNear(MemoryContract):
        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)


    class TestFar(MemoryContract):
        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: Far(store)


    class TestFarCore(TestFar):
        capabilities = CORE
"""
ADVICE: Final = "flux-memory: a call of {} took *ms, so the run mostly waits: *pytest -n 8"


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    """A test run with near and distant bindings."""
    pytester.makeini(INI)
    pytester.makepyfile(test_mine=BINDINGS)
    return pytester


def test_a_run_on_a_distant_store_ends_with_advice(run: pytest.Pytester) -> None:
    """Waiting needs no processor, and nothing else in the run says so."""
    result = run.runpytest_subprocess("-p", "no:randomly", "-k", "FM-ORD-001 or FM-TXT-002")
    result.assert_outcomes(passed=6, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines_random([ADVICE.format("TestFar"), ADVICE.format("TestFarCore")])
    result.stdout.no_fnmatch_line("*TestNear took*")


def test_a_run_in_several_processes_needs_no_advice(run: pytest.Pytester) -> None:
    """The processes wait at once already."""
    result = run.runpytest_subprocess("-n", "2", "-k", "FM-ORD-001")
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*mostly waits*")


@pytest.mark.parametrize("fails", [False, True])
def test_outages_of_their_own_paths_are_at_once(*, fails: bool) -> None:
    """Each is mostly waiting. Others are in turn beside them: two of them may need the same lock."""
    away: set[str] = set()
    met: dict[str, set[str]] = {}

    def make(name: str, *, has_own_path: bool) -> Outage:
        @asynccontextmanager
        async def outage() -> AsyncIterator[None]:
            away.add(name)
            yield
            away.remove(name)

        return Outage(name, lambda: ReferenceMemory(ReferenceStore()), outage, has_own_path=has_own_path)

    async def check(outage: Outage) -> None:
        async with outage.away():
            await asyncio.sleep(0)
            met[outage.name] = set(away)
            if fails and outage.name == "silent":
                raise ZeroDivisionError

    outages = [
        make("down", has_own_path=True),
        make("locked", has_own_path=False),
        make("silent", has_own_path=True),
        make("full", has_own_path=False),
    ]
    if fails:
        with pytest.raises(ZeroDivisionError):
            asyncio.run(in_each(outages, check))
    else:
        asyncio.run(in_each(outages, check))
        assert "full" not in met["locked"]
        assert "locked" not in met["full"]
    assert met["down"] == {"down", "silent", "locked"}
