"""Tests SQLite files that are damaged while closed: reported, left as they are, never replaced by a new store."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import pytest
from fault_report import Fault
from sqlite_stores import MESSAGES, PAGE_BYTES, add_long_sessions, log_of, make_long_store, overwrite, read_intact

from flux_memory import ConversationMemory, FluxMemoryError, SchemaError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that was closed properly."""
    return make_long_store(tmp_path / "chat.db")


def file_bytes(path: Path) -> dict[str, bytes]:
    """Return the bytes of the store and its log; a third file holds only the locks of readers."""
    return {each.name: each.read_bytes() for each in (path, log_of(path)) if each.exists() and each.stat().st_size}


def damage_schema_word(path: Path) -> None:
    """Damage a word of the schema; SQLite's message quotes the byte, which is not valid UTF-8."""
    overwrite(path, path.read_bytes().index(b"CREATE TABLE sessions") + 2, b"\x80")


def truncate_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES)


def truncate_in_page(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


CLOSED_DAMAGE: Final = {
    "header": (lambda path: overwrite(path, 0, b"\xff" * 100), SchemaError, "not a SQLite database"),
    "first page": (lambda path: overwrite(path, 100, b"\xff" * 500), FluxMemoryError, "damaged"),
    "a word of the schema": (damage_schema_word, FluxMemoryError, r"CR.x80ATE.*damaged"),
    "truncated to half": (truncate_to_half, FluxMemoryError, "damaged"),
    "truncated in a page": (truncate_in_page, FluxMemoryError, "damaged"),
    "emptied, with a log": (
        lambda path: (log_of(path).write_bytes(b"x" * 5000), os.truncate(path, 0)),
        FluxMemoryError,
        "the file was lost",
    ),
    "deleted, with a log": (
        lambda path: (log_of(path).write_bytes(b"x" * 5000), path.unlink()),
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
    left = file_bytes(path)

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
    assert file_bytes(path) == left
    fault.add()


@pytest.mark.fault("page damaged while closed", backend="sqlite")
def test_a_damaged_page_hides_only_its_own_messages(path: Path, fault: Fault) -> None:
    """With any overwritten page of messages, an error names the damage or all messages can be read."""
    whole = path.read_bytes()
    pages = len(whole) // PAGE_BYTES
    hidden = []
    for page in range(pages // 2, pages):
        path.write_bytes(whole)
        overwrite(path, page * PAGE_BYTES, os.urandom(PAGE_BYTES))
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
        await add_long_sessions(memory)
        for each in (source, log_of(source)):
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
        assert read_intact(directory / "chat.db", "SELECT count(*) FROM messages") == [(counts[-1],)]
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
