"""Tests capabilities: a backend may declare what it lacks, must then lack it, and cannot switch off a clause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bound_stores import make_reference_corrupter, make_reference_reader, run_clause, run_over_network
from forked_runs import run_forked
from limited_memories import SMALL_CONTENT_BYTES, SMALL_ID_LENGTH, limited_client, limited_factory
from outage_stores import Switch, SwitchedMemory, make_no_outage

from flux_memory.testkit import (
    ALL,
    CLAUSES,
    CORE,
    Capability,
    MemoryContract,
    Proxied,
    ReferenceMemory,
    ReferenceStore,
    known_failure,
)
from flux_memory.testkit.capabilities import MEANING
from flux_memory.testkit.contract.routes import Routes
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.mutants import MUTANTS, broken
from flux_memory.testkit.reference.networked import NetworkedMemory, ReferenceServer

pytest_plugins = ["pytester"]

CLAIMS = ("FM-CAP-001", "FM-CAP-002", "FM-CAP-003", "FM-CAP-004", "FM-NET-001")
NOWHERE = ("127.0.0.1", 9)
"""An address that no handle connects to."""
NEEDY = "FM-ORD-006"
"""A clause that needs the cursor and nothing else."""
OURS = [each.id for each in CLAUSES.values() if each.home.startswith(MemoryContract.__module__)]
ON_UPDATES = {f"FM-UPD-00{number}" for number in (1, 2, 3, 4, 5, 7, 8)} | {"FM-REV-001", "FM-REV-002", "FM-REV-005"}
"""Clauses on all parts of an update, truncation included if it is claimed."""
ON_TRUNCATION = {
    "AnyTruthTruncates",
    "AppendsBeforeItTruncates",
    "TheLargerTruncationWins",
    "TruncatesByMessageIdAlone",
    "TruncatesEveryHistory",
    "TruncationsKeepTheRevision",
    "UpdatesInTwoSteps",
}
"""Broken memories whose bug is in a truncation."""

BINDING = """
    import pytest
    from flux_memory.testkit import ALL, Capability, MemoryContract, ReferenceMemory, ReferenceStore, known_failure

    class Forgetful(ReferenceMemory):
        async def get_history(self, session_id, limit=None, **given):
            return (await super().get_history(session_id, limit, **given))[::-1]

    {above}
    class TestMine(MemoryContract):
        {within}

        @pytest.fixture
        def memory_factory(self, tmp_path):
            store = ReferenceStore(tmp_path / "reference.json")
            return lambda: {memory}(store)
"""


def run_binding(
    pytester: pytest.Pytester, *args: str, above: str = "", within: str = "pass", memory: str = "ReferenceMemory"
) -> pytest.RunResult:
    """Run a binding of the contract in a separate project."""
    pytester.makepyfile(BINDING.format(above=above, within=within, memory=memory))
    return run_forked(pytester, "-pno:cacheprovider", "-oasyncio_default_fixture_loop_scope=function", *args)


def read_outcome(pytester: pytest.Pytester, clause_id: str) -> dict[str, str]:
    """Return a clause's entry in the run's report."""
    evidence = json.loads((pytester.path / "report" / "contract.json").read_bytes())
    found: dict[str, str] = next(each for each in evidence["clauses"] if each["id"] == clause_id)["results"]["TestMine"]
    return found


def test_every_capability_has_a_meaning() -> None:
    """Each capability has a one-sentence meaning and a clause that needs it."""
    assert set(MEANING) == set(Capability)
    for capability in Capability:
        assert MEANING[capability].endswith(".")
        assert any(capability in clause.needs for clause in CLAUSES.values()), capability


@pytest.mark.parametrize("clause_id", OURS)
def test_a_clause_needs_no_more_than_it_says(clause_id: str, tmp_path: Path) -> None:
    """The clause holds on a backend that has the capabilities it needs, no others, and the smallest limits."""
    claimed = CLAUSES[clause_id].needs
    path = tmp_path / "reference.json"
    if Capability.NETWORKED in claimed:
        assert run_over_network(clause_id, limited_client(~claimed), claimed) is None
        return
    switch = Switch()
    open_memory = limited_factory(~claimed, tmp_path, switch)
    store = StoreUnderTest(
        open_memory,
        capabilities=claimed,
        max_content_bytes=SMALL_CONTENT_BYTES,
        max_id_length=SMALL_ID_LENGTH,
        corrupt_message=make_reference_corrupter(path),
        read_raw=make_reference_reader(path),
        hold_locks=switch.hold,
        outages=switch.outages(open_memory) if Capability.OUTAGES in claimed else (),
    )
    assert run_clause(clause_id, store) is None


@pytest.mark.parametrize("capability", Capability, ids=lambda each: str(each.name))
def test_claimed_and_lacking(capability: Capability, tmp_path: Path) -> None:
    """A backend that claims a capability it lacks fails a clause on claims."""
    problems = []
    for clause_id in CLAIMS:
        directory = tmp_path / clause_id
        directory.mkdir()
        open_memory = limited_factory(capability, directory)
        with Routes(Proxied(NOWHERE, lambda _, opened=open_memory: opened())) as routes:  # type: ignore[misc]
            store = StoreUnderTest(open_memory, outages=make_no_outage(open_memory), routes=routes)
            problems.append(str(run_clause(clause_id, store)))
        if f"{capability.name} is claimed, and " in problems[-1]:
            return
    pytest.fail(f"no clause on claims found it: {problems}")


@pytest.mark.parametrize("capability", Capability, ids=lambda each: str(each.name))
def test_works_and_is_not_claimed(capability: Capability, tmp_path: Path) -> None:
    """A backend that has a capability it does not claim fails a clause on claims."""
    problems = []
    for clause_id in CLAIMS:
        shared = ReferenceStore(tmp_path / f"{clause_id}.json")
        switch = Switch()
        with ReferenceServer(shared) as server, Routes(Proxied(server.address, NetworkedMemory)) as routes:
            store = StoreUnderTest(
                lambda shared=shared: ReferenceMemory(shared),  # type: ignore[misc]  # a lambda's default
                capabilities=ALL & ~capability,
                outages=switch.outages(lambda shared=shared, switch=switch: SwitchedMemory(shared, switch)),  # type: ignore[misc]
                routes=routes,
            )
            problems.append(str(run_clause(clause_id, store)))
        if f"{capability.name} is not claimed, and works" in problems[-1]:
            return
    pytest.fail(f"no clause on claims found it: {problems}")


def test_a_lack_that_raises_another_error(tmp_path: Path) -> None:
    """An absent call raises the documented error; another one, or a `NotImplementedError`, fails."""

    class Careless(ReferenceMemory):
        async def clear_all(self) -> None:
            raise NotImplementedError

    shared = ReferenceStore(tmp_path / "reference.json")
    store = StoreUnderTest(lambda: Careless(shared), capabilities=ALL & ~Capability.CLEAR_ALL)
    assert "clear_all raises NotImplementedError" in str(run_clause("FM-CAP-001", store))


class Narrow:
    """Has the methods and the arguments of the core, and no code for others."""

    def __init__(self, memory: ReferenceMemory) -> None:
        self._memory = memory
        self.update_session_title = memory.update_session_title
        self.clear_all, self.close = memory.clear_all, memory.close

    async def get_session(self, session_id: str) -> Any:
        record: Any = await self._memory.get_session(session_id)
        return record and record | {"revision": ""}

    async def create_session(self, title: str = "", metadata: Any = None, **given: Any) -> Any:
        return await self._memory.create_session(title, metadata, **given)

    async def add_message(
        self, session_id: str, role: str, content: str, metadata: Any = None, *, message_id: Any = None
    ) -> Any:
        return await self._memory.add_message(session_id, role, content, metadata, message_id=message_id)

    async def add_messages(self, session_id: str, messages: Any) -> Any:
        return await self._memory.add_messages(session_id, messages)

    async def get_history(self, session_id: str, limit: Any = None, *, before: Any = None) -> Any:
        return await self._memory.get_history(session_id, limit, before=before)

    async def get_sessions(self, limit: Any = 50, offset: Any = 0, *, user_id: Any = None, metadata: Any = None) -> Any:
        return await self._memory.get_sessions(limit, offset, user_id=user_id, metadata=metadata)

    async def count_sessions(self) -> Any:
        return await self._memory.count_sessions()

    async def delete_session(self, session_id: str) -> None:
        await self._memory.delete_session(session_id)


class Outdated(Narrow):
    """Shows revisions that no call can use."""

    async def get_session(self, session_id: str) -> Any:
        return await self._memory.get_session(session_id)


@pytest.mark.parametrize(("memory", "problem"), [(Narrow, "None"), (Outdated, "REVISIONS is not claimed")])
def test_a_lack_needs_no_code(memory: type[Narrow], problem: str, tmp_path: Path) -> None:
    """A missing method or argument counts as refused; a revision in a record does not count as missing."""
    shared = ReferenceStore(tmp_path / "reference.json")
    opened: Any = lambda: memory(ReferenceMemory(shared))  # noqa: E731 - a factory in a line
    assert problem in str(run_clause("FM-CAP-001", StoreUnderTest(opened, capabilities=CORE)))


def test_a_missing_method_is_not_claimed(tmp_path: Path) -> None:
    """A claim of a method that the memory lacks is false."""
    shared = ReferenceStore(tmp_path / "reference.json")
    opened: Any = lambda: Narrow(ReferenceMemory(shared))  # noqa: E731 - a factory in a line
    found = str(run_clause("FM-CAP-001", StoreUnderTest(opened, capabilities=CORE | Capability.POP)))
    assert "POP is claimed, and refused" in found


def test_a_missing_method_is_one_false_claim(tmp_path: Path) -> None:
    """Capabilities that it would also use, such as titles, are as claimed."""
    shared = ReferenceStore(tmp_path / "reference.json")
    opened: Any = lambda: Narrow(ReferenceMemory(shared))  # noqa: E731 - a factory in a line
    claimed = CORE | Capability.FORK | Capability.RETENTION
    found = str(run_clause("FM-CAP-001", StoreUnderTest(opened, capabilities=claimed)))
    assert [line.partition(" is ")[0] for line in found.splitlines()] == ["FORK", "RETENTION"]


def test_a_clause_that_is_not_claimed_does_not_count(pytester: pytest.Pytester) -> None:
    """It counts neither as a pass nor as a failure, and the report names the missing capability."""
    within = "capabilities = ALL & ~Capability.CURSOR"
    result = run_binding(pytester, "-k", f"{NEEDY} or ORD-003", "--flux-report=report", within=within)
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=1, deselected=len(OURS) - 2)
    assert read_outcome(pytester, NEEDY) | {"test": "", "seconds": 0.0} == {
        "outcome": "not claimed",
        "reason": "cursor",
        "reproduction": "",
        "test": "",
        "seconds": 0.0,
        "known": False,
        "fault": False,
        "left_out": [],
    }
    result.stdout.fnmatch_lines(["not claimed *1"])


@pytest.mark.parametrize("given", ["redis://127.0.0.1:6379", lambda address: address])
def test_a_server_without_a_way_to_open_a_memory_is_refused(given: Any) -> None:
    """The fixture returns both, and the error says so."""
    with pytest.raises(TypeError, match=r"return Proxied\(server, open\)"):
        Routes(given)


def test_claims_are_in_the_report(pytester: pytest.Pytester) -> None:
    """The report shows what was claimed and what was found."""
    within = "capabilities = ALL & ~(Capability.TITLES | Capability.OUTAGES | Capability.NETWORKED)"
    run_binding(pytester, "-k", "FM-CAP or NET-001", "--flux-report=report", within=within).assert_outcomes(
        passed=4, failed=1, deselected=len(OURS) - 5
    )
    evidence = json.loads((pytester.path / "report" / "contract.json").read_bytes())
    found = {each["name"]: (each["claimed"], each["outcome"]) for each in evidence["backends"][0]["capabilities"]}
    assert found["titles"] == (False, "works")
    assert found["several processes"] == (True, "works")
    assert len(found) == len(Capability)


def test_the_option_for_a_factory(pytester: pytest.Pytester) -> None:
    """With a factory, an option declares what the backend lacks; a wrong name is refused."""
    run_binding(pytester, "-k", NEEDY, "--flux-without=titles,cursor").assert_outcomes(
        skipped=1, deselected=len(OURS) - 1
    )
    refused = run_binding(pytester, "-k", NEEDY, "--flux-without=wings", "-n", "1")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--flux-without: there is no wings; there are BATCH, *"])


@pytest.mark.parametrize(
    "within",
    [
        "test_limit_takes_the_newest = None",
        "async def test_limit_takes_the_newest(self, store): pass",
        "@pytest.mark.skip\n        async def test_limit_takes_the_newest(self, store): pass",
    ],
)
def test_a_clause_cannot_be_replaced(pytester: pytest.Pytester, within: str) -> None:
    """A subclass that overrides or deletes a clause fails at collection, with advice."""
    result = run_binding(pytester, within=within)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*TypeError: TestMine replaces test_limit_takes_the_newest*FM-ORD-003*@known_failure*"]
    )


def test_a_clause_cannot_be_hidden_by_another_base() -> None:
    """A class before the contract in the bases of a subclass cannot replace a clause either."""

    class Hiding:
        test_limit_takes_the_newest = None

    with pytest.raises(TypeError, match="replaces test_limit_takes_the_newest, which is the clause FM-ORD-003"):
        type("TestMine", (Hiding, MemoryContract), {})


def test_a_known_failure_runs_and_is_reported(pytester: pytest.Pytester) -> None:
    """It does not fail the run, and the report gives the failure and its declared reason."""
    above = '@known_failure("FM-ORD-003", reason="newest first, until version 2")'
    result = run_binding(pytester, "-k", "ORD-003", "--flux-report=report", above=above, memory="Forgetful")
    result.assert_outcomes(xfailed=1, deselected=len(OURS) - 1)
    assert read_outcome(pytester, "FM-ORD-003")["outcome"] == "failed"
    assert "newest first, until version 2" in read_outcome(pytester, "FM-ORD-003")["reason"]


def test_a_known_failure_that_holds(pytester: pytest.Pytester) -> None:
    """An outdated declaration fails the run, so that it is removed."""
    above = '@known_failure("FM-ORD-003", reason="newest first, until version 2")'
    run_binding(pytester, "-k", "ORD-003", above=above).assert_outcomes(failed=1, deselected=len(OURS) - 1)


@pytest.mark.parametrize(
    ("clause_id", "reason", "message"), [("FM-ORD-999", "why", "no clause"), ("FM-ORD-003", " ", "say why")]
)
def test_a_known_failure_has_a_clause_and_a_reason(clause_id: str, reason: str, message: str) -> None:
    """A declaration without a known clause or without a reason is refused."""
    with pytest.raises(ValueError, match=message):
        known_failure(clause_id, reason=reason)


def test_unverified_is_never_a_pass(pytester: pytest.Pytester) -> None:
    """A clause that could not be checked is reported as unverified, and fails a strict run."""
    run_binding(pytester, "-k", "LIF-011", "--flux-report=report").assert_outcomes(skipped=1, deselected=len(OURS) - 1)
    assert read_outcome(pytester, "FM-LIF-011")["outcome"] == "unverified"
    strict = run_binding(pytester, "-k", "LIF-011", "--flux-strict")
    strict.assert_outcomes(failed=1, deselected=len(OURS) - 1)
    strict.stdout.fnmatch_lines(["*FM-LIF-011 is unverified, and the run is strict: override the fixture*"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, each in MUTANTS.items() if each.caught_by in ON_UPDATES])
def test_a_memory_that_does_not_truncate_is_held_to_the_rest(name: str) -> None:
    """Without TRUNCATE, clauses on updates and revisions still catch each bug that is not one of truncation."""
    memory, shared = broken(name, ReferenceMemory), ReferenceStore()
    store = StoreUnderTest(lambda: memory(shared), capabilities=ALL & ~Capability.TRUNCATE)
    caught = run_clause(MUTANTS[name].caught_by, store) is not None
    assert caught == (name not in ON_TRUNCATION)
