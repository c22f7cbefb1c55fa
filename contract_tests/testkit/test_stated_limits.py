"""Tests the limits that a binding states: they are checked, held to the byte, and shown in the report."""

from __future__ import annotations

import pytest
from forked_runs import run_forked

from flux_memory import MAX_CONTENT_BYTES, MAX_ID_LENGTH
from flux_memory.testkit import MemoryContract
from flux_memory.testkit.evidence.document import read_evidence

pytest_plugins = ["pytester"]

BINDINGS = """
    import pytest
    from flux_memory import InvalidInputError
    from flux_memory.testkit import MemoryContract, ReferenceMemory, ReferenceStore

    class Small(ReferenceMemory):
        most = 100_003

        async def add_message(self, session_id, role, content, *args, **kwargs):
            for name, value in (("role", role), ("content", content)):
                if len(value.encode()) > self.most:
                    raise InvalidInputError(f"{name} is too large")
            return await super().add_message(session_id, role, content, *args, **kwargs)

        async def create_session(self, title="", *args, **kwargs):
            if len(title.encode()) > self.most:
                raise InvalidInputError("title is too large")
            return await super().create_session(title, *args, **kwargs)

        async def update_session_title(self, session_id, title):
            if len(title.encode()) > self.most:
                raise InvalidInputError("title is too large")
            await super().update_session_title(session_id, title)

    class Smaller(Small):
        most = 100_002

    class TestSmall(MemoryContract):
        max_content_bytes = 100_003
        memory = Small

        @pytest.fixture
        def memory_factory(self):
            store = ReferenceStore()
            return lambda: self.memory(store)

    class TestSmaller(TestSmall):
        memory = Smaller

    class TestLarger(TestSmall):
        memory = ReferenceMemory
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_content_bytes", MAX_CONTENT_BYTES + 1),
        ("max_content_bytes", 1_000),
        ("max_content_bytes", 1e6),
        ("max_content_bytes", None),
        ("max_id_length", MAX_ID_LENGTH + 1),
        ("max_id_length", 8),
        ("max_id_length", True),
    ],
)
def test_a_limit_that_does_not_fit_is_refused(name: str, value: object) -> None:
    """A binding states an int that is at most the library's limit, and large enough for the other clauses."""
    with pytest.raises(TypeError, match=rf"TestMine\.{name} is .*; give an int from .*, or leave it out"):
        type("TestMine", (MemoryContract,), {name: value})


def test_a_stated_limit_is_held_to_the_byte(pytester: pytest.Pytester) -> None:
    """A store that accepts a byte less, or a byte more, fails a clause; the report shows the limit."""
    pytester.makepyfile(test_mine=BINDINGS)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    chosen = ("-k", "FM-LIM-003 or FM-LIM-020 or FM-LIM-021", "--flux-report=report")
    result = run_forked(pytester, "-p", "no:cacheprovider", "--flux-postgres=off", *chosen)
    evidence = read_evidence(pytester.path / "report")
    failed = {
        each.name: {clause.id for clause, found in evidence.results_of(each.name) if found.outcome == "failed"}
        for each in evidence.backends
    }
    assert failed == {"TestSmall": set(), "TestSmaller": {"FM-LIM-020"}, "TestLarger": {"FM-LIM-021"}}
    assert [each.limits for each in evidence.backends] == [{"max_content_bytes": 100_003}] * 3
    result.stdout.fnmatch_lines(["TestSmall: max_content_bytes = 100003"])
    assert "max\\_content\\_bytes = 100003" in (pytester.path / "report" / "contract.md").read_text()
    assert "max_content_bytes = 100003" in (pytester.path / "report" / "contract.html").read_text()
