"""Tests reading an unused file in place, without a lock; a concurrent write is detected and handled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from small_disk import limit_file_size
from snapshots import append_session, write_without_waiting
from transfer_memories import Trigger, insert_message, make_old, move

from flux_memory.errors import BackendUnavailableError, MigrationError
from flux_memory.transfer import Mode, OnInvalid, Plan, Status, migrate, quarantine
from flux_memory.transfer.rows.spool import RefusedRow
from flux_memory.transfer.source.helper import read_all
from flux_memory.transfer.source.snapshot import Snapshot, snapshot_of

MESSAGES = 5000
COUNT = "SELECT count(*) FROM messages"


@pytest.fixture
def path(idle_file: Path) -> Path:
    """A file that no process uses."""
    return idle_file


def file_states(path: Path) -> dict[str, tuple[str, int]]:
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in path.parent.iterdir()
    }


@pytest.mark.parametrize("empty", [(), ("chat.db-journal", "chat.db-wal")], ids=["alone", "beside empty files"])
def test_an_idle_file_is_not_copied(path: Path, empty: tuple[str, ...]) -> None:
    """The read needs no temporary space, and leaves the file and its directory unchanged."""
    for name in empty:
        path.with_name(name).touch()
    before = file_states(path)
    with limit_file_size(), snapshot_of(path) as opened:
        opened.open()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES,)
        assert not opened.renew()
    assert file_states(path) == before


def test_a_file_that_was_written_to_just_now_is_copied(path: Path) -> None:
    """A file written just now is copied, since the next write could leave its mtime unchanged."""
    os.utime(path)
    with limit_file_size(), snapshot_of(path) as opened, pytest.raises(MigrationError, match="TMPDIR"):
        opened.open()


def test_a_journal_or_a_log_beside_it_is_copied(path: Path) -> None:
    """A file with a log or journal is copied, since it needs recovery."""
    wal = path.read_bytes()[18] == 2
    path.with_name("chat.db-wal" if wal else "chat.db-journal").write_bytes(b"x" * 100)
    with limit_file_size(), snapshot_of(path) as opened, pytest.raises(MigrationError, match="TMPDIR"):
        opened.open()


def test_writers_do_not_wait_and_are_noticed(path: Path) -> None:
    """After a write, `renew` opens the new state, which then stays fixed."""
    with snapshot_of(path) as opened:
        opened.open()
        append_session(path)
        assert opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES + 1,)
        write_without_waiting(path, "DELETE FROM messages WHERE id = 'added'")
        assert not opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES + 1,)


def test_locks_of_the_same_process_are_kept(path: Path, processes: None) -> None:
    """An application that embeds a migration may have the same file open in a transaction, and keeps its locks."""
    write_without_waiting(path, "PRAGMA journal_mode = DELETE")
    make_old(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        with limit_file_size(), snapshot_of(path) as opened:
            opened.open()
            assert not opened.renew()
        command = [
            sys.executable,
            "-c",
            "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')",
        ]
        other = subprocess.run([*command, path], capture_output=True, text=True, check=False)
        assert "locked" in other.stderr
        application.execute("COMMIT")


def test_a_frozen_state_does_not_change(path: Path) -> None:
    """After `freeze` the open state no longer changes."""
    with snapshot_of(path) as opened:
        opened.open()
        opened.freeze()
        append_session(path)
        assert not opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES,)


def test_a_wait_for_a_lock_before_comparing_rows_can_be_cancelled(
    path: Path, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation ends the process that waits for a lock, and the thread that waits for the process."""
    dsn = flux_memory_postgres_dsn
    write_without_waiting(path, "PRAGMA journal_mode = DELETE")
    make_old(path)
    assert move(path, dsn).status is Status.IDENTICAL
    write_without_waiting(path, "UPDATE sessions SET title = 'another'")
    make_old(path)
    begun, ended = threading.Event(), threading.Event()
    freeze = Snapshot.freeze

    def freeze_and_signal(opened: Snapshot) -> None:
        begun.set()
        try:
            freeze(opened)
        finally:
            ended.set()

    monkeypatch.setattr(Snapshot, "freeze", freeze_and_signal)

    async def run() -> None:
        lock = Trigger("Verify", lambda: application.execute("BEGIN EXCLUSIVE"))
        migration = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=dsn, mode=Mode.VERIFY), lock))
        assert await asyncio.to_thread(begun.wait, 30)
        assert lock.acted
        migration.cancel()
        done, _ = await asyncio.wait([migration], timeout=10)
        assert done
        assert migration.cancelled()
        assert ended.is_set()

    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        asyncio.run(run())


def test_a_cancellation_waits_until_nothing_is_read(
    path: Path, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation between two statements stops the following reads, too."""
    begun, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def read_later(*arguments: Any, **options: Any) -> Any:
        begun.set()
        cancelled.wait()
        try:
            return read_all(*arguments, **options)
        finally:
            ended.set()

    monkeypatch.setattr("flux_memory.transfer.migration.read_all", read_later)

    async def run() -> None:
        migration = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=flux_memory_postgres_dsn)))
        await asyncio.to_thread(begun.wait)
        migration.cancel()
        asyncio.get_running_loop().call_later(0.1, cancelled.set)
        await asyncio.wait([migration])
        assert migration.cancelled()
        assert ended.is_set()

    asyncio.run(run())


def test_a_migration_does_not_need_the_loops_threads(path: Path) -> None:
    """A migration proceeds while an application keeps the loop's thread pool busy."""
    free = threading.Event()

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = asyncio.create_task(asyncio.to_thread(free.wait))
        try:
            # The file is read before the connection is opened.
            with pytest.raises(BackendUnavailableError):
                await asyncio.wait_for(
                    migrate(Plan(sqlite_path=path, postgres_dsn="postgresql://user@127.0.0.1:1/nowhere")), 20
                )
        finally:
            free.set()
            await busy

    asyncio.run(run())


def test_a_cancelled_quarantine_leaves_no_file(
    path: Path, tmp_path: Path, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation never leaves a partial quarantine file, which would look complete."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number in range(3):
            insert_message(db, f"refused {number}", "nowhere")
    make_old(path)
    refused = tmp_path / "refused.jsonl"
    interrupted = threading.Event()
    interrupt, entry = Snapshot.interrupt, quarantine._entry

    def interrupt_and_tell(opened: Snapshot) -> None:
        interrupt(opened)
        interrupted.set()

    async def run() -> None:
        def cancel_and_go_on(row: RefusedRow) -> dict[str, Any]:
            loop.call_soon_threadsafe(migration.cancel)
            interrupted.wait()
            return entry(row)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(Snapshot, "interrupt", interrupt_and_tell)
        monkeypatch.setattr(quarantine, "_entry", cancel_and_go_on)
        plan = Plan(
            sqlite_path=path,
            postgres_dsn=flux_memory_postgres_dsn,
            on_invalid=OnInvalid.QUARANTINE,
            quarantine_file=refused,
        )
        migration = asyncio.create_task(migrate(plan))
        await asyncio.wait([migration])
        assert migration.cancelled()
        assert not refused.exists()

    asyncio.run(run())
