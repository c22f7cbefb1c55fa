"""Tests SQLite files that are replaced, deleted, truncated or read-only while a handle is open."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from fault_report import Fault
from ordinary_user import become_ordinary_user
from raw_sqlite import run_on_worker
from sqlite_stores import MESSAGES, PAGE_BYTES, log_of, make_long_store, read_intact

from flux_memory import BackendUnavailableError, ConversationMemory, FluxMemoryError
from flux_memory.backends.sqlite import file as sqlite_file
from flux_memory.testkit.histories import History, Journal, Recorder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that was closed properly."""
    return make_long_store(tmp_path / "chat.db")


def make_other_store(path: Path) -> Path:
    """Create a different store beside this one, closed properly."""

    async def make() -> None:
        async with ConversationMemory(other) as memory:
            await memory.create_session("another", session_id="another")

    other = path.with_name("another.db")
    asyncio.run(make())
    return other


def delete(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    path.with_name("another.db").replace(path)


def delete_log(path: Path) -> None:
    log_of(path).unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def truncate_log(path: Path) -> None:
    os.truncate(log_of(path), 0)


OPEN_DAMAGE: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "deleted": (delete, "was deleted or renamed while it was open"),
    "renamed": (rename, "was deleted or renamed while it was open"),
    "replaced": (replace, "was replaced by another file while it was open"),
    "log deleted": (delete_log, "-wal was deleted or renamed while it was open"),
    "emptied": (truncate, "was truncated while it was open"),
    "truncated": (lambda path: os.truncate(path, PAGE_BYTES), "was truncated while it was open"),
    "log emptied": (truncate_log, "was truncated while it was open"),
}


@pytest.mark.fault("file replaced, deleted or cut while open", backend="sqlite")
@pytest.mark.parametrize("name", OPEN_DAMAGE)
def test_a_file_changed_under_an_open_handle_is_an_error(tmp_path: Path, fault: Fault, name: str) -> None:
    """No write is acknowledged that the store at this path lacks, and the message says what happened."""
    damage, says = OPEN_DAMAGE[name]
    path = tmp_path / "chat.db"
    make_other_store(path)

    async def use() -> None:
        journal = Journal(tmp_path / "journal.jsonl")
        async with ConversationMemory(path, timeout=20) as memory:
            recorder = Recorder(memory, journal, "open")
            await recorder.create_session(session_id="first")
            await recorder.add_message("first", "user", "before" * 1000)
            damage(path)
            for _ in range(3):
                with pytest.raises(FluxMemoryError, match=says):
                    await recorder.add_message("first", "user", "x")
                with pytest.raises(FluxMemoryError, match=says):
                    await memory.get_history("first")

    asyncio.run(use())
    outcomes = [operation.outcome for operation in History.read(tmp_path / "journal.jsonl").operations]
    assert outcomes == ["acknowledged"] * 2 + ["failed"] * 3
    fault.add(acknowledged=2)
    if name == "replaced":
        # Not overwritten by the log of the earlier file.
        assert read_intact(path, "SELECT id FROM sessions") == [("another",)]
    if name == "renamed":
        assert read_intact(path.with_name("moved.db"), "SELECT id, message_count FROM sessions") == [("first", 1)]
        path.with_name("moved.db").rename(path)

        async def again() -> None:
            async with ConversationMemory(path) as memory:
                assert len(await memory.get_history("first")) == 1
                await memory.add_message("first", "user", "afterwards")

        asyncio.run(again())


@pytest.mark.fault("file cut while open, check interrupted", backend="sqlite")
@pytest.mark.parametrize("name", ["truncated", "log emptied"])
def test_a_cut_is_remembered_until_its_check_has_a_verdict(
    path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A deadline that interrupts the check of a truncated file decides nothing: the next write is still refused."""
    damage, says = OPEN_DAMAGE[name]
    interrupted = True
    # The first read after the truncation checks the file, however soon it comes.
    monkeypatch.setattr(sqlite_file, "_TRUSTED_SECONDS", 0)

    async def use() -> None:
        nonlocal interrupted
        async with ConversationMemory(path, timeout=20) as memory:
            await memory.add_message("first", "user", "before" * 1000)
            await run_on_worker(memory, lambda db: db.set_progress_handler(lambda: interrupted, 1))
            damage(path)
            for _ in range(3):
                with pytest.raises(BackendUnavailableError, match="took longer than its deadline"):
                    await memory.get_history("first")
            interrupted = False
            for _ in range(3):
                with pytest.raises(FluxMemoryError, match=says):
                    await memory.add_message("first", "user", "x")

    asyncio.run(use())
    fault.add(acknowledged=1)


@pytest.mark.fault("VACUUM by another process", backend="sqlite")
def test_a_file_that_vacuum_shrinks_stays_usable(path: Path, fault: Fault) -> None:
    """VACUUM and a checkpoint also shrink file and log: the handle keeps working."""

    def vacuum() -> int:
        size = path.stat().st_size
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size - size

    async def use() -> None:
        async with ConversationMemory(path, timeout=20) as memory:
            await memory.delete_session("first")
            await memory.add_message("second", "user", "before")
            assert await asyncio.to_thread(vacuum) < 0
            await memory.add_message("second", "user", "afterwards")
            assert len(await memory.get_history("second")) == MESSAGES + 2

    asyncio.run(use())
    fault.add(acknowledged=3)


READ_ONLY: Final = {
    "file": (0o444, 0o755),
    "directory": (0o644, 0o555),
    "both": (0o444, 0o555),
}


@pytest.mark.fault("read-only file or directory", backend="sqlite")
@pytest.mark.parametrize("name", READ_ONLY)
def test_a_read_only_store_can_be_read(fault: Fault, name: str, readable: Path) -> None:
    """All reads work without a write beside the file; writes say why they fail, and work with the rights restored."""
    file_mode, directory_mode = READ_ONLY[name]

    async def use() -> None:
        async with ConversationMemory(readable, timeout=20) as memory:
            assert len(await memory.get_history("first")) == MESSAGES
            assert len(await memory.get_sessions()) == 3
            assert await memory.count_sessions() == 3
            for call in (
                lambda: memory.add_message("first", "user", "x"),
                lambda: memory.add_messages("first", [{"role": "user", "content": "x"}]),
                memory.create_session,
                lambda: memory.delete_session("first"),
            ):
                with pytest.raises(BackendUnavailableError, match="read-only; check who owns them"):
                    await call()
            assert len(await memory.get_history("first")) == MESSAGES

    async def write() -> None:
        async with ConversationMemory(readable) as memory:
            await memory.add_message("first", "user", "afterwards")

    readable.chmod(file_mode)
    readable.parent.chmod(directory_mode)
    try:
        with become_ordinary_user():
            asyncio.run(use())
    finally:
        readable.parent.chmod(0o755)
        readable.chmod(0o644)
    asyncio.run(write())
    fault.add(acknowledged=1)


@pytest.fixture
def readable(path: Path) -> Iterator[Path]:
    """A store in a directory that an ordinary user can list."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        moved = directory / "chat.db"
        moved.write_bytes(path.read_bytes())
        yield moved
