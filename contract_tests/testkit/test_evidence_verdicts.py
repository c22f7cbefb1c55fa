"""Tests that no plugin, fixture, mark or selection passes a run whose clauses were not seen to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked_runs import run_forked

from flux_memory.testkit.evidence.document import Result, read_evidence, verdict

pytest_plugins = ["pytester"]

CONTRACT = """
    import unittest
    import pytest
    from flux_memory.testkit import ALL, Capability, ReferenceMemory, ReferenceStore, clause, known_failure
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-ORD-901", promise="Always fails.", impact="Nothing.")
        async def test_fails(self, store):
            await store.open().create_session()
            assert False, "seen to fail"

        @clause("FM-ORD-902", promise="Always fails, too.", impact="Nothing.", needs=Capability.CURSOR)
        def test_fails_too(self, store):
            assert False, "seen to fail"

    {above}
    class TestMine(Contract):
        backend = "Mine"

        @pytest.fixture
        def memory_factory(self):
            {fixture}
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)

        {within}

    @pytest.mark.ours
    def test_of_their_own():
        pass
"""
PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off", "--flux-report=report")
INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers = ours\n"


def run_contract(
    pytester: pytest.Pytester, *args: str, above: str = "", fixture: str = "", within: str = "", conftest: str = ""
) -> pytest.RunResult:
    """Run a contract of two failing clauses with a part that hides the failure."""
    pytester.makepyfile(test_mine=CONTRACT.format(above=above, fixture=fixture, within=within))
    pytester.makeini(INI)
    pytester.makeconftest(conftest)
    return run_forked(pytester, *PLAIN, *args)


def read_outcomes(directory: Path) -> dict[str, str]:
    """Return the outcomes of the two clauses by the last digits of their ids."""
    evidence = read_evidence(directory / "report")
    ids = ("FM-ORD-901", "FM-ORD-902")
    return {clause.id[-3:]: result.outcome for clause, result in evidence.results_of("Mine") if clause.id in ids}


SKIPPING = (
    CONTRACT.format(above="", fixture="", within="capabilities = ALL")
    + """
    class Skipping:
        @pytest.fixture
        def memory_factory(self):
            pytest.skip("not claimed: anything")

    class TestFixture(Skipping, TestMine):
        backend = "fixture"

    class TestSetupMethod(TestMine):
        backend = "setup_method"

        def setup_method(self):
            pytest.skip("not claimed: anything")

    class TestImportorskip(TestMine):
        backend = "importorskip"

        @pytest.fixture
        def memory_factory(self):
            pytest.importorskip("no_such_driver", reason="not claimed: anything")

    class TestUnittest(TestMine):
        backend = "unittest"

        @pytest.fixture
        def memory_factory(self):
            raise unittest.SkipTest("not claimed: anything")

    @pytest.mark.skip(reason="not claimed: anything")
    class TestMark(TestMine):
        backend = "mark"

    @pytest.mark.skipif(True, reason="not claimed: anything")
    class TestCondition(TestMine):
        backend = "condition"

    @known_failure("FM-ORD-901", reason="later")
    @known_failure("FM-ORD-902", reason="later")
    class TestKnown(Skipping, TestMine):
        backend = "known"

    del TestMine
"""
)
WORKERS = pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])


@WORKERS
def test_a_skip_with_any_reason_is_unverified(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """Only the kit marks a clause as not claimed; the text of a reason decides nothing."""
    pytester.makepyfile(test_mine=SKIPPING)
    pytester.makeini(INI)
    result = run_forked(pytester, *PLAIN, "--flux-strict", *workers)
    result.assert_outcomes(passed=1, errors=14)
    evidence = read_evidence(pytester.path / "report")
    assert len(evidence.backends) == 7
    for backend in evidence.backends:
        assert evidence.count(backend.name, "unverified") == 2, backend.name


SKIPPING_HOOKS = """
    import pytest

    def pytest_runtest_setup(item):
        if item.name == "test_fails[FM-ORD-901]":
            pytest.skip("not claimed: anything")

    def pytest_collection_modifyitems(items):
        for item in items:
            if item.name == "test_fails_too[FM-ORD-902]":
                item.add_marker(pytest.mark.skip(reason="not claimed: anything"))
    """


def test_a_skip_by_a_plugin_is_unverified(pytester: pytest.Pytester) -> None:
    """A plugin given with -p has no more authority than a fixture."""
    pytester.makepyfile(leaving_out=SKIPPING_HOOKS)
    assert run_contract(pytester, "-p", "leaving_out", "--flux-strict").ret == pytest.ExitCode.TESTS_FAILED
    assert read_outcomes(pytester.path) == {"901": "unverified", "902": "unverified"}


@WORKERS
def test_a_run_in_which_nothing_was_checked_fails(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """It fails without --flux-strict too: no clause was seen to hold, and the summary says so."""
    result = run_contract(pytester, *workers, fixture="pytest.skip('no server')")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: no clause could be checked"])


XFAILS = {
    "class": {"above": "@pytest.mark.xfail(reason='advisory: soon', strict=False)"},
    "without reason": {"above": "@pytest.mark.xfail"},
    "module": {"above": "pytestmark = pytest.mark.xfail(reason='advisory: soon', strict=False)"},
    "beside a known failure": {
        "above": "@known_failure('FM-ORD-901', reason='later')\n    @pytest.mark.xfail(reason='soon', strict=False)"
    },
}


@pytest.mark.parametrize("way", XFAILS)
def test_an_xfail_of_others_is_a_usage_error(pytester: pytest.Pytester, way: str) -> None:
    """A mark does not excuse a clause; the error names the decorator that does."""
    result = run_contract(pytester, **XFAILS[way])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*test_fails*: only @known_failure(clause_id, reason=...) above the class may declare*"]
    )


LATE_XFAILS = {
    "in a worker": ({"above": "@pytest.mark.xfail(reason='advisory: soon', strict=False)"}, ("-n1",)),
    "not run": ({"above": "@pytest.mark.xfail(reason='advisory: soon', run=False)"}, ("-n1",)),
    "called": ({"fixture": "pytest.xfail('advisory: soon')"}, ()),
    "by a fixture": (
        {
            "within": "@pytest.fixture(autouse=True)\n"
            "        def late(self, request):\n"
            "            request.applymarker(pytest.mark.xfail(reason='advisory: soon', strict=False))"
        },
        (),
    ),
    "after collection": (
        {
            "conftest": """
                import pytest

                @pytest.hookimpl(trylast=True)
                def pytest_collection_modifyitems(items):
                    for item in items:
                        item.add_marker(pytest.mark.xfail(reason="advisory: soon", strict=False))
                """
        },
        (),
    ),
}


@pytest.mark.parametrize("way", LATE_XFAILS)
def test_an_xfail_that_comes_late_fails_its_clause(pytester: pytest.Pytester, way: str) -> None:
    """After collection, and in a worker of xdist, it cannot be a usage error: each clause fails."""
    hiding, workers = LATE_XFAILS[way]
    assert run_contract(pytester, *workers, **hiding).ret == pytest.ExitCode.TESTS_FAILED
    assert read_outcomes(pytester.path) == {"901": "failed", "902": "failed"}


GREEN = {
    "after the kit": """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport():
            report = yield
            report.outcome, report.longrepr = "passed", None
            return report
        """,
    "before the kit": """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = pytest.TestReport.from_item_and_call(item, call)
            report.outcome, report.longrepr = "passed", None
            return report
        """,
    "as it is logged": """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(report):
            report.outcome, report.longrepr = "passed", None
        """,
    "as an xfail": """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(call):
            report = yield
            if call.excinfo is not None:
                report.outcome, report.wasxfail = "skipped", "advisory: soon"
            return report
        """,
    "by swallowing the error": """
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_pyfunc_call():
            try:
                return (yield)
            except BaseException:
                return True
        """,
    "by not calling the test": """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call():
            return True
        """,
}


@pytest.mark.parametrize(
    ("way", "workers"), [*((way, ()) for way in GREEN), ("after the kit", ("-n1",)), ("as it is logged", ("-n1",))]
)
def test_a_report_turned_green_does_not_turn_the_run_green(
    pytester: pytest.Pytester, way: str, workers: tuple[str, ...]
) -> None:
    """The exception of a clause decides, and that it ran to its end; the run fails with and without --flux-strict."""
    assert run_contract(pytester, *workers, conftest=GREEN[way]).ret == pytest.ExitCode.TESTS_FAILED
    assert read_outcomes(pytester.path) == {"901": "failed", "902": "failed"}
    assert "2 of" in (badge := (pytester.path / "report" / "badge.svg").read_text())
    assert " failed</title>" in badge


@pytest.mark.parametrize(
    "selection",
    [
        ["-k", "of_their_own"],
        ["-k", "FM-ORD-901"],
        ["-m", "ours"],
        ["-m", "not asyncio"],
        ["test_mine.py::TestMine::test_fails"],
        ["-m", "ours", "-n1"],
        ["-m", "not asyncio", "-n1"],
    ],
    ids=" ".join,
)
def test_a_strict_run_runs_every_clause(pytester: pytest.Pytester, selection: list[str]) -> None:
    """Clauses deselected by -k or -m were not checked, so a strict run fails even if every test that ran passed."""
    passing = "@known_failure('FM-ORD-901', reason='later')\n    @known_failure('FM-ORD-902', reason='later')"
    result = run_contract(pytester, "--flux-strict", *selection, above=passing)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: Mine: the run is strict, and ? of 2 clauses did not run"])


def test_a_selection_passes_where_the_run_is_not_strict(pytester: pytest.Pytester) -> None:
    """Without --flux-strict a project can run its own tests, or one clause, as in any suite."""
    assert run_contract(pytester, "-k", "of_their_own").ret == 0
    assert run_contract(pytester, "-k", "FM-ORD-901", above="@known_failure('FM-ORD-901', reason='later')").ret == 0


def test_a_strict_run_has_a_clause(pytester: pytest.Pytester) -> None:
    """A module that is skipped as a whole leaves no trace of its clauses; a strict run fails nonetheless."""
    pytester.makepyfile(test_mine="import pytest\npytest.importorskip('no_such_driver')", test_other="def test(): pass")
    result = run_forked(pytester, "-p", "no:cacheprovider", "--flux-strict")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: the run is strict, and has no clause"])


@WORKERS
def test_the_kits_own_excuses_pass(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """A known failure and an unclaimed clause do not fail a run, and the evidence tells them apart."""
    above = "@known_failure('FM-ORD-901', reason='later')"
    within = "capabilities = ALL & ~Capability.CURSOR"
    assert run_contract(pytester, *workers, above=above, within=within).ret == 0
    assert read_outcomes(pytester.path) == {"901": "failed", "902": "not claimed"}
    known = {clause.id: result.known for clause, result in read_evidence(pytester.path / "report").results_of("Mine")}
    assert (known["FM-ORD-901"], known["FM-ORD-902"]) == (True, False)


def test_a_strict_run_in_which_no_clause_held_fails(pytester: pytest.Pytester) -> None:
    """A contract with every clause excused is not kept."""
    above = "@known_failure('FM-ORD-901', reason='later')"
    result = run_contract(pytester, "--flux-strict", above=above, within="capabilities = ALL & ~Capability.CURSOR")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: Mine: the run is strict, and no clause held"])


def test_a_contract_without_a_held_clause_is_not_held() -> None:
    """No badge, card or headline calls a contract held if no clause was seen to hold."""
    assert verdict([]) == ("none held", "unverified")
    assert verdict([Result("not claimed")] * 2) == ("none held, 2 not claimed", "unverified")
    assert verdict([Result("advisory"), Result("not claimed")])[1] == "unverified"
    assert verdict([Result("held"), Result("not claimed")]) == ("1 hold, 1 not claimed", "held")
