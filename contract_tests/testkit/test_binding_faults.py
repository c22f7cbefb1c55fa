"""Tests that a binding that cannot be used is an error with advice, and never a broken promise of its memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest
from forked_runs import run_forked

from flux_memory import BackendUnavailableError, ConversationMemory, Session
from flux_memory.testkit import ALL, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.preflight import Preflight
from flux_memory.testkit.evidence.document import Evidence, read_evidence
from flux_memory.testkit.verdicts import BindingFault

pytest_plugins = ["pytester"]

PARTS = """
    import pytest
    from flux_memory import PostgresConversationMemory
    from flux_memory.testkit import MemoryContract, Outage, Proxied, ReferenceMemory, ReferenceStore, known_failure

    class Binding(MemoryContract):
        memory = ReferenceMemory

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: self.memory(store)
"""
FAULTS: Final = {
    "TestAsyncFixture": """
        @pytest.fixture
        async def memory_factory(self):
            return lambda: ReferenceMemory(ReferenceStore())
        """,
    "TestMemory": """
        @pytest.fixture
        def memory_factory(self):
            return ReferenceMemory(ReferenceStore())
        """,
    "TestText": """
        @pytest.fixture
        def memory_factory(self):
            return "chat.db"
        """,
    "TestAsyncFactory": """
        @pytest.fixture
        def memory_factory(self):
            async def open_memory():
                return ReferenceMemory(ReferenceStore())
            return open_memory
        """,
    "TestNothing": """
        @pytest.fixture
        def memory_factory(self):
            return lambda: None
        """,
    "TestRaises": """
        @pytest.fixture
        def memory_factory(self):
            def open_memory():
                raise RuntimeError("no driver here")
            return open_memory
        """,
    "TestImport": """
        @pytest.fixture
        def memory_factory(self):
            import no_such_driver
        """,
    "TestMisspelt": """
        @pytest.fixture
        def memory_factory(self, tmp_pat):
            return lambda: ReferenceMemory(ReferenceStore(tmp_pat))
        """,
    "TestServiceDown": """
        @pytest.fixture
        def memory_factory(self):
            return lambda: PostgresConversationMemory("postgresql://me:s3cret@127.0.0.1:9/chat", timeout=2)
        """,
    "TestReused": """
        store_of_all = ReferenceStore()

        @pytest.fixture
        def memory_factory(self):
            return lambda: ReferenceMemory(self.store_of_all)
        """,
    "TestSame": """
        @pytest.fixture
        def memory_factory(self):
            memory = ReferenceMemory(ReferenceStore())
            return lambda: memory
        """,
    "TestClock": """
        @pytest.fixture
        def clock_at(self):
            return None
        """,
}
SAID: Final = {
    "TestAsyncFixture": "the fixture memory_factory could not be set up, *; it is a plain `def` and returns a function",
    "TestMemory": "the fixture memory_factory returned a memory, not a function: return one that opens a handle",
    "TestText": "the fixture memory_factory returned a str, not a function",
    "TestAsyncFactory": "the function that memory_factory returns is asynchronous: return a plain function",
    "TestNothing": "memory_factory() gave a NoneType, which has no method of flux_memory.Memory",
    "TestRaises": "memory_factory() raised RuntimeError: no driver here; the function that it returns opens a handle",
    "TestImport": "the fixture memory_factory could not be set up, ModuleNotFoundError: *; it is a plain",
    "TestMisspelt": "there is no fixture tmp_pat: define it, or correct the name where it is used",
    "TestServiceDown": "the store cannot be reached, BackendUnavailableError: *; start its service",
    "TestReused": "the store is not empty before the clause, an earlier clause left the session *: give each clause an",
    "TestSame": "memory_factory() returned the same handle twice: open another one at each call",
    "TestClock": "the fixture clock_at returned a NoneType, not a function",
}
CLAUSES: Final = ("-k", "FM-ORD-001 or FM-ORD-003 or FM-ORD-009")
"""The last one needs a clock."""
PLAIN: Final = ("-p", "no:cacheprovider", "--flux-postgres=off", "--flux-report=report", *CLAUSES)
INI: Final = "[pytest]\nasyncio_default_fixture_loop_scope = function"


def write_bindings(pytester: pytest.Pytester, bindings: dict[str, str], *, above: str = "") -> None:
    """Write a test module with these bindings, each with its own fixtures."""
    classes = "".join(f"\n    {above}\n    class {name}(Binding):{within}" for name, within in bindings.items())
    pytester.makepyfile(test_mine=f"{PARTS}{classes}\n    del Binding\n")
    pytester.makeini(INI)


def read_run(pytester: pytest.Pytester) -> Evidence:
    """Return the evidence of the run."""
    return read_evidence(pytester.path / "report")


def test_a_fault_of_the_binding_is_an_error_with_advice(pytester: pytest.Pytester) -> None:
    """No clause has a verdict; the first error says what to do, and the next ones are short."""
    write_bindings(pytester, FAULTS)
    result = run_forked(pytester, *PLAIN)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # The first clause of the reused store ran on an empty one.
    result.assert_outcomes(errors=3 * len(FAULTS) - 1, passed=1, deselected=result.parseoutcomes()["deselected"])
    evidence, printed = read_run(pytester), result.stdout.str()
    assert "users lose" not in printed
    assert "s3cret" not in printed
    for name in FAULTS:
        result.stdout.fnmatch_lines([f"*{name}: {SAID[name]}*"])
        result.stdout.fnmatch_lines([f"{name} cannot be used; the error of test_mine.py::{name}::* says why"])
        assert evidence.count(name, "failed") == 0
        found = [each for _, each in evidence.results_of(name) if each.outcome == "unverified"]
        assert len(found) == (2 if name == "TestReused" else 3)
        assert all(each.fault and each.fails_the_run for each in found)


def test_a_fault_is_not_excused(pytester: pytest.Pytester) -> None:
    """A known failure of a clause says nothing of a binding that cannot be used; each worker of xdist finds that."""
    above = "@known_failure('FM-ORD-001', reason='later')\n    @known_failure('FM-ORD-003', reason='later')"
    write_bindings(pytester, {"TestNothing": FAULTS["TestNothing"]}, above=above)
    result = run_forked(pytester, *PLAIN, "-n2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["errors"] == 3
    assert read_run(pytester).count("TestNothing", "unverified") == 3


BROKEN: Final = """
    class Raises(ReferenceMemory):
        async def create_session(self, *args, **kwargs):
            raise ConnectionRefusedError("broken")

    class Invents(ReferenceMemory):
        async def get_sessions(self, *args, **kwargs):
            return [{"id": "invented"}]

    class Counts(ReferenceMemory):
        async def count_sessions(self):
            return 7

    class Plain:
        def __init__(self, store):
            pass

        def create_session(self):
            return "at once"

        def close(self):
            pass

    class Leaves(ReferenceMemory):
        async def get_history(self, *args, **kwargs):
            raise LookupError("broken")

    class TestRaises(Binding):
        memory = Raises

    class TestInvents(Binding):
        memory = Invents

    class TestCounts(Binding):
        memory = Counts

    class TestPlain(Binding):
        memory = Plain

    class TestLeaves(Binding):
        memory = Leaves

    del Binding
"""


def test_a_broken_memory_is_not_a_fault_of_its_binding(pytester: pytest.Pytester) -> None:
    """Its clauses have verdicts: a call that raises, or invents a session, breaks a promise."""
    pytester.makepyfile(test_mine=PARTS + BROKEN)
    pytester.makeini(INI)
    result = run_forked(pytester, *PLAIN)
    result.assert_outcomes(failed=9, passed=6, deselected=result.parseoutcomes()["deselected"])
    evidence = read_run(pytester)
    for name, count in {"TestRaises": 3, "TestPlain": 3, "TestLeaves": 3, "TestInvents": 0, "TestCounts": 0}.items():
        assert evidence.count(name, "failed") == count


def check(preflight: Preflight, factory: Any) -> None:
    """Run the check before a clause as one that lists sessions."""
    preflight.begin("a test")
    asyncio.run(preflight.check_store(factory, claimed=ALL))


async def leave_session(store: ReferenceStore) -> None:
    """Add the session `left`."""
    async with ReferenceMemory(store) as memory:
        await memory.create_session(session_id="left")


def test_a_store_that_a_failed_clause_left_is_found() -> None:
    """The store is checked for two clauses, and again after each clause that did not run to its end."""
    preflight, store = Preflight("TestMine"), ReferenceStore()
    for _ in range(3):
        check(preflight, lambda: ReferenceMemory(store))
        preflight.end(finished=True)
    asyncio.run(leave_session(store))
    check(preflight, lambda: ReferenceMemory(store))
    preflight.end(finished=False)
    for _ in range(2):
        with pytest.raises(BindingFault, match="an earlier clause left the session 'left'"):
            check(preflight, lambda: ReferenceMemory(store))
    with pytest.raises(BindingFault, match="an earlier clause left the session 'left'"):
        preflight.refuse_unchecked()
    check(preflight, lambda: ReferenceMemory(ReferenceStore()))
    preflight.refuse_unchecked()


def test_the_check_is_not_repeated(tmp_path: Path) -> None:
    """Five clauses that hold cost two checks, of one handle each, and one more handle that is another one."""
    opened: list[ConversationMemory] = []

    def open_memory() -> ConversationMemory:
        opened.append(ConversationMemory(tmp_path / "chat.db"))
        return opened[-1]

    preflight = Preflight("TestMine")
    for _ in range(5):
        check(preflight, open_memory)
    assert len(opened) == 3


class Starting(ReferenceMemory):
    """A memory whose server needs more than the first deadline to start, and then works."""

    calls = 0

    async def get_sessions(self, *args: Any, **kwargs: Any) -> list[Session]:
        Starting.calls += 1
        if Starting.calls == 1:
            raise BackendUnavailableError("the server is starting")
        return await super().get_sessions(*args, **kwargs)


def test_a_store_that_starts_at_the_first_call_is_waited_for() -> None:
    """A cold start that outlasts the first deadline is not a fault."""
    check(Preflight("TestMine"), lambda: Starting(ReferenceStore()))
    assert Starting.calls == 2


def test_each_parameter_of_a_binding_is_checked_by_itself(pytester: pytest.Pytester) -> None:
    """A store that cannot be reached says nothing of the next parameter's."""
    within = """
        @pytest.fixture(params=["no store", "store"])
        def memory_factory(self, request):
            store = ReferenceStore()
            return (lambda: None) if request.param == "no store" else lambda: ReferenceMemory(store)
    """
    write_bindings(pytester, {"TestMine": within})
    result = run_forked(pytester, *PLAIN)
    result.assert_outcomes(errors=3, passed=3, deselected=result.parseoutcomes()["deselected"])


LATE_FAULTS: Final = {
    "TestReader": """
        @pytest.fixture
        def read_raw(self):
            return lambda session_id, message_id: {"content": "text"}
        """,
    "TestClock": """
        @pytest.fixture
        def clock_at(self):
            return lambda moment: None
        """,
    "TestNoOutages": """
        @pytest.fixture
        def outages(self):
            return None
        """,
    "TestAway": """
        @pytest.fixture
        def outages(self, memory_factory):
            return [Outage("a lock", memory_factory, lambda: None)]
        """,
    "TestServer": """
        @pytest.fixture
        def proxied_memory_factory(self):
            return Proxied("nonsense", ReferenceMemory)
        """,
}
LATE_SAID: Final = {
    "TestReader": "the function that read_raw returns gave a dict: write `async def`",
    "TestClock": "the function that clock_at returns gave a NoneType: write `@asynccontextmanager` above",
    "TestNoOutages": "the fixture outages returned None: return a list of Outage(name, open, away)",
    "TestAway": "away() of 'a lock' gave a NoneType: write `@asynccontextmanager` above",
    "TestServer": "the server of proxied_memory_factory cannot be used: the URL of the server has no port",
}


def test_a_fault_of_an_optional_fixture_ends_only_the_clauses_that_use_it(pytester: pytest.Pytester) -> None:
    """They are errors with the name of the fixture, whichever clause is first, and the other clauses hold."""
    write_bindings(pytester, LATE_FAULTS)
    pytester.makepyfile(
        conftest="""
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            items.reverse()
        """
    )
    result = run_forked(pytester, *PLAIN[:-2], "-k", "FM-ORD-001 or FM-TXT-030 or FM-TIM-003 or FM-CAP-004")
    printed = result.stdout.str()
    evidence = read_run(pytester)
    for name, said in LATE_SAID.items():
        assert said in printed
        assert evidence.count(name, "failed") == 0, name
        assert evidence.count(name, "held") >= 1, name
        assert [each.fault for _, each in evidence.results_of(name)].count(True) == 1, name
