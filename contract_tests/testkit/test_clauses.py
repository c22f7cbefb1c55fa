"""Tests the parts of clauses: the registry, the recorder, and cancellation at every await."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from bound_stores import run_clause

from flux_memory.testkit import CLAUSES, MemoryContract, ReferenceMemory, ReferenceStore, clause
from flux_memory.testkit.clauses import GROUPS
from flux_memory.testkit.contract.cancel_points import cancelled_everywhere
from flux_memory.testkit.contract.under_test import StoreUnderTest


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget the clauses that a test registers."""
    before = dict(CLAUSES)
    yield
    CLAUSES.clear()
    CLAUSES.update(before)


def test_every_clause_is_in_the_contract() -> None:
    """No clause is hidden by another one's name, and `MemoryContract` includes all of them."""
    methods = {
        f"{function.__module__}.{function.__qualname__}"
        for name, function in inspect.getmembers(MemoryContract, inspect.isfunction)
        if name.startswith("test_")
    }
    homes = {known.home for known in CLAUSES.values() if known.home.startswith(MemoryContract.__module__)}
    assert methods == homes


def test_every_clause_is_a_sentence() -> None:
    """Readers who have not seen the code read the promises and the losses."""
    for known in CLAUSES.values():
        for sentence in (known.promise, known.impact):
            assert re.fullmatch(r"[^a-z].*[.]", sentence), f"{known.id}: {sentence}"
        assert known.group in GROUPS.values()


def test_two_clauses_with_one_id(registry: None) -> None:
    """An id names one promise forever."""

    def test_another(self: object, store: StoreUnderTest) -> None: ...

    with pytest.raises(ValueError, match="have the same id, FM-ORD-003"):
        clause("FM-ORD-003", promise="P.", impact="L.")(test_another)


def test_two_clauses_with_one_name(registry: None) -> None:
    """In one class, one of the two would never run."""

    def test_limit_takes_the_newest(self: object, store: StoreUnderTest) -> None: ...

    with pytest.raises(ValueError, match="FM-ORD-003 and FM-ORD-999 have the same name"):
        clause("FM-ORD-999", promise="P.", impact="L.")(test_limit_takes_the_newest)


@pytest.mark.parametrize("clause_id", ["ORD-1", "FM-ORD-1", "FM-XYZ-001", "fm-ord-001"])
def test_malformed_ids(clause_id: str) -> None:
    """Ids have one form and begin with a known group."""
    with pytest.raises(ValueError, match="is not a clause id"):
        clause(clause_id, promise="P.", impact="L.")


@pytest.mark.asyncio
async def test_a_reproduction_is_code_that_reproduces() -> None:
    """The recorder's output can be pasted and repeats the same calls."""
    store = ReferenceStore()
    tried = StoreUnderTest(lambda: ReferenceMemory(store))
    memory = tried.open()
    session = await memory.create_session("t", {"k": [1.0]})
    for number in range(3):
        await memory.add_message(session, "user", str(number), message_id=f"m{number}")
    await memory.get_history(session, 2)
    namespace: dict[str, object] = {}
    exec(tried.transcript.text(), namespace)
    again = ReferenceStore()
    repeated = StoreUnderTest(lambda: ReferenceMemory(again))
    await namespace["reproduce"](repeated.open)  # type: ignore[operator]  # it is a function
    reader = repeated.open()
    (found,) = await reader.get_sessions()
    assert [message["id"] for message in await reader.get_history(found["id"])] == ["m0", "m1", "m2"]
    await repeated.close()
    await tried.close()


@pytest.mark.asyncio
async def test_a_reproduction_passes_on_what_calls_returned() -> None:
    """Revisions, records and generated ids differ in each run, so the code takes them from the calls before."""
    store = ReferenceStore()
    tried = StoreUnderTest(lambda: ReferenceMemory(store))
    memory = tried.open()
    session = await memory.create_session("t")
    ids = await memory.add_messages(session, [{"role": "user", "content": each} for each in "abc"])
    read = await memory.get_session(session)
    assert read is not None
    changed = await memory.update_session(session, expected_revision=read["revision"], truncate_from=ids[2])
    await memory.fork_session(session, through=ids[0])
    page = await memory.get_sessions(1)
    await memory.get_sessions(before=page[-1])
    await memory.delete_sessions(inactive_since=datetime(2001, 1, 1, tzinfo=UTC))
    await memory.delete_session(session, expected_revision=changed["revision"])
    namespace: dict[str, object] = {}
    exec(tried.transcript.text(), namespace)
    again = ReferenceStore()
    repeated = StoreUnderTest(lambda: ReferenceMemory(again))
    await namespace["reproduce"](repeated.open)  # type: ignore[operator]  # it is a function
    (found,) = await repeated.open().get_sessions()
    assert (found["title"], found["message_count"]) == ("t", 1)
    assert f"expected_revision={changed['revision']!r}" not in tried.transcript.text()
    await repeated.close()
    await tried.close()


@pytest.mark.asyncio
async def test_a_long_reproduction_keeps_what_it_needs() -> None:
    """Of many lines, earlier reads are left out: never a write, nor a read whose result a later call passes on."""
    store = ReferenceStore()
    tried = StoreUnderTest(lambda: ReferenceMemory(store))
    memory = tried.open()
    session, forgotten = await memory.create_session(), await memory.create_session()
    read = await memory.get_session(session)
    assert read is not None
    for number in range(60):
        await memory.get_session(forgotten)
        await memory.add_message(forgotten, "user", str(number))
    for _ in range(12):
        await memory.get_history(session)
        await memory.delete_session("none", expected_revision=read["revision"])
    text = tried.transcript.text()
    namespace: dict[str, object] = {}
    exec(text, namespace)
    again = ReferenceStore()
    repeated = StoreUnderTest(lambda: ReferenceMemory(again))
    await namespace["reproduce"](repeated.open)  # type: ignore[operator]  # it is a function
    assert sorted(each["message_count"] for each in await repeated.open().get_sessions()) == [0, 60]
    assert "# 60 earlier calls that only read are left out" in text
    await repeated.close()
    await tried.close()


@pytest.mark.asyncio
async def test_similar_calls_are_a_loop() -> None:
    """Hundreds of similar calls are a loop, and a long text is an expression."""
    tried = StoreUnderTest(lambda: ReferenceMemory(ReferenceStore()))
    memory = tried.open()
    for _ in range(200):
        await memory.create_session("x" * 1_000)
    text = tried.transcript.text()
    assert text.splitlines()[2:] == [
        "    for _ in range(200):",
        "        await memory_1.create_session('x' * 1000)  # 200 calls",
    ]
    await tried.close()


@pytest.mark.asyncio
async def test_every_suspension_is_cancelled() -> None:
    """Each await of a call is cancelled once, both while it sleeps and after it woke; one attempt runs to its end."""
    reached: list[int] = []

    async def call(number: int) -> int:
        for step in range(3):
            try:
                if step == 1:
                    await asyncio.get_running_loop().run_in_executor(None, int)
                else:
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                reached.append(step)
                raise
        return number

    attempts = [attempt async for attempt in cancelled_everywhere(call)]
    assert reached[:6] == [0, 1, 2, 0, 1, 2]
    assert [attempt.cancelled for attempt in attempts[:8]] == [True, True, True, False] * 2
    assert [attempt.result for attempt in attempts[:8]] == [None, None, None, 3, None, None, None, 7]
    assert attempts[8].cancelled


def test_a_method_that_is_not_a_coroutine_is_named() -> None:
    """The error for a forgotten `async` names the method, not an `await` in the kit."""

    class Plain(ReferenceMemory):
        def create_session(self, *_: object, **__: object) -> str:  # type: ignore[override]
            return "s"

    shared = ReferenceStore()
    found = run_clause("FM-ORD-001", StoreUnderTest(lambda: Plain(shared)))
    assert "create_session() gave a str at once: a memory's methods are `async def`" in str(found)


def test_a_method_that_is_missing_is_explained() -> None:
    """A backend may lack a method that its capabilities do not need; of another one, the error says what to do."""

    class Less:
        async def close(self) -> None: ...

    found = run_clause("FM-ORD-001", StoreUnderTest(Less))  # type: ignore[arg-type]
    assert isinstance(found, AttributeError)
    assert found.__notes__ == [
        "A memory has every method of `flux_memory.Memory` that its capabilities need; leave out of them what it lacks."
    ]


def test_a_factory_that_is_a_coroutine_is_named() -> None:
    """The error does not complain about an attribute that a coroutine lacks."""

    async def connect() -> ReferenceMemory:
        return ReferenceMemory(ReferenceStore())

    found = run_clause("FM-ORD-001", StoreUnderTest(connect))  # type: ignore[arg-type]
    assert "memory_factory returned a coroutine, not a memory: make it a plain function" in str(found)


def test_a_reproduction_tells_event_loops_apart() -> None:
    """On a single loop the same calls would work."""
    store = StoreUnderTest(lambda: ReferenceMemory(ReferenceStore()))
    assert run_clause("FM-LIF-009", store) is None
    assert "'second loop')  # on another event loop" in store.transcript.text()
