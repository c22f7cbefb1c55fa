"""Tests a SQLite source that other processes change while a migration reads it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from original_application import make_file
from snapshots import append_session, write_without_waiting
from transfer_memories import Trigger, insert_message, insert_session, make_old, move, read_target

from flux_memory.errors import MigrationError
from flux_memory.transfer import Mode, OnInvalid, Plan, Status, migrate

MESSAGES = 5000
REWRITE = ("DELETE FROM messages WHERE rowid % 3 = 0", "UPDATE messages SET content = content || content", "VACUUM")


@pytest.fixture
def path(idle_file: Path) -> Path:
    """A file that no process uses."""
    return idle_file


@pytest.mark.parametrize(
    "act", [append_session, lambda path: write_without_waiting(path, *REWRITE)], ids=["appends", "rewrites"]
)
@pytest.mark.parametrize("rows", [0, 2000], ids=["before", "meanwhile"])
def test_a_write_during_the_preflight_has_it_read_again(
    path: Path, flux_memory_postgres_dsn: str, processes: None, act: Callable[[Path], None], rows: int
) -> None:
    """If a write changes any part of the file, the migration still moves one consistent state."""
    dsn = flux_memory_postgres_dsn
    trigger = Trigger("Preflight", lambda: act(path), after_rows=rows)
    report = move(path, dsn, trigger)
    assert trigger.acted
    assert trigger.said.count("Another process wrote to the file while it was read; it is read once more") == 1
    assert report.status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        stored = db.execute("SELECT id, content FROM messages ORDER BY id").fetchall()
    assert sorted((row[1], row[3]) for row in read_target(dsn)[1]) == stored


@pytest.mark.parametrize("phase", ["Load", "Keys", "Verify"])
def test_a_write_after_the_preflight_is_for_the_next_run(path: Path, flux_memory_postgres_dsn: str, phase: str) -> None:
    """A write after the preflight is not moved; a second run moves it."""
    dsn = flux_memory_postgres_dsn
    report = move(path, dsn, Trigger(phase, lambda: append_session(path)))
    assert report.status is Status.IDENTICAL
    assert len(read_target(dsn)[1]) == MESSAGES
    report = move(path, dsn)
    assert report.status is Status.IDENTICAL
    assert len(read_target(dsn)[1]) == MESSAGES + 1


def test_differences_are_named_after_a_write_to_the_file(path: Path, flux_memory_postgres_dsn: str) -> None:
    """To compare rows, the file is read again; a session deleted since is reported as such."""
    dsn = flux_memory_postgres_dsn
    assert move(path, dsn).status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        ids = [id_ for (id_,) in db.execute("SELECT id FROM sessions ORDER BY id LIMIT 2")]
    write_without_waiting(path, *(f"UPDATE sessions SET title = 'another' WHERE id = '{id_}'" for id_ in ids))
    make_old(path)
    gone = f"DELETE FROM sessions WHERE id = '{ids[0]}'"
    report = move(path, dsn, Trigger("Verify", lambda: write_without_waiting(path, gone)), mode=Mode.VERIFY)
    assert report.status is Status.DIFFERENT
    assert report.verification is not None
    assert report.verification.first_differences == [
        f"session differs, and is not in the file as it is now: {ids[0]}",
        f"session's title differs: {ids[1]}",
    ]


def test_a_write_does_not_hide_differences(path: Path, flux_memory_postgres_dsn: str) -> None:
    """A session changed since the preflight differs, even if the target equals the file's new state."""
    dsn = flux_memory_postgres_dsn
    assert move(path, dsn).status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        (one, title), (other, _) = db.execute("SELECT id, title FROM sessions ORDER BY id LIMIT 2").fetchall()
    write_without_waiting(path, f"UPDATE sessions SET title = 'another' WHERE id = '{one}'")
    make_old(path)
    swap = (
        f"UPDATE sessions SET title = '{title}' WHERE id = '{one}'",
        f"UPDATE sessions SET title = 'another' WHERE id = '{other}'",
    )
    report = move(path, dsn, Trigger("Verify", lambda: write_without_waiting(path, *swap)), mode=Mode.VERIFY)
    assert report.status is Status.DIFFERENT
    assert report.verification is not None
    assert report.verification.first_differences == [
        f"session differs, and was changed in the file since it was read: {one}"
    ]


def test_refused_rows_are_quarantined_beside_differences(
    path: Path, tmp_path: Path, flux_memory_postgres_dsn: str, processes: None
) -> None:
    """The helper's refused rows are still available after a write, and go to the quarantine file."""
    dsn, refused = flux_memory_postgres_dsn, tmp_path / "refused.jsonl"
    assert move(path, dsn).status is Status.IDENTICAL
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (last,) = db.execute("SELECT max(id) FROM sessions").fetchone()
        db.execute("UPDATE sessions SET title = 'another' WHERE id = ?", (last,))
        insert_message(db, "refused", last, metadata="no JSON")
    make_old(path)
    report = move(path, dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=refused)
    assert report.status is Status.DIFFERENT
    assert [json.loads(line)["row"]["id"] for line in refused.read_text().splitlines()] == ["refused"]


def test_a_file_deleted_while_it_is_read_is_reported(path: Path, flux_memory_postgres_dsn: str) -> None:
    """A file deleted while it is read is reported; nothing is moved."""
    with pytest.raises(MigrationError, match="does not exist"):
        move(path, flux_memory_postgres_dsn, Trigger("Preflight", path.unlink, after_rows=2000))
    assert read_target(flux_memory_postgres_dsn) == ([], [])


def test_a_file_truncated_while_it_is_read_is_reported(path: Path, flux_memory_postgres_dsn: str) -> None:
    """A file truncated while it is read is reported; nothing is moved."""
    with pytest.raises(MigrationError, match="damaged"):
        move(path, flux_memory_postgres_dsn, Trigger("Preflight", lambda: os.truncate(path, 8192), after_rows=2000))
    assert read_target(flux_memory_postgres_dsn) == ([], [])


def test_an_application_that_writes_constantly_does_not_stop_a_migration(
    tmp_path: Path, flux_memory_postgres_dsn: str, processes: None
) -> None:
    """Each run moves one state: all sessions have the same number of messages, since each transaction adds to all."""
    path = tmp_path / "chat.db"
    with closing(make_file(path)) as db:
        for id_ in "abc":
            insert_session(db, id_)

    def add_to_all(number: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
            db.execute("BEGIN IMMEDIATE")
            for id_ in "abc":
                insert_message(db, f"{id_}{number}", id_)
            db.execute("COMMIT")

    async def write_all_the_time() -> None:
        number = 0
        while True:
            await asyncio.to_thread(add_to_all, number)
            number += 1

    async def run() -> None:
        writing = asyncio.create_task(write_all_the_time())
        try:
            for _ in range(5):
                make_old(path)
                report = await migrate(Plan(sqlite_path=path, postgres_dsn=flux_memory_postgres_dsn))
                assert report.status is Status.IDENTICAL
                assert report.preflight.messages % 3 == 0
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    asyncio.run(run())
    messages = read_target(flux_memory_postgres_dsn)[1]
    counts = {id_: sum(row[0] == id_ for row in messages) for id_ in "abc"}
    assert len(set(counts.values())) == 1
    assert counts["a"]
