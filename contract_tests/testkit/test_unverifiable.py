"""Tests the declaration of clauses that cannot be verified: strict runs accept it, and reports show it."""

from __future__ import annotations

import pytest
from forked_runs import run_forked

from flux_memory.testkit import MemoryContract, unverifiable
from flux_memory.testkit.evidence.document import Result, read_evidence, verdict

pytest_plugins = ["pytester"]

PARTS = """
    import pytest
    from datetime import UTC, datetime
    from flux_memory.testkit import ReferenceMemory, ReferenceStore, clause, known_failure, unverifiable
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-ORD-901", promise="Holds.", impact="Nothing.")
        async def test_holds(self, store):
            await store.open().create_session()

        @clause("FM-ORD-902", promise="Needs a damaged row.", impact="Nothing.")
        async def test_damage(self, store):
            await store.corrupt_message("s", "m")

        @clause("FM-ORD-903", promise="Fails.", impact="Nothing.")
        async def test_fails(self, store):
            assert not await store.open().create_session()

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)
"""
HOSTED = """
    @unverifiable("FM-ORD-902", reason="the `service` keeps its rows to itself")
    @known_failure("FM-ORD-903", reason="later")
    class TestHosted(Contract):
        backend = "Hosted"
"""
OUTDATED = """
    @unverifiable("FM-ORD-901", reason="once")
    @unverifiable("FM-ORD-902", reason="no access")
    @unverifiable("FM-ORD-903", reason="once")
    class TestMine(Contract):
        backend = "Mine"

    @unverifiable("FM-ORD-902", reason="no access")
    class TestSkipped(Contract):
        backend = "Skipped"

        @pytest.fixture
        def corrupt_message(self):
            pytest.skip("not today")
"""
PLAIN = ("-p", "no:cacheprovider", "--flux-postgres=off", "--flux-report=report")


SHARED = """
    @known_failure("FM-ORD-903", reason="later")
    class Failing(Contract):
        pass

    @unverifiable("FM-ORD-902", reason="no access")
    class Hosted(Contract):
        pass

    class TestBoth(Hosted, Failing):
        backend = "Both"
"""


def run_bindings(pytester: pytest.Pytester, bindings: str, *args: str) -> pytest.RunResult:
    """Run a small contract on these bindings."""
    pytester.makepyfile(test_mine=PARTS + bindings)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    return run_forked(pytester, *PLAIN, *args)


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_strict_run_accepts_what_is_declared(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """The declaration is in the table, in each file and on the badge, with its reason."""
    result = run_bindings(pytester, HOSTED, "--flux-strict", *workers)
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(
        ["unverifiable *1", "unverifiable: FM-ORD-902 on Hosted: the `service` keeps its rows to itself"]
    )
    report = pytester.path / "report"
    found = {clause.id: each for clause, each in read_evidence(report).results_of("Hosted")}
    assert found["FM-ORD-902"].outcome == "unverifiable"
    assert found["FM-ORD-902"].reason == "the `service` keeps its rows to itself"
    assert "FM-ORD-902 on Hosted: unverifiable" in (report / "contract.md").read_text()
    page = (report / "contract.html").read_text()
    assert "Hosted unverifiable" in page
    assert "the `service` keeps its rows to itself" in page


def test_a_declaration_that_is_not_true_fails_the_run(pytester: pytest.Pytester) -> None:
    """A clause that holds or fails can be verified, and a fixture that skips does not show that it cannot."""
    result = run_bindings(pytester, OUTDATED, "--flux-strict")
    result.assert_outcomes(failed=2, skipped=1, errors=3)
    evidence = read_evidence(pytester.path / "report")
    mine = {clause.id: each for clause, each in evidence.results_of("Mine")}
    outcomes = [mine[f"FM-ORD-90{number}"].outcome for number in (1, 2, 3)]
    assert outcomes == ["failed", "unverifiable", "failed"]
    for number in (1, 3):
        assert "the clause can be verified; remove its @unverifiable" in mine[f"FM-ORD-90{number}"].reason
    skipped = {clause.id: each.outcome for clause, each in evidence.results_of("Skipped")}
    assert skipped["FM-ORD-902"] == "unverified"


def test_a_binding_has_the_declarations_of_all_its_bases(pytester: pytest.Pytester) -> None:
    """Classes that several bindings share may declare clauses of different groups."""
    result = run_bindings(pytester, SHARED, "--flux-strict")
    result.assert_outcomes(passed=1, skipped=1, xfailed=1)
    assert result.ret == 0


@pytest.mark.parametrize(
    ("clause_id", "reason", "message"),
    [("FM-ORD-999", "why", "no clause"), ("FM-ORD-003", " ", "say why FM-ORD-003 cannot be verified")],
)
def test_a_declaration_has_a_clause_and_a_reason(clause_id: str, reason: str, message: str) -> None:
    """A declaration without a known clause or without a reason is refused."""
    with pytest.raises(ValueError, match=message):

        @unverifiable(clause_id, reason=reason)
        class Mine(MemoryContract):
            """Never made."""


def test_the_badge_counts_what_is_unverifiable() -> None:
    """It is neither a pass nor a failure, and a contract of nothing else is not held."""
    assert verdict([Result("held"), Result("unverifiable")]) == ("1 hold, 1 unverifiable", "held")
    assert verdict([Result("unverifiable")]) == ("none held, 1 unverifiable", "unverified")
    assert verdict([Result("unverified"), Result("unverifiable")]) == ("1 of 1 unverified", "unverified")
