"""Clauses on several workers: all their calls and outcomes, checked against the final state of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from flux_memory import Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import When, cut_short
from flux_memory.testkit.contract.processes import Tell, Work
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.histories import History, Journal, Recorder, check, read_stored

WORKERS: Final = 4
CALLS: Final = 24
"""Calls of each worker: enough for every kind of call to run beside every other."""
CALLS_BEFORE_KILL: Final = 6
"""How many calls a process has finished before it is killed."""


class WorkersContract(Binding):
    """The promises of all calls of all workers together."""

    @clause(
        "FM-CON-013",
        promise="When concurrent workers send, retry and cancel, every acknowledged message is stored completely, "
        "once and in order, and nothing else is.",
        impact="In a busy service, single messages are lost, duplicated or swapped, with no trace of when.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.SEVERAL_HANDLES,
    )
    async def test_workers_agree_with_the_store(self, store: StoreUnderTest) -> None:
        with _journals() as directory, closing(Journal(directory / "tasks.jsonl")) as journal:
            handles = [Recorder(store.open(), journal, f"handle {number}") for number in range(2)]
            kept, doomed = [await handles[0].create_session() for _ in "kd"]
            await asyncio.gather(*(_work(handles, (kept, kept, doomed), worker) for worker in range(WORKERS)))
            for memory in handles:
                # A handle that caches what it read would miss the other handle's adds.
                await asyncio.gather(*(handle.get_history(kept) for handle in handles))
                await memory.add_message(kept, "user", "last")
                await asyncio.gather(*(handle.get_history(kept) for handle in handles))
            for handle in handles:
                await handle.close()
            await _agree(store, directory)

    @clause(
        "FM-DUR-008",
        promise="When one of several writing processes is killed and another retries its calls, every acknowledged "
        "message is stored completely, once and in order, and nothing else is.",
        impact="After a crash under load, the conversation has gaps or duplicates.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.DURABLE
        | Capability.SEVERAL_HANDLES
        | Capability.SEVERAL_PROCESSES,
    )
    def test_processes_agree_with_the_store(self, store: StoreUnderTest) -> None:
        async def create() -> str:
            with closing(Journal(directory / "parent.jsonl")) as journal:
                return await Recorder(store.open(), journal, "parent").create_session()

        def working(worker: int) -> Work:
            async def work(open_handle: Callable[[], Memory], tell: Tell) -> None:
                with closing(Journal(directory / f"{worker}.jsonl")) as journal:
                    async with Recorder(open_handle(), journal, f"process {worker}") as memory:
                        await _work([memory], [session], worker, tell)

            return work

        with _journals() as directory:
            session = store.run(create)
            killed, *others = [store.fork(working(worker)) for worker in range(3)]
            for child in (killed, *others):
                child.go()
            for _ in range(CALLS_BEFORE_KILL):
                killed.hear()
            killed.kill()
            for child in others:
                child.finish()

            async def retry() -> None:
                with closing(Journal(directory / "retries.jsonl")) as journal:
                    await _send_again(Recorder(store.open(), journal, "retries"), History.read(directory))

            store.run(retry)
            store.run(lambda: _agree(store, directory))


@contextmanager
def _journals() -> Iterator[Path]:
    with TemporaryDirectory(prefix="flux-memory-") as directory:
        yield Path(directory)


async def _work(handles: Sequence[Memory], sessions: Sequence[str], worker: int, tell: Tell = lambda _: None) -> None:
    """Add, read and get cancelled; another handle resends the cancelled adds and some of the others."""
    chance = random.Random(worker)  # noqa: S311 - the same calls each time
    for number in range(CALLS):
        memory, other = chance.sample([*handles, *handles], 2)
        session, name = chance.choice(sessions), f"{worker}-{number}"

        def add(through: Memory, session: str = session, name: str = name) -> Any:
            return through.add_message(session, "user", name, {"worker": worker}, message_id=name)

        kind = chance.choice(("add", "add", "batch", "read", "read", "delete"))
        if kind == "add":
            if await _cut(add(memory), chance) or chance.random() < 1 / 3:
                await _tolerating(add(other))
        elif kind == "batch":
            # Not resent: the second add would complete a partial one.
            await _cut(memory.add_messages(session, numbered(number, number + 1)), chance)
        elif kind == "delete" and len(sessions) > 1 and number > CALLS / 2:
            await memory.delete_session(sessions[-1])
        else:
            await _tolerating(memory.get_history(session))
        tell(name)


async def _cut(call: Any, chance: random.Random) -> bool:
    """Make a call, possibly cancelled at one of its suspensions; return whether it was."""
    point = chance.choice((0, 0, 1, 2, 4, 8, 16))
    when: When = "asleep" if chance.random() < 1 / 2 else "awoken"
    task = asyncio.ensure_future(_tolerating(cut_short(call, point, when)))
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    return task.cancelled()


async def _tolerating(call: Any) -> None:
    """Await a call whose session another worker may have deleted."""
    with suppress(SessionNotFoundError):
        await call


async def _send_again(memory: Recorder, history: History) -> None:
    """Retry each add that a killed process had in flight."""
    for operation in history.operations:
        if operation.outcome == "unknown" and operation.method == "add_message":
            (sent,) = operation.messages
            await memory.add_message(str(operation.session), sent.role, sent.content, sent.metadata, message_id=sent.id)


async def _agree(store: StoreUnderTest, directory: Path) -> None:
    history = History.read(directory)
    if violations := check(history, await read_stored(store.open())):
        pytest.fail("\n".join(map(str, violations[:10])))
