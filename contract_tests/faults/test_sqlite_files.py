"""Tests files that are damaged, truncated, replaced or deleted: reported, never replaced by a new store."""

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
from ordinary_user import ordinary_user
from raw_sqlite import on_the_thread

from flux_memory import BackendUnavailableError, ConversationMemory, FluxMemoryError, Memory, SchemaError
from flux_memory.backends.sqlite import file as sqlite_file
from flux_memory.testkit.histories import History, Journal, Recorder

PAGE: Final = 4096
MESSAGES: Final = 40


async def fill(memory: Memory) -> None:
    """Store three sessions whose messages fill pages of their own."""
    for session in ("first", "second", "third"):
        await memory.create_session(session_id=session)
        for number in range(MESSAGES):
            content = f"{session} {number} " + "x" * 900
            await memory.add_message(session, "user", content, message_id=f"{session}{number}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that was closed properly."""

    async def make() -> None:
        async with ConversationMemory(path) as memory:
            await fill(memory)

    path = tmp_path / "chat.db"
    asyncio.run(make())
    return path


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def log(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def another(path: Path) -> Path:
    """Create a different store beside this one, closed properly."""

    async def make() -> None:
        async with ConversationMemory(other) as memory:
            await memory.create_session("another", session_id="another")

    other = path.with_name("another.db")
    asyncio.run(make())
    return other


def read_past(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute(sql).fetchall()


def files(path: Path) -> dict[str, bytes]:
    """Return the bytes of the store and its log; a third file holds only the locks of readers."""
    return {each.name: each.read_bytes() for each in (path, log(path)) if each.exists() and each.stat().st_size}


def word_of_the_schema(path: Path) -> None:
    """Damage a word of the schema; SQLite's message quotes the byte, which is not valid UTF-8."""
    overwrite(path, path.read_bytes().index(b"CREATE TABLE sessions") + 2, b"\x80")


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // PAGE // 2 * PAGE)


def end_of_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


CLOSED_DAMAGE: Final = {
    "header": (lambda path: overwrite(path, 0, b"\xff" * 100), SchemaError, "not a SQLite database"),
    "first page": (lambda path: overwrite(path, 100, b"\xff" * 500), FluxMemoryError, "damaged"),
    "a word of the schema": (word_of_the_schema, FluxMemoryError, r"CR.x80ATE.*damaged"),
    "truncated to half": (half, FluxMemoryError, "damaged"),
    "truncated in a page": (end_of_page, FluxMemoryError, "damaged"),
    "emptied, with a log": (
        lambda path: (log(path).write_bytes(b"x" * 5000), os.truncate(path, 0)),
        FluxMemoryError,
        "the file was lost",
    ),
    "deleted, with a log": (
        lambda path: (log(path).write_bytes(b"x" * 5000), path.unlink()),
        FluxMemoryError,
        "the file was lost",
    ),
}


@pytest.mark.fault("file damaged while closed", backend="sqlite")
@pytest.mark.parametrize("name", CLOSED_DAMAGE)
def test_a_damaged_file_is_reported_and_left_as_it_is(path: Path, fault: Fault, name: str) -> None:
    """Every call says what is wrong and what to do; not a byte changes, and no new store is created."""
    damage, kind, says = CLOSED_DAMAGE[name]
    damage(path)
    left = files(path)

    async def use() -> None:
        async with ConversationMemory(path, timeout=20) as memory:
            for call in (
                lambda: memory.get_history("first"),
                lambda: memory.add_message("first", "user", "x"),
                memory.create_session,
            ):
                with pytest.raises(kind, match=says):
                    await call()

    asyncio.run(use())
    assert files(path) == left
    fault.add()


@pytest.mark.fault("page damaged while closed", backend="sqlite")
def test_a_damaged_page_hides_no_more_than_what_was_on_it(path: Path, fault: Fault) -> None:
    """With any overwritten page of messages, an error names the damage or all messages can be read."""
    whole = path.read_bytes()
    pages = len(whole) // PAGE
    hidden = []
    for page in range(pages // 2, pages):
        path.write_bytes(whole)
        overwrite(path, page * PAGE, os.urandom(PAGE))
        hidden.append(asyncio.run(_unreadable(path)))
        fault.add()
    assert any(hidden), "no page of messages was hit"
    assert max(hidden) < 3, "one page hid every session"


async def _unreadable(path: Path) -> int:
    says = []
    async with ConversationMemory(path, timeout=20) as memory:
        for session in ("first", "second", "third"):
            try:
                found = len(await memory.get_history(session))
            except FluxMemoryError as error:
                says.append(str(error))
            else:
                assert found == MESSAGES
    assert all("damaged" in one or "cannot be read" in one for one in says)
    return len(says)


@pytest.mark.fault("write-ahead log damaged by a crash", backend="sqlite")
def test_a_damaged_log_leaves_a_store_that_opens(tmp_path: Path, fault: Fault) -> None:
    """The log is invalid from the first damaged frame on; everything before it is there, intact and in order."""
    source = tmp_path / "source" / "chat.db"

    async def crash() -> None:
        memory = ConversationMemory(source)
        await fill(memory)
        for each in (source, log(source)):
            copies[each.name] = each.read_bytes()
        await memory.close()

    copies: dict[str, bytes] = {}
    asyncio.run(crash())
    size = len(copies["chat.db-wal"])
    counts = []
    for round_ in fault.rounds(12, 100):
        directory = tmp_path / str(round_)
        directory.mkdir()
        for name, content in copies.items():
            (directory / name).write_bytes(content)
        overwrite(directory / "chat.db-wal", size * round_ // 100 if round_ else 0, os.urandom(64))
        counts.append(asyncio.run(_prefix(directory / "chat.db")))
        assert read_past(directory / "chat.db", "SELECT count(*) FROM messages") == [(counts[-1],)]
        fault.add()
    assert counts == sorted(counts)


async def _prefix(path: Path) -> int:
    async with ConversationMemory(path) as memory:
        total = 0
        for session in ("first", "second", "third"):
            ids = [message["id"] for message in await memory.get_history(session)]
            assert ids == [f"{session}{number}" for number in range(len(ids))]
            total += len(ids)
        if total:
            await memory.add_message("first", "user", "afterwards")
            total += 1
        return total


def delete(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    path.with_name("another.db").replace(path)


def delete_log(path: Path) -> None:
    log(path).unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def empty_log(path: Path) -> None:
    os.truncate(log(path), 0)


OPEN_DAMAGE: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "deleted": (delete, "was deleted or renamed while it was open"),
    "renamed": (rename, "was deleted or renamed while it was open"),
    "replaced": (replace, "was replaced by another file while it was open"),
    "log deleted": (delete_log, "-wal was deleted or renamed while it was open"),
    "emptied": (empty, "was truncated while it was open"),
    "truncated": (lambda path: os.truncate(path, PAGE), "was truncated while it was open"),
    "log emptied": (empty_log, "was truncated while it was open"),
}


@pytest.mark.fault("file replaced, deleted or cut while open", backend="sqlite")
@pytest.mark.parametrize("name", OPEN_DAMAGE)
def test_a_file_that_is_changed_from_under_a_handle_is_an_error(tmp_path: Path, fault: Fault, name: str) -> None:
    """No write is acknowledged that the store at this path lacks, and the message says what happened."""
    damage, says = OPEN_DAMAGE[name]
    path = tmp_path / "chat.db"
    another(path)

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
        assert read_past(path, "SELECT id FROM sessions") == [("another",)]
    if name == "renamed":
        assert read_past(path.with_name("moved.db"), "SELECT id, message_count FROM sessions") == [("first", 1)]
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
            await on_the_thread(memory, lambda db: db.set_progress_handler(lambda: interrupted, 1))
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
def test_a_file_that_got_smaller_in_order_is_no_error(path: Path, fault: Fault) -> None:
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
def test_what_can_only_be_read_is_read(fault: Fault, name: str, readable: Path) -> None:
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
        with ordinary_user():
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
