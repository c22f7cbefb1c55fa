"""Tests full disks under SQLite: a clear error, nothing half written, and it works again as soon as there is space."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from fault_report import Fault
from fault_work import Store
from raw_sqlite import run_on_worker
from small_disk import mount_small_disk

from flux_memory import BackendUnavailableError, ConversationMemory, Memory, NewMessage
from flux_memory.testkit.histories import Journal, Recorder

DISK_BYTES: Final = 3_000_000
BALLAST_BYTES: Final = 1_000_000
SAYS: Final = "the disk is full; nothing was stored. Make room and retry"


async def fill_store(recorder: Recorder) -> str:
    """Write messages and batches, several at once, until the disk is full; return the error's text."""
    batch: list[NewMessage] = [{"role": "user", "content": "b" * 5_000}] * 10

    async def one(number: int) -> None:
        while True:
            await recorder.add_message("s", "user", f"{number} " + "x" * 9_000)
            await recorder.add_messages("s", batch)

    outcomes = await asyncio.gather(*(one(number) for number in range(4)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BackendUnavailableError}
    return str(outcomes[0])


async def fill_and_make_room(
    store: Store, round_: int, no_room: Callable[[Memory], Any], room: Callable[[Memory], Any]
) -> None:
    """Fill a store twice; everything is readable when full, and writable once there is space."""
    journal = Journal(store.journal(round_) / "full.jsonl")
    async with store.open() as memory:
        recorder = Recorder(memory, journal, str(round_))
        await recorder.create_session(session_id="s")
        await no_room(memory)
        assert SAYS in await fill_store(recorder)
        for _ in range(3):
            with pytest.raises(BackendUnavailableError, match="is full"):
                await recorder.add_messages("s", [{"role": "user", "content": "z" * 50_000}] * 20)
        full = await recorder.get_history("s")
        await room(memory)
        await recorder.add_message("s", "user", "there is room")
        assert len(await recorder.get_history("s")) == len(full) + 1
    journal.close()


def make_store(directory: Path, tmp_path: Path) -> Store:
    journals = tmp_path / "journals"
    journals.mkdir(exist_ok=True)
    return Store("sqlite", str(directory / "chat.db"), journals)


@pytest.mark.fault("max_page_count reached", backend="sqlite")
def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    """At SQLite's own limit, writes are refused as a whole; they succeed once it is raised."""

    def limited_to(pages: int) -> Callable[[Memory], Any]:
        async def limit(memory: Memory) -> None:
            assert isinstance(memory, ConversationMemory)
            await run_on_worker(memory, lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())

        return limit

    store = make_store(tmp_path, tmp_path)
    asyncio.run(fill_and_make_room(store, 0, limited_to(300), limited_to(100_000)))
    store.judge(fault, 0)


@pytest.mark.fault("disk full", backend="sqlite")
def test_a_full_disk_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    """A real file system without space, in the middle of a log, a page or a commit."""
    with mount_small_disk(str(DISK_BYTES)) as small:
        for round_ in fault.rounds(3, 25):
            directory = small / str(round_)
            directory.mkdir()
            ballast = small / "ballast"
            # A different amount each round, so that a different write is the first that does not fit.
            ballast.write_bytes(bytes(BALLAST_BYTES + round_ * 1111))

            async def nothing(_: Memory) -> None:
                pass

            async def remove(_: Memory, ballast: Path = ballast) -> None:
                await asyncio.to_thread(ballast.unlink)

            store = make_store(directory, tmp_path)
            asyncio.run(fill_and_make_room(store, round_, nothing, remove))
            store.judge(fault, round_)
            for left in directory.iterdir():
                left.unlink()
