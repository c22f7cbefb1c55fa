"""Tests that a memory which lacks calls that it claims is told, once and in one sentence, what to leave out."""

from __future__ import annotations

from typing import Any

import pytest
from forked_runs import run_forked

from flux_memory.testkit import ALL, CORE, Capability, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.missing_calls import advise, find_missing

pytest_plugins = ["pytester"]

OLD = """
    import pytest
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

    NEWER = "delete_sessions fork_session get_message pop_message update_session".split()

    class Old(ReferenceMemory):
        def __getattribute__(self, name):
            if name in NEWER:
                raise AttributeError(f"'Old' object has no attribute '{name}'")
            return super().__getattribute__(name)

        async def get_history(self, session_id, limit=None, *, before=None):
            return await super().get_history(session_id, limit, before=before)

    @pytest.fixture
    def memory_factory():
        store = ReferenceStore()
        return lambda: Old(store)

    class TestOld(MemoryContract):
        pass
"""
INI = "[pytest]\nasyncio_default_fixture_loop_scope = function"
SENTENCE = "the memory has no delete_sessions(), fork_session(), get_message(), pop_message(), update_session(), "


class Older:
    """A memory from before the calls that change conversations."""

    async def create_session(
        self, title: str = "", metadata: Any = None, *, session_id: str | None = None, user_id: str = ""
    ) -> None: ...
    async def add_message(self, sid: str, role: str, text: str, extra: Any = None, *, message_id: str = "") -> None: ...
    async def add_messages(self, sid: str, many: Any) -> None: ...
    async def get_history(self, sid: str, limit: int | None = None, **options: Any) -> None: ...
    async def get_session(self, sid: str) -> None: ...
    async def get_sessions(
        self, limit: int = 50, offset: int = 0, *, user_id: str = "", metadata: Any = None
    ) -> None: ...
    async def count_sessions(self) -> None: ...
    async def update_session_title(self, sid: str, title: str) -> None: ...
    async def delete_session(self, sid: str) -> None: ...
    async def clear_all(self) -> None: ...
    async def close(self) -> None: ...


def test_a_memory_with_every_call_lacks_nothing() -> None:
    """The reference model, and a memory that forwards every call, get no advice."""

    class Forwarding:
        def __init__(self) -> None:
            self._memory = ReferenceMemory(ReferenceStore())

        def __getattr__(self, name: str) -> Any:
            return getattr(self._memory, name)

    assert not find_missing(ReferenceMemory(ReferenceStore()), ALL)
    assert not find_missing(Forwarding(), ALL)


def test_a_memory_that_keeps_conversations_is_core() -> None:
    """A memory without the newer calls is told to claim `CORE` with any names of arguments."""
    missing = find_missing(Older(), ALL)
    # It takes `after` among other options; whether it works is for the clauses.
    assert advise(missing, ALL).endswith(
        "; add them, or write `capabilities = CORE | Capability.FORWARD_CURSOR` in the class"
    )
    claims = ALL & ~Capability.FORWARD_CURSOR
    assert advise(find_missing(Older(), claims), claims).endswith(
        "; add them, or write `capabilities = CORE` in the class"
    )
    assert not find_missing(Older(), CORE)


def test_the_advised_claims_are_those_that_are_left() -> None:
    """The written claims are a Python expression, the shorter of two, for any set of missing capabilities."""
    names = {"ALL": ALL, "CORE": CORE, "Capability": Capability}
    for missing in (
        Capability.POP,
        Capability.BATCH,
        Capability.BATCH | Capability.POP,
        ALL & ~CORE | Capability.BATCH,
    ):
        written = advise({each: ["x()"] for each in missing}, ALL).partition("`capabilities = ")[2].partition("`")[0]
        assert eval(written, names) == ALL & ~missing, written


def test_a_missing_argument_is_a_lack_of_its_own_capability() -> None:
    """Filters of `count_sessions` are no reason to leave out users or metadata."""
    claims = CORE | Capability.COUNT_FILTER
    missing = find_missing(Older(), claims)
    assert missing == {Capability.COUNT_FILTER: ["count_sessions(user_id=)", "count_sessions(metadata=)"]}
    assert advise(missing, claims) == (
        "the memory has no count_sessions(metadata=), count_sessions(user_id=); add them, or write `capabilities = "
        "CORE` in the class"
    )
    assert advise(missing, claims, plugged_in=True).endswith("add them, or pass --flux-without=count-filter")


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_run_names_what_to_leave_out(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    """Failures of missing calls are short, and the run ends with one line that says what the memory lacks."""
    pytester.makepyfile(test_mine=OLD)
    pytester.makeini(INI)
    result = run_forked(
        pytester,
        "-p",
        "no:cacheprovider",
        "--flux-postgres=off",
        "-k",
        "FM-POP-00 or FM-ORD-00 or FM-ORD-030",
        *options,
    )
    said = result.stdout.str()
    result.assert_outcomes(failed=10, passed=9)
    (closing,) = [line for line in said.splitlines() if line.startswith("flux-memory: TestOld: ")]
    assert closing == f"flux-memory: TestOld: {SENTENCE}get_history(after=); {closing.partition('; ')[2]}"
    assert closing.partition("; ")[2].startswith("add them, or write `capabilities = CORE | ")
    # Neither the kit's own code nor the clause's hides it.
    assert "def test_a_pop_takes_the_newest" not in said
    result.stdout.fnmatch_lines(["AttributeError: 'Old' object has no attribute 'pop_message'", f"{SENTENCE}*"])


def test_a_memory_without_a_lack_gets_no_advice(pytester: pytest.Pytester) -> None:
    """A memory whose claims fit its calls is not advised, even if a clause fails."""
    pytester.makepyfile(test_mine=OLD.replace("class TestOld(MemoryContract):\n        pass", "").rstrip() + CLAIMING)
    pytester.makeini(INI)
    result = run_forked(pytester, "-p", "no:cacheprovider", "--flux-postgres=off", "-k", "FM-ORD-003")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*the memory has no*")


CLAIMING = """

    from flux_memory.testkit import CORE
    from flux_memory.testkit.mutants import broken

    class TestOld(MemoryContract):
        capabilities = CORE

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            memory = broken("LimitTakesTheOldest", Old)
            return lambda: memory(store)
"""
