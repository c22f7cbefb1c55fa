"""Tests power cuts at any moment: with the default settings every acknowledged message is on the disk."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fault_report import Fault
from power_cut import Record, record_writes

from flux_memory import ConversationMemory

SESSION = "s"


async def write_conversation(memory: ConversationMemory, record: Record, prefix: str) -> None:
    """Add messages one by one, in batches and concurrently; note each as soon as it is acknowledged."""

    async def add(number: int) -> None:
        content = f"{prefix}{number} {'x' * (number * 97 % 1500)}"
        await memory.add_message(SESSION, "user", content, message_id=f"{prefix}{number}")
        record.note(f"{prefix}{number}")

    for number in range(12):
        await add(number)
    ids = [f"{prefix}batch{number}" for number in range(30)]
    await memory.add_messages(SESSION, [{"role": "user", "content": "y" * 900, "message_id": one} for one in ids])
    for one in ids:
        record.note(one)
    await asyncio.gather(*(add(number) for number in range(100, 130)))
    await add(200)
    if prefix == "a":
        # Enough for a checkpoint, the moment at which a power cut does the most damage.
        for number in range(6):
            ids = [f"a{number}-{one}" for one in range(40)]
            await memory.add_messages(
                SESSION, [{"role": "user", "content": "z" * 20_000, "message_id": one} for one in ids]
            )
            for one in ids:
                record.note(one)
    await memory.update_session_title(SESSION, prefix)
    await add(300)


async def use_store(path: Path, record: Record) -> None:
    """Open the store twice, write, and close it, which records its creation, its reopening and its checkpoints."""
    for prefix in ("a", "b"):
        async with ConversationMemory(path) as memory:
            if prefix == "a":
                await memory.create_session("t", session_id=SESSION)
                record.note("session")
            await write_conversation(memory, record, prefix)


def choose_moments(record: Record, rng: random.Random, count: int) -> Iterator[int]:
    """Cut around every sync and note first, then anywhere."""
    marked = [at for at, event in enumerate(record.events) if event.kind in {"sync", "delete", "truncate"}]
    for _ in range(count):
        yield rng.choice(marked) + rng.randrange(-1, 3) if rng.random() < 0.6 else rng.randrange(len(record.events) + 1)


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory / "chat.db"


async def check_remains(path: Path, noted: list[str]) -> int:
    """Open the files after a power cut: the store is intact, has all acknowledged data, and accepts writes."""
    async with ConversationMemory(path) as memory:
        session = await memory.get_session(SESSION)
        history = await memory.get_history(SESSION)
        stored = [message["id"] for message in history]
        if noted:
            assert session is not None, "the session was acknowledged and is lost"
            assert session["message_count"] == len(stored)
        lost = set(noted) - {"session"} - set(stored)
        assert not lost, f"{len(lost)} acknowledged messages are lost: {sorted(lost)[:5]}"
        assert len(set(stored)) == len(stored)
        for prefix in ("a", "b"):
            batch = [one for one in stored if one.startswith(f"{prefix}batch")]
            assert len(batch) in {0, 30}, "half a batch is stored"
        if session is not None:
            await memory.add_message(SESSION, "user", "the power is back")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    return len(noted)


@pytest.fixture
def remains_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for the remains of a store, in memory if possible, because they need not last."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.mark.fault("power cut", backend="sqlite")
def test_a_power_cut_loses_nothing_acknowledged(tmp_path: Path, remains_directory: Path, fault: Fault) -> None:
    """Several hundred possible states of the disk: each opens, is intact, and has all acknowledged data."""
    source = tmp_path / "source"
    source.mkdir()
    with record_writes(source) as record:
        asyncio.run(use_store(source / "chat.db", record))
    kinds = [event.kind for event in record.events]
    assert kinds.count("sync") > 50, "too few syncs were recorded to cut at"
    rng = random.Random(1)
    for number, moment in enumerate(choose_moments(record, rng, len(fault.rounds(400, 3000)))):
        path = write_files(remains_directory / str(number), record.cut(moment, rng))
        fault.add(acknowledged=asyncio.run(check_remains(path, record.noted(moment))))
        shutil.rmtree(path.parent)


def test_the_simulation_finds_losses_of_weaker_settings(tmp_path: Path) -> None:
    """The test above can fail: with `synchronous=NORMAL` the simulated disk loses committed data."""
    source = tmp_path / "source"
    source.mkdir()
    with record_writes(source) as record, closing(sqlite3.connect(source / "chat.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE t (x)")
        for number in range(100):
            db.execute("INSERT INTO t VALUES (?)", (number,))
            record.note(str(number))
        # The names that SQLite keeps must be complete, or its shared memory would be a file of the current directory.
        assert (source / "chat.db-shm").exists()
        end = len(record.events)
    rng = random.Random(2)
    short = 0
    for number in range(50):
        moment = rng.randrange(end)
        path = write_files(tmp_path / str(number), record.cut(moment, rng))
        with closing(sqlite3.connect(path)) as db:
            there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 't'").fetchone()
            stored = db.execute("SELECT count(*) FROM t").fetchone()[0] if there else 0
        short += stored < len(record.noted(moment))
    assert short > 25
