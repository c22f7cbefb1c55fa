"""Tests the profiles of a run: fast leaves out the clauses that take long, and says so; thorough runs them."""

from __future__ import annotations

import pytest
from forked_runs import run_forked

from flux_memory.testkit.evidence.document import Result, read_evidence, verdict

pytest_plugins = ["pytester"]

CONTRACT = """
    import pytest
    from flux_memory.testkit import ReferenceMemory, ReferenceStore, clause
    from flux_memory.testkit.contract.binding import Binding

    class Contract(Binding):
        @clause("FM-AMT-901", promise="Is quick.", impact="Nothing.")
        async def test_quick(self, store):
            await store.open().create_session()

        @clause("FM-AMT-902", promise="Takes long.", impact="Time.", thorough=True)
        async def test_long(self, store):
            await store.open().create_session()

        @clause("FM-AMT-903", promise="Takes long, too.", impact="Time.", thorough=True)
        async def test_long_too(self, store):
            await store.open().create_session()

        @clause("FM-AMT-904", promise="Is quick in part.", impact="Time.")
        async def test_partly_long(self, store):
            for size in (9, 10, 11):
                if size < 10 or store.includes("more than nine sessions"):
                    await store.open().create_session()

    class TestMine(Contract):
        backend = "Mine"

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: ReferenceMemory(store)
"""
ARGUMENTS = ("-p", "no:cacheprovider", "--flux-postgres=off", "--flux-report=report", "--flux-strict")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose contract has a clause of each kind."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(test_mine=CONTRACT)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


def outcomes(project: pytest.Pytester) -> dict[str, tuple[str, str]]:
    evidence = read_evidence(project.path / "report")
    return {
        clause.id[-3:]: (result.outcome, result.reason)
        for clause, result in evidence.results_of("Mine")
        if clause.id.startswith("FM-AMT-9")
    }


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["one process", "xdist"])
def test_the_fast_profile_names_what_it_leaves_out(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """A clause that takes long is reported as left out; it neither holds nor fails a strict run."""
    result = run_forked(project, *ARGUMENTS, *workers)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "clauses that hold * 2 of 2",
            "thorough only * 2",
            "thorough only, not run: FM-AMT-902, FM-AMT-903 on Mine: pass --flux-profile=thorough",
            "thorough only, parts not run: more than nine sessions (FM-AMT-904) on Mine: pass --flux-profile=thorough",
        ]
    )
    assert outcomes(project) == {
        "901": ("held", ""),
        "902": ("thorough only", "it takes too long for the fast profile"),
        "903": ("thorough only", "it takes too long for the fast profile"),
        "904": ("held", ""),
    }
    for name, line in {
        "contract.md": "- Mine: more than nine sessions (FM-AMT-904)\n",
        "contract.html": "<p>thorough only, not run: more than nine sessions</p>",
    }.items():
        assert line in (project.path / "report" / name).read_text(encoding="utf-8")
    assert read_evidence(project.path / "report").environment["profile"] == "fast"


@pytest.mark.parametrize("option", ["--flux-profile=thorough", "--flux-model=thorough"])
def test_the_thorough_profile_runs_every_clause(project: pytest.Pytester, option: str) -> None:
    """In the thorough profile all clauses are checked; the option's older name selects it, too."""
    result = run_forked(project, *ARGUMENTS, option)
    assert result.ret == 0
    assert "thorough only" not in result.stdout.str()
    assert {outcome for outcome, _ in outcomes(project).values()} == {"held"}


def test_a_run_of_left_out_clauses_is_not_a_pass(project: pytest.Pytester) -> None:
    """A run that checked nothing fails, and its verdict is not a pass."""
    result = run_forked(project, *ARGUMENTS[:-1], "-k", "FM-AMT-902")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["flux-memory: the run fails: no clause could be checked"])
    assert verdict([Result("thorough only")]) == ("none held, 1 thorough only", "unverified")
    assert verdict([Result("held"), Result("thorough only")]) == ("1 hold, 1 thorough only", "held")
