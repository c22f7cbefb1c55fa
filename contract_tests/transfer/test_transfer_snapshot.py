"""Tests that a migration changes no byte of the SQLite file and leaves no file beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from original_application import add_sessions, make_file_with_data
from snapshots import count_sessions, open_snapshot, use_write_ahead_log
from waiting import wait_until

from flux_memory.errors import MigrationError
from flux_memory.transfer.source.snapshot import snapshot_of

COUNT = "SELECT count(*) FROM sessions"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory / "chat.db"


def file_hashes(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def run_and_die(path: Path, script: str) -> None:
    """Run a script on the file in a process that dies without closing it."""
    script = f"import os, sqlite3\ndb = sqlite3.connect({str(path)!r}, isolation_level=None)\n{script}\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9


def test_an_ordinary_file_is_left_as_it_was(path: Path) -> None:
    """A file in rollback-journal mode stays unchanged, and no file appears beside it."""
    make_file_with_data(path)
    before = file_hashes(path.parent)
    assert count_sessions(path) == 2
    assert file_hashes(path.parent) == before


def test_a_closed_write_ahead_file_is_left_as_it_was(path: Path) -> None:
    """Reading a file in WAL mode leaves no -wal or -shm file beside it."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    before = file_hashes(path.parent)
    assert list(before) == ["chat.db"]
    assert count_sessions(path) == 2
    assert file_hashes(path.parent) == before


def test_the_log_of_a_killed_application_is_read_and_left_alone(path: Path) -> None:
    """Rows that are only in the write-ahead log are read, after recovery in a copy."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    run_and_die(path, "db.execute(\"INSERT INTO sessions VALUES ('three', '', '2026-01-01', '2026-01-01', '{}')\")")
    before = file_hashes(path.parent)
    assert sorted(before) == ["chat.db", "chat.db-shm", "chat.db-wal"]
    assert count_sessions(path) == 3
    assert file_hashes(path.parent) == before


def test_a_log_without_its_index_is_read(path: Path) -> None:
    """A database copied with its log but without its -shm file is read."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    run_and_die(path, "db.execute(\"INSERT INTO sessions VALUES ('three', '', '2026-01-01', '2026-01-01', '{}')\")")
    path.with_name("chat.db-shm").unlink()
    before = file_hashes(path.parent)
    assert count_sessions(path) == 3
    assert file_hashes(path.parent) == before


@pytest.mark.parametrize("to_directory", [False, True], ids=["to the file", "to its directory"])
@pytest.mark.parametrize("killed", [False, True], ids=["at work", "killed"])
def test_the_log_of_a_file_behind_a_link_is_read(path: Path, killed: bool, to_directory: bool) -> None:
    """For a link, the log beside the link's target is read."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    link = path.parent.with_name("link")
    link.symlink_to(path.parent if to_directory else path)
    given = link / path.name if to_directory else link
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        add_sessions(application, "three")
        if killed:
            copied = path.parent.with_name("copied")
            shutil.copytree(path.parent, copied)
            link.unlink()
            link.symlink_to(copied if to_directory else copied / path.name)
        assert count_sessions(given) == 3


def test_a_transaction_that_a_crash_left_half_done_is_not_read(path: Path) -> None:
    """A hot journal is rolled back in a copy; the file and its journal are left for the application."""
    make_file_with_data(path)
    run_and_die(
        path,
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('PRAGMA cache_spill = 1')\n"
        "db.execute('BEGIN')\n"
        "for n in range(5000): db.execute(\"INSERT INTO sessions VALUES (?, '', '', '', '')\", (f'half-{n}',))",
    )
    before = file_hashes(path.parent)
    assert "chat.db-journal" in before
    assert count_sessions(path) == 2
    assert file_hashes(path.parent) == before


def test_later_writes_are_neither_seen_nor_blocked(path: Path) -> None:
    """A migration reads one snapshot from a live write-ahead log while the application writes."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        add_sessions(application, "three")
        with open_snapshot(path) as db:
            assert db.execute(COUNT).fetchone() == (3,)
            add_sessions(application, "four")
            assert db.execute(COUNT).fetchone() == (3,)
        add_sessions(application, "five")
    assert count_sessions(path) == 5


def test_a_writer_without_a_log_is_not_kept_waiting(path: Path) -> None:
    """A read does not block the original application, whose files have no write-ahead log."""
    make_file_with_data(path)
    with open_snapshot(path) as db, closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as application:
        add_sessions(application, "three")
        assert db.execute(COUNT).fetchone() == (2,)
    assert count_sessions(path) == 3


def test_locks_of_the_same_process_are_kept(path: Path) -> None:
    """Taking a snapshot keeps the application's POSIX locks, which closing the file in this process would drop."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        assert count_sessions(path) == 2
        script = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "locked" in other.stderr
        application.execute("COMMIT")


def test_a_copy_goes_before_it_is_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the process ends, no copy of the conversations stays in the temporary directory."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    make_file_with_data(path)
    with open_snapshot(path) as db:
        assert list(temporary.iterdir()) == []
        assert db.execute(COUNT).fetchone() == (2,)


def test_a_read_only_directory_is_enough(path: Path) -> None:
    """A backup on a read-only path can be migrated."""
    make_file_with_data(path)
    use_write_ahead_log(path)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    before = file_hashes(path.parent)
    try:
        assert count_sessions(path) == 2
        assert file_hashes(path.parent) == before
    finally:
        path.parent.chmod(0o755)


def test_ctrl_c_on_a_terminal_is_for_one_process(path: Path) -> None:
    """Ctrl-C does not reach the probe process, so an application that handles it can continue the migration."""
    make_file_with_data(path)

    async def asked() -> bool:
        return waiting._probe is not None

    with closing(sqlite3.connect(path, isolation_level=None)) as application, ThreadPoolExecutor(1) as pool:
        application.execute("BEGIN EXCLUSIVE")
        with snapshot_of(path) as waiting:
            opening = pool.submit(waiting.open)
            asyncio.run(wait_until(asked))
            assert waiting._probe is not None
            assert os.getpgid(waiting._probe.pid) != os.getpgrp()
            waiting.interrupt()
            assert isinstance(opening.exception(), MigrationError)


def test_a_copied_real_file_is_left_as_it_was(path: Path) -> None:
    """The original application's file, if one is given, stays unchanged."""
    legacy = os.environ.get("FLUX_MEMORY_LEGACY_DB")
    if legacy is None:
        pytest.skip("FLUX_MEMORY_LEGACY_DB names no file")
    shutil.copyfile(legacy, path)
    before = file_hashes(path.parent)
    assert count_sessions(path) == 66
    assert file_hashes(path.parent) == before
