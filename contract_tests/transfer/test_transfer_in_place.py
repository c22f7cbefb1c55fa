"""A file that no process uses is read in place without a lock; a write meanwhile is detected and handled."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from original_application import make_file
from small_disk import small_files
from transfer_memories import Trigger, add, add_session, age, everything, make_random

from flux_memory.errors import BackendUnavailableError, MigrationError
from flux_memory.transfer import Mode, OnInvalid, Plan, Report, Status, migrate, quarantine
from flux_memory.transfer.rows.spool import RefusedRow
from flux_memory.transfer.source import snapshot
from flux_memory.transfer.source.helper import read_all
from flux_memory.transfer.source.snapshot import Snapshot, snapshot_of

SESSIONS, MESSAGES = 20, 5000
COUNT = "SELECT count(*) FROM messages"


@pytest.fixture(params=["DELETE", "WAL"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file whose application stopped some time ago."""
    path = tmp_path / "data" / "chat.db"
    path.parent.mkdir()
    make_random(path, sessions=SESSIONS, messages=MESSAGES)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {request.param}")
    age(path)
    return path


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the helper, for files of any size."""
    monkeypatch.setattr(snapshot, "_HELPER_MIN_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: request.param)


def state(path: Path) -> dict[str, tuple[str, int]]:
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in path.parent.iterdir()
    }


def write(path: Path, *sql: str) -> None:
    """Write like an application that starts, writes without waiting for locks, and ends."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        for statement in sql:
            db.execute(statement)


def append(path: Path) -> None:
    """Add a session with a message."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        db.execute("BEGIN")
        add_session(db, "added")
        add(db, "added", "added")
        db.execute("COMMIT")


def watched(path: Path, dsn: str, watcher: Trigger, **plan: Any) -> Report:
    return asyncio.run(migrate(Plan(sqlite_path=path, postgres_dsn=dsn, **plan), watcher))


@pytest.mark.parametrize("empty", [(), ("chat.db-journal", "chat.db-wal")], ids=["alone", "beside empty files"])
def test_it_is_not_copied(path: Path, empty: tuple[str, ...]) -> None:
    """The read needs no temporary space, and leaves the file and its directory unchanged."""
    for name in empty:
        path.with_name(name).touch()
    before = state(path)
    with small_files(), snapshot_of(path) as opened:
        opened.open()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES,)
        assert not opened.renew()
    assert state(path) == before


def test_a_file_that_was_written_to_just_now_is_copied(path: Path) -> None:
    """A file written just now is copied, since the next write could leave its mtime unchanged."""
    os.utime(path)
    with small_files(), snapshot_of(path) as opened, pytest.raises(MigrationError, match="TMPDIR"):
        opened.open()


def test_a_journal_or_a_log_beside_it_is_copied(path: Path) -> None:
    """A file with a log or journal is copied, since it needs recovery."""
    wal = path.read_bytes()[18] == 2
    path.with_name("chat.db-wal" if wal else "chat.db-journal").write_bytes(b"x" * 100)
    with small_files(), snapshot_of(path) as opened, pytest.raises(MigrationError, match="TMPDIR"):
        opened.open()


def test_its_writers_do_not_wait_and_are_noticed(path: Path) -> None:
    """After a write, `renew` opens the new state, which then stays fixed."""
    with snapshot_of(path) as opened:
        opened.open()
        append(path)
        assert opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES + 1,)
        write(path, "DELETE FROM messages WHERE id = 'added'")
        assert not opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES + 1,)


def test_the_locks_of_the_same_process_hold(path: Path, processes: None) -> None:
    """An application that embeds a migration may have the file open itself, in a transaction, and keeps its locks."""
    write(path, "PRAGMA journal_mode = DELETE")
    age(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        with small_files(), snapshot_of(path) as opened:
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


def test_a_state_that_is_kept_is_not_written_to(path: Path) -> None:
    """After `freeze` the open state no longer changes."""
    with snapshot_of(path) as opened:
        opened.open()
        opened.freeze()
        append(path)
        assert not opened.renew()
        assert opened.db.execute(COUNT).fetchone() == (MESSAGES,)


REWRITE = ("DELETE FROM messages WHERE rowid % 3 = 0", "UPDATE messages SET content = content || content", "VACUUM")


@pytest.mark.parametrize("act", [append, lambda path: write(path, *REWRITE)], ids=["appends", "rewrites"])
@pytest.mark.parametrize("rows", [0, 2000], ids=["before", "meanwhile"])
def test_a_write_during_the_preflight_has_it_read_again(
    path: Path, flux_postgres_clean_dsn: str, processes: None, act: Callable[[Path], None], rows: int
) -> None:
    """If a write changes any part of the file, the migration still moves one consistent state."""
    dsn = flux_postgres_clean_dsn
    trigger = Trigger("Preflight", lambda: act(path), after_rows=rows)
    report = watched(path, dsn, trigger)
    assert trigger.acted
    assert trigger.said.count("Another process wrote to the file while it was read; it is read once more") == 1
    assert report.status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        stored = db.execute("SELECT id, content FROM messages ORDER BY id").fetchall()
    assert sorted((row[1], row[3]) for row in everything(dsn)[1]) == stored


@pytest.mark.parametrize("phase", ["Load", "Keys", "Verify"])
def test_a_write_after_the_preflight_is_for_the_next_run(path: Path, flux_postgres_clean_dsn: str, phase: str) -> None:
    """A write after the preflight is not moved; a second run moves it."""
    dsn = flux_postgres_clean_dsn
    report = watched(path, dsn, Trigger(phase, lambda: append(path)))
    assert report.status is Status.IDENTICAL
    assert len(everything(dsn)[1]) == MESSAGES
    report = watched(path, dsn, Trigger("", lambda: None))
    assert report.status is Status.IDENTICAL
    assert len(everything(dsn)[1]) == MESSAGES + 1


def test_what_differs_is_named_though_the_file_is_written_to(path: Path, flux_postgres_clean_dsn: str) -> None:
    """To compare rows, the file is read again; a session deleted since is reported as such."""
    dsn = flux_postgres_clean_dsn
    assert watched(path, dsn, Trigger("", lambda: None)).status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        ids = [id_ for (id_,) in db.execute("SELECT id FROM sessions ORDER BY id LIMIT 2")]
    write(path, *(f"UPDATE sessions SET title = 'another' WHERE id = '{id_}'" for id_ in ids))
    age(path)
    gone = f"DELETE FROM sessions WHERE id = '{ids[0]}'"
    report = watched(path, dsn, Trigger("Verify", lambda: write(path, gone)), mode=Mode.VERIFY)
    assert report.status is Status.DIFFERENT
    assert report.verification is not None
    assert report.verification.first_differences == [
        f"session differs, and is not in the file as it is now: {ids[0]}",
        f"session's title differs: {ids[1]}",
    ]


def test_what_differs_is_not_made_up_for_by_a_write(path: Path, flux_postgres_clean_dsn: str) -> None:
    """A session changed since the preflight differs, even if the target equals the file's new state."""
    dsn = flux_postgres_clean_dsn
    assert watched(path, dsn, Trigger("", lambda: None)).status is Status.IDENTICAL
    with closing(sqlite3.connect(path)) as db:
        (one, title), (other, _) = db.execute("SELECT id, title FROM sessions ORDER BY id LIMIT 2").fetchall()
    write(path, f"UPDATE sessions SET title = 'another' WHERE id = '{one}'")
    age(path)
    swap = (
        f"UPDATE sessions SET title = '{title}' WHERE id = '{one}'",
        f"UPDATE sessions SET title = 'another' WHERE id = '{other}'",
    )
    report = watched(path, dsn, Trigger("Verify", lambda: write(path, *swap)), mode=Mode.VERIFY)
    assert report.status is Status.DIFFERENT
    assert report.verification is not None
    assert report.verification.first_differences == [
        f"session differs, and was changed in the file since it was read: {one}"
    ]


def test_what_cannot_be_moved_is_put_aside_though_something_differs(
    path: Path, tmp_path: Path, flux_postgres_clean_dsn: str, processes: None
) -> None:
    """The helper's refused rows are still available after a write, and go to the quarantine file."""
    dsn, refused = flux_postgres_clean_dsn, tmp_path / "refused.jsonl"
    assert watched(path, dsn, Trigger("", lambda: None)).status is Status.IDENTICAL
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (last,) = db.execute("SELECT max(id) FROM sessions").fetchone()
        db.execute("UPDATE sessions SET title = 'another' WHERE id = ?", (last,))
        add(db, "refused", last, metadata="no JSON")
    age(path)
    report = watched(path, dsn, Trigger("", lambda: None), on_invalid=OnInvalid.QUARANTINE, quarantine_file=refused)
    assert report.status is Status.DIFFERENT
    assert [json.loads(line)["row"]["id"] for line in refused.read_text().splitlines()] == ["refused"]


def test_a_lock_in_the_way_of_what_differs_can_be_cancelled(
    path: Path, flux_postgres_clean_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation ends the process that waits for a lock, and the thread that waits for the process."""
    dsn = flux_postgres_clean_dsn
    write(path, "PRAGMA journal_mode = DELETE")
    age(path)
    assert watched(path, dsn, Trigger("", lambda: None)).status is Status.IDENTICAL
    write(path, "UPDATE sessions SET title = 'another'")
    age(path)
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
    path: Path, flux_postgres_clean_dsn: str, monkeypatch: pytest.MonkeyPatch
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
        migration = asyncio.create_task(migrate(Plan(sqlite_path=path, postgres_dsn=flux_postgres_clean_dsn)))
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
                    migrate(Plan(sqlite_path=path, postgres_dsn="postgresql://nobody@127.0.0.1:1/nowhere")), 20
                )
        finally:
            free.set()
            await busy

    asyncio.run(run())


def test_a_cancelled_quarantine_leaves_no_file(
    path: Path, tmp_path: Path, flux_postgres_clean_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation never leaves a partial quarantine file, which would look complete."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number in range(3):
            add(db, f"refused {number}", "nowhere")
    age(path)
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
            postgres_dsn=flux_postgres_clean_dsn,
            on_invalid=OnInvalid.QUARANTINE,
            quarantine_file=refused,
        )
        migration = asyncio.create_task(migrate(plan))
        await asyncio.wait([migration])
        assert migration.cancelled()
        assert not refused.exists()

    asyncio.run(run())


def test_a_file_that_goes_away_while_it_is_read_says_so(path: Path, flux_postgres_clean_dsn: str) -> None:
    """A file deleted while it is read is reported; nothing is moved."""
    with pytest.raises(MigrationError, match="there is no file"):
        watched(path, flux_postgres_clean_dsn, Trigger("Preflight", path.unlink, after_rows=2000))
    assert everything(flux_postgres_clean_dsn) == ([], [])


def test_a_file_that_is_cut_while_it_is_read_says_so(path: Path, flux_postgres_clean_dsn: str) -> None:
    """A file truncated while it is read is reported; nothing is moved."""
    with pytest.raises(MigrationError, match="damaged"):
        watched(path, flux_postgres_clean_dsn, Trigger("Preflight", lambda: os.truncate(path, 8192), after_rows=2000))
    assert everything(flux_postgres_clean_dsn) == ([], [])


def test_an_application_that_writes_all_the_time_is_no_hindrance(
    tmp_path: Path, flux_postgres_clean_dsn: str, processes: None
) -> None:
    """Each run moves one state: all sessions have the same number of messages, since each transaction adds to all."""
    path = tmp_path / "chat.db"
    with closing(make_file(path)) as db:
        for id_ in "abc":
            add_session(db, id_)

    def add_to_all(number: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as db:
            db.execute("BEGIN IMMEDIATE")
            for id_ in "abc":
                add(db, f"{id_}{number}", id_)
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
                age(path)
                report = await migrate(Plan(sqlite_path=path, postgres_dsn=flux_postgres_clean_dsn))
                assert report.status is Status.IDENTICAL
                assert report.preflight.messages % 3 == 0
        finally:
            writing.cancel()
            await asyncio.wait([writing])

    asyncio.run(run())
    messages = everything(flux_postgres_clean_dsn)[1]
    counts = {id_: sum(row[0] == id_ for row in messages) for id_ in "abc"}
    assert len(set(counts.values())) == 1
    assert counts["a"]
