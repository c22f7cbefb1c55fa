"""Long arguments and results leave the event loop free, and calls to a session keep their order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from flux_memory import (
    BackendUnavailableError,
    ConversationMemory,
    InvalidInputError,
    Memory,
    PostgresConversationMemory,
    deadline,
)
from flux_memory.backends.long_calls import INLINE_CHARACTERS, INLINE_PARTS
from flux_memory.records import check_batch
from flux_memory.records.building import build_messages, build_session, build_sessions
from flux_memory.records.metadata import TooLongError, encode_metadata

NOW: Final = "2026-01-01T00:00:00.000000+00:00"
SHORT: Final = {"a": list(range(INLINE_PARTS // 4))}
LONG: Final[dict[str, dict[str, Any]]] = {
    "members": {str(n): n for n in range(INLINE_PARTS)},
    "elements": {"a": [n + 0.5 for n in range(INLINE_PARTS)]},
    "objects": {"a": [{"k": n} for n in range(INLINE_PARTS // 2)]},
    "deep": {"a": {"b": {"c": ["x"] * INLINE_PARTS}}},
}
FORKED: Final = """
import asyncio, os, sys
from flux_memory import ConversationMemory

async def use():
    async with ConversationMemory(sys.argv[1]) as memory, asyncio.timeout(30):
        session = await memory.create_session(metadata={"a": [1] * 9_000})
        assert await memory.get_session(session)
        print("stored", flush=True)

asyncio.run(use())
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
asyncio.run(use())
"""


class Told(Mapping[str, Any]):
    """A mapping that notes the threads that read it, and may wait until it is released."""

    def __init__(self, values: dict[str, Any], released: threading.Event | None = None) -> None:
        self.values_ = values
        self.released = released
        self.threads: list[int] = []

    def __getitem__(self, key: str) -> Any:
        return self.values_[key]

    def __len__(self) -> int:
        return len(self.values_)

    def __iter__(self) -> Iterator[str]:
        self.threads.append(threading.get_ident())
        if self.released is not None and threading.current_thread() is not threading.main_thread():
            self.released.wait(30)
        return iter(self.values_)


def _text(most: int) -> str:
    return f'{{"a": "{"x" * most}"}}'


@pytest_asyncio.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Memory]:
    """An open handle on either engine, with the session `s`."""
    dsn = request.getfixturevalue("flux_memory_postgres_dsn") if request.param == "postgres" else None
    async with PostgresConversationMemory(dsn) if dsn else ConversationMemory(path) as memory:
        await memory.create_session(session_id="s")
        yield memory


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_long_metadata_is_recognised_early(value: dict[str, Any]) -> None:
    """The event loop encodes nothing that takes it longer than its bound."""
    with pytest.raises(TooLongError):
        encode_metadata(value, most=INLINE_PARTS)
    assert encode_metadata(value)
    assert encode_metadata(SHORT, most=INLINE_PARTS)


@pytest.mark.parametrize(
    "work",
    [
        lambda most: check_batch([{"role": "r", "content": "c"}] * 1_000, most=most),
        lambda most: check_batch([{"role": "r", "content": "c", "metadata": SHORT}] * 9, most=most),
        lambda most: build_messages("s", [("i", "r", "c", "{}", NOW)] * 300, most=most),
        lambda most: build_messages("s", [("i", "r", "c", _text(most), NOW)], most=most),
        lambda most: build_session(("i", "", "", NOW, NOW, _text(most), "r", 0), most=most),
        lambda most: build_sessions([("i", "", "", NOW, NOW, "{}", "r", 0)] * 300, most=most),
        lambda most: build_messages("s", [("i", "r", "c", text, NOW) for text in (None, _text(most))], most=most),
        lambda most: build_sessions([("i", "", "", NOW, NOW, text, "r", 0) for text in (None, _text(most))], most=most),
    ],
    ids=[
        "messages",
        "their metadata",
        "history",
        "its metadata",
        "session",
        "sessions",
        "history beside NULL",
        "sessions beside NULL",
    ],
)
def test_other_long_work_is_recognised_early(work: Callable[[int], Any]) -> None:
    """Many small records take as long as one large one."""
    most = INLINE_PARTS if work.__code__.co_names[0] == "check_batch" else INLINE_CHARACTERS
    with pytest.raises(TooLongError):
        work(most)


@pytest.mark.asyncio
@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
async def test_long_calls_store_and_return_the_same(store: Memory, value: dict[str, Any]) -> None:
    """The thread changes nothing but the time that other tasks wait."""
    told = Told(value)
    made = await store.create_session(metadata=told)
    await store.add_message(made, "user", "x", told)
    await store.add_messages(made, iter([{"role": "user", "content": str(n), "metadata": value} for n in range(3)]))
    session = await store.get_session(made)
    assert session is not None
    assert session["metadata"] == value
    assert (await store.get_sessions(1))[0]["metadata"] == value
    assert [row["metadata"] for row in await store.get_history(made)] == [value] * 4
    assert set(told.threads) != {threading.get_ident()}, "encoded on the event loop alone"


@pytest.mark.asyncio
async def test_adds_to_a_session_keep_their_order(store: Memory) -> None:
    """A short add does not overtake a long one, and a cancelled one lets none overtake."""
    released = threading.Event()
    long = Told(LONG["members"], released)
    first = asyncio.ensure_future(store.add_message("s", "user", "1", long))
    calls = [first]
    for n in range(2, 8):
        await asyncio.sleep(0)
        metadata = Told(LONG["elements"]) if n % 3 == 0 else None
        calls.append(asyncio.ensure_future(store.add_message("s", "user", str(n), metadata)))
    await asyncio.sleep(0)
    calls.pop(3).cancel()
    other = await store.create_session()
    await store.add_message(other, "user", "beside", None)
    assert await store.get_history("s") == [], "a later add overtook the first"
    released.set()
    await asyncio.gather(*calls)
    assert [row["content"] for row in await store.get_history("s")] == ["1", "2", "3", "5", "6", "7"]


@pytest.mark.asyncio
async def test_a_new_session_does_not_wait_for_another_with_long_metadata(store: Memory) -> None:
    """Only calls to one session have an order."""
    released = threading.Event()
    first = asyncio.ensure_future(store.create_session(metadata=Told(LONG["members"], released)))
    await asyncio.sleep(0)
    with deadline(5):
        second = await store.create_session()
    assert not first.done()
    released.set()
    assert len({await first, second}) == 2


@pytest.mark.asyncio
async def test_a_deadline_reaches_long_arguments(store: Memory) -> None:
    """The call ends by its own deadline; nothing is stored, and the session goes on."""
    released = threading.Event()
    began = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="nothing was stored"), deadline(0.05):
        await store.add_message("s", "user", "late", Told(LONG["members"], released))
    assert time.monotonic() - began < 30
    await store.add_message("s", "user", "next")
    released.set()
    assert [row["content"] for row in await store.get_history("s")] == ["next"]


@pytest.mark.asyncio
async def test_long_calls_need_none_of_the_loops_threads(store: Memory) -> None:
    """All of these may wait for such calls, in an application that calls from synchronous code in threads."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))

    async def calls() -> list[Any]:
        await store.add_message("s", "user", "x", LONG["members"])
        return await store.get_history("s")

    def call_from_a_thread() -> list[Any]:
        calling = asyncio.run_coroutine_threadsafe(calls(), loop)
        try:
            return calling.result(30)
        finally:
            calling.cancel()

    assert [row["metadata"] for row in await asyncio.to_thread(call_from_a_thread)] == [LONG["members"]]


def test_a_forked_child_has_threads_of_its_own(path: Path) -> None:
    """A web server may fork its workers after it used a memory."""
    run = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(path)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "stored\n" * 2


@pytest.mark.asyncio
async def test_close_waits_for_long_arguments_of_a_first_call(path: Path) -> None:
    """A call that was accepted is stored, though nothing was open when it came."""
    async with ConversationMemory(path) as before:
        session = await before.create_session()
    released = threading.Event()
    memory = ConversationMemory(path)
    adding = asyncio.ensure_future(memory.add_message(session, "user", "x", Told(LONG["members"], released)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(memory.close())
    for _ in range(10):
        await asyncio.sleep(0)
    released.set()
    await asyncio.gather(adding, closing)
    async with ConversationMemory(path) as after:
        assert len(await after.get_history(session)) == 1


@pytest.mark.asyncio
async def test_close_waits_for_long_arguments(store: Memory) -> None:
    """A call that was accepted is stored."""
    released = threading.Event()
    adding = asyncio.ensure_future(store.add_message("s", "user", "x", Told(LONG["members"], released)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    released.set()
    assert await adding
    await closing


@pytest.mark.asyncio
async def test_an_argument_that_changes_is_an_error_of_ours(store: Memory) -> None:
    """Python's own error would not say what to do."""
    value = dict(LONG["members"])

    class Changing(dict[str, Any]):
        def items(self) -> Any:
            for number, item in enumerate(super().items()):
                yield item
                if number == 5:
                    self["more"] = 1

    with pytest.raises(InvalidInputError, match="changed during the call"):
        await store.add_message("s", "user", "x", Changing(value))
    assert await store.get_history("s") == []
