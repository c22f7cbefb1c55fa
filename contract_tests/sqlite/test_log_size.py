"""The write-ahead log does not stay as large as it once was, and a handle does not take its cut for damage."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from flux_memory import ConversationMemory, FluxMemoryError
from flux_memory.backends.sqlite.file import LOG_BYTES

MEGABYTE: Final = "x" * 2**20


def log_bytes(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


async def grow(memory: ConversationMemory, path: Path, session: str) -> None:
    """Write beside a reader, whose state has to stay in the log."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        while log_bytes(path) < 2 * LOG_BYTES:
            await memory.add_message(session, "user", MEGABYTE)


@pytest.mark.asyncio
async def test_a_log_that_grew_is_cut(path: Path) -> None:
    """A long read makes it grow; the writes after it bring it back to its limit, and every message is there."""
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        await grow(memory, path, session)
        for number in range(2):
            await memory.add_message(session, "user", str(number))
        assert log_bytes(path) <= LOG_BYTES
        assert [message["content"] for message in await memory.get_history(session, 3)] == [MEGABYTE, "0", "1"]


@pytest.mark.asyncio
async def test_a_neighbour_does_not_search_the_file_for_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another handle sees the log shrink: to check each page of a large file would take until its deadline."""
    async with ConversationMemory(path) as memory, ConversationMemory(path) as neighbour:
        session = await memory.create_session()
        await grow(memory, path, session)
        await asyncio.sleep(0.1)
        assert len(await neighbour.get_history(session, 1)) == 1
        for number in range(2):
            await memory.add_message(session, "user", str(number))
        file = (await neighbour._life.opened())._file
        monkeypatch.setattr(file, "_is_whole", lambda: pytest.fail("it checks every page"))
        await asyncio.sleep(0.1)
        assert [message["content"] for message in await neighbour.get_history(session, 2)] == ["0", "1"]
        await neighbour.add_message(session, "user", "2")


@pytest.mark.asyncio
@pytest.mark.parametrize("left", [0, LOG_BYTES // 2, LOG_BYTES + 4096])
async def test_a_log_that_another_program_cut_is_still_noticed(path: Path, left: int) -> None:
    """Its beginning is the same, or it is shorter than SQLite leaves it."""
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM messages").fetchone()
            while log_bytes(path) < 2 * LOG_BYTES:
                await memory.add_message(session, "user", MEGABYTE)
            os.truncate(f"{path}-wal", left)
            await asyncio.sleep(0.1)
            with pytest.raises(FluxMemoryError, match="was truncated while it was open"):
                await memory.get_history(session)
