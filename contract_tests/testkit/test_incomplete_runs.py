"""Tests that a run without clauses, without a plugin of the kit, or with another base of a binding says so."""

from __future__ import annotations

import unittest

import pytest
from forked_runs import run_forked

from flux_memory.testkit import MemoryContract
from flux_memory.testkit.evidence.document import read_evidence

pytest_plugins = ["pytester"]

CONTRACT = """
    import pytest
    from flux_memory.testkit import ReferenceMemory, ReferenceStore, clause, known_failure
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-ORD-901", promise="Holds.", impact="Nothing.")
        async def test_holds(self, store):
            await store.open().create_session()

        @clause("FM-ORD-902", promise="Fails.", impact="Nothing.")
        async def test_fails(self, store):
            assert not await store.open().create_session()

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)

    @known_failure("FM-ORD-902", reason="later")
    class TestMine(Contract):
        backend = "Mine"

    class TestOther(TestMine):
        pass

    def test_of_their_own():
        pass
"""
PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off")


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Two bindings of one backend: one clause holds, and the other one is known to fail."""
    pytester.makepyfile(test_mine=CONTRACT)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    return pytester


def test_a_binding_that_is_not_collected_is_named(project: pytest.Pytester) -> None:
    """A class without the prefix Test has no clauses in a run that is green; a base may say that it is one."""
    project.makepyfile(
        test_more="""
        from test_mine import Contract, TestMine

        class MineContract(TestMine): pass

        class Base(TestMine):
            __test__ = False

        class Shared(TestMine): pass

        class TestDerived(Shared): pass
        """
    )
    result = run_forked(project, *PLAIN, "-k", "of_their_own", "test_more.py", "test_mine.py")
    assert result.ret == 0
    assert result.stdout.str().count("is a binding, and pytest does not collect it") == 1
    result.stdout.fnmatch_lines(
        ["*MineContract is a binding, and pytest does not collect it: begin its name with Test*"]
    )


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_run_whose_clauses_were_all_deselected_says_so(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """A project's own tests pass, and a line says that no clause ran."""
    result = run_forked(project, *PLAIN, "-k", "of_their_own", *workers)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["flux-memory: no clause ran: all 4 of Mine were deselected"])


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_strict_run_runs_every_binding_of_a_backend(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """The clauses of one binding do not stand for those of another one with the same name of the backend."""
    result = run_forked(project, *PLAIN, "--flux-strict", "-k", "not TestOther", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: Mine: the run is strict, and 2 of 4 clauses did not run"])


PARAMETERS = """
    @known_failure("FM-ORD-902", reason="later")
    class TestBoth(Contract):
        backend = "Both"

        @pytest.fixture(params=["small", "::1 [large]"])
        def memory_factory(self, request):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)

    del TestMine, TestOther
"""


@pytest.mark.parametrize("workers", [(), ("-n1", "--dist=loadgroup")], ids=["alone", "xdist"])
def test_a_strict_run_runs_every_parameter_of_a_binding(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """The clauses on one store do not stand for those on another one that a parameter names."""
    project.makepyfile(test_mine=CONTRACT + PARAMETERS)
    assert run_forked(project, *PLAIN, "--flux-strict", *workers).ret == 0
    result = run_forked(project, *PLAIN, "--flux-strict", "-k", "not large", *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: Both: the run is strict, and 2 of 2 clauses did not run"])


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan"])
def test_a_run_of_fixtures_only_has_no_verdict(project: pytest.Pytester, option: str) -> None:
    """Clauses whose tests are not called did not run: none holds, and a strict run fails."""
    result = run_forked(project, *PLAIN, "--flux-strict", "--flux-report=report", option)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: Mine: the run is strict, and 4 of 4 clauses did not run"])
    results = [each for _, each in read_evidence(project.path / "report").results_of("Mine")]
    assert {each.outcome for each in results} == {"not run"}


def test_a_known_failure_that_pytest_is_told_to_run_as_a_test_fails(project: pytest.Pytester) -> None:
    """With --runxfail the failure is the run's, too, and the report still has its reason."""
    result = run_forked(project, *PLAIN, "--flux-report=report", "--runxfail")
    result.assert_outcomes(passed=3, failed=2)
    found = {clause.id: each for clause, each in read_evidence(project.path / "report").results_of("Mine")}
    assert (found["FM-ORD-902"].outcome, found["FM-ORD-902"].reason) == ("failed", "known: later")


@pytest.mark.parametrize(
    "plugin", ["flux_memory.testkit.report", "flux_memory.testkit.run_evidence", "flux_memory_run_evidence"]
)
def test_no_part_of_the_plugin_can_be_left_out(project: pytest.Pytester, plugin: str) -> None:
    """Without one of them a failed clause would have no result, or a strict run no verdict: each clause fails."""
    result = run_forked(project, *PLAIN, "--flux-strict", "-p", f"no:{plugin}", "-k", "holds")
    assert result.ret != 0
    output = result.stdout.str() + result.stderr.str()
    assert f"the contract needs its pytest plugin: * remove any -p no:{plugin}".partition("*")[2] in output


def test_a_test_case_of_unittest_is_refused() -> None:
    """pytest gives its tests no fixtures and no ids of clauses; the error says what to remove."""
    for bases in ((MemoryContract, unittest.TestCase), (unittest.TestCase, MemoryContract)):
        with pytest.raises(TypeError, match=r"TestMine is a unittest\.TestCase, .*; remove TestCase from its bases"):
            type("TestMine", bases, {})


@pytest.mark.parametrize("name", ["store", "flux_clause"])
def test_the_fixtures_of_the_kit_cannot_be_replaced(name: str) -> None:
    """A clause that gets another store checks nothing of the backend."""
    with pytest.raises(TypeError, match=f"TestMine replaces the fixture {name}, .*; override memory_factory instead"):
        type("TestMine", (MemoryContract,), {name: None})


EARLY = """
    import sys
    import pytest
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

    def test_what_is_imported():
        assert {"flux_memory.testkit.evidence.table", "flux_memory.testkit.evidence.files"} <= sys.modules.keys()
        assert ("flux_memory.testkit.contract.model.exploration" in sys.modules) is IMPORTED

    class TestMine(MemoryContract):
        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)
"""


@pytest.mark.parametrize(("clause", "imported"), [("FM-MOD-001", True), ("FM-ORD-001", False)])
def test_modules_are_imported_before_a_driver_can_break_it(
    pytester: pytest.Pytester, clause: str, imported: bool
) -> None:
    """A `__del__` that raises while Python compiles a module makes the import fail, so no import follows a clause."""
    pytester.makepyfile(test_mine=EARLY.replace("IMPORTED", str(imported)))
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    result = pytester.runpytest_subprocess(*PLAIN, "-k", f"what_is_imported or {clause}")
    assert result.parseoutcomes()["passed"] == 2
