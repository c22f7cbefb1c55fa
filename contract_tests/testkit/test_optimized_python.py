"""Tests that a run whose assertions Python removes is refused, with what to do, instead of finding that all holds."""

from __future__ import annotations

import sys

import pytest

pytest_plugins = ["pytester"]

MINE = """
    import own_clauses
    import pytest
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

    class Forgetful(ReferenceMemory):
        async def get_history(self, *args, **kwargs):
            return []

    class TestMine(own_clauses.Contract, MemoryContract):
        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: Forgetful(store)
"""
OWN = """
    from flux_memory.testkit import clause
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-ORD-901", promise="Never holds.", impact="None.")
        async def test_own(self, store):
            assert False
"""
REWRITING = "import pytest\npytest.register_assert_rewrite('own_clauses')"
REFUSED = "*the assertions of {} do not run, so its clauses cannot fail: * run without both, or remove --assert=plain*"


def run_optimized(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run pytest under `python -O`."""
    pytester.makepyfile(test_mine=MINE, own_clauses=OWN)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    command = (sys.executable, "-O", "-m", "pytest", "-p", "no:cacheprovider", "--flux-postgres=off", "--flux-strict")
    return pytester.run(*command, *args)


@pytest.mark.parametrize(
    ("module", "conftest", "args"),
    [
        ("flux_memory.testkit.contract", "", ("--assert=plain",)),
        ("flux_memory.testkit.contract", REWRITING, ("-p", "importing_early")),
        ("own_clauses", "", ()),
    ],
    ids=["plain", "imported early", "own clauses"],
)
def test_a_run_without_assertions_is_refused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, module: str, conftest: str, args: tuple[str, ...]
) -> None:
    """No clause runs, so a broken memory is not called sound; the error is one sentence that says what to do."""
    # pytest rewrites every module of the plugins that it finds itself, whenever they are imported.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(importing_early="import flux_memory.testkit.contract")
    pytester.makeconftest(conftest)
    result = run_optimized(pytester, *args, "-p", "flux_memory.testkit.plugin", "-p", "pytest_asyncio.plugin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([REFUSED.format(module)])
    assert "flux-memory contract" not in result.stdout.str()


def test_a_worker_without_assertions_fails_its_clauses(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of xdist inherits PYTHONOPTIMIZE and cannot stop the run, so each clause is an error."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    result = run_optimized(pytester, "--assert=plain", "-n1", "-k", "FM-ORD-001")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([REFUSED.format("flux_memory.testkit.contract")])


def test_rewritten_assertions_run(pytester: pytest.Pytester) -> None:
    """Under -O a clause that pytest has rewritten is checked as ever: a broken memory fails."""
    pytester.makeconftest(REWRITING)
    result = run_optimized(pytester, "-k", "FM-ORD-001 or FM-ORD-901")
    assert result.parseoutcomes()["failed"] == 2
    assert "do not run" not in result.stdout.str()
