"""Tests SQLite sources that cannot be read: the error names the reason, from a missing file to a full disk."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ordinary_user import become_ordinary_user, make_traversable
from original_application import add_sessions, make_file, make_file_with_data
from small_disk import limit_file_size
from snapshots import count_sessions, open_snapshot, use_write_ahead_log

from flux_memory.errors import MigrationError
from flux_memory.transfer import Plan, migrate
from flux_memory.transfer.source import reader, snapshot
from flux_memory.transfer.source.snapshot import snapshot_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path in a directory of its own."""
    directory = tmp_path / "data"
    directory.mkdir()
    return directory / "chat.db"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("dear diary\n" * 1000), "is not a SQLite database"),
    ],
)
def test_each_kind_of_unusable_file_has_its_own_error(path: Path, make: object, says: str) -> None:
    """The error says whether the file is missing, a directory, empty or not a database."""
    make(path)  # type: ignore[operator]
    with pytest.raises(MigrationError, match=says):
        count_sessions(path)


@pytest.mark.parametrize("name", ["a\0b.db", "a\ud800b.db"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    """A NUL in the path, as from a DATABASE_URL with %00, is an error that names the path."""
    with pytest.raises(MigrationError, match="cannot be a file's name"):
        count_sessions(tmp_path / name)


def test_an_unreadable_file_says_so(path: Path) -> None:
    """Run as the wrong user, the command reports the missing permission."""
    make_file_with_data(path)
    path.chmod(0)
    with make_traversable(path), become_ordinary_user(), pytest.raises(MigrationError, match="no permission"):
        count_sessions(path)


def test_a_locked_file_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names another process's exclusive lock as the reason."""
    make_file_with_data(path)
    monkeypatch.setattr(snapshot, "_BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MigrationError, match="is locked"):
            count_sessions(path)


@pytest.mark.parametrize("shared", [False, True], ids=["no log", "a log that it shared"])
def test_waiting_for_a_lock_can_be_cancelled(path: Path, shared: bool) -> None:
    """Ctrl-C ends the wait for another process's lock."""
    make_file_with_data(path)

    async def run() -> None:
        migration = asyncio.create_task(
            migrate(Plan(sqlite_path=path, postgres_dsn="postgresql://user@127.0.0.1:1/nowhere"))
        )
        await asyncio.wait([migration], timeout=1)
        migration.cancel()
        done, _ = await asyncio.wait([migration], timeout=10)
        assert done, "the wait for the lock, of up to 30 s, did not end"
        assert migration.cancelled()

    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        if shared:
            use_write_ahead_log(path)
            add_sessions(application, "three")
            application.execute("PRAGMA locking_mode = EXCLUSIVE")
            add_sessions(application, "four")
        else:
            application.execute("BEGIN EXCLUSIVE")
        asyncio.run(run())


def test_a_damaged_file_says_so(path: Path) -> None:
    """A truncated file is reported as damaged."""
    with closing(make_file(path)) as db:
        db.execute("BEGIN")
        add_sessions(db, *(f"s{n}" for n in range(2000)))
        db.execute("COMMIT")
    os.truncate(path, 8192)
    with pytest.raises(MigrationError, match="damaged"), open_snapshot(path) as db:
        db.execute("SELECT * FROM sessions ORDER BY title").fetchall()


def test_no_room_for_a_copy_says_so(path: Path) -> None:
    """The error names a full temporary directory and the remedy."""
    make_file_with_data(path)
    with limit_file_size(), pytest.raises(MigrationError, match="TMPDIR"):
        count_sessions(path)


def test_no_more_processes_says_so(path: Path) -> None:
    """The error names the limit on open files if no pipe to the probe process can be opened."""
    make_file_with_data(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with path.open() as file, snapshot_of(path) as opened:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 4, limits[1]))
        try:
            with pytest.raises(MigrationError, match="Too many open files; check its limits"):
                opened.open()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("damage", [b"CR\x80ATE TABLE sessions", b"CREATE TABLE sessions (\x80"])
def test_a_damaged_schema_with_invalid_text_is_reported(path: Path, damage: bytes) -> None:
    """A damaged schema whose text SQLite quotes in its error is reported as damage."""
    make_file_with_data(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"CREATE TABLE sessions")
    content[at : at + len(damage)] = damage
    path.write_bytes(content)
    with pytest.raises(MigrationError, match="is damaged; copy it"), open_snapshot(path) as db:
        reader.inspect_source(db)
    if damage.startswith(b"CR\x80"):
        with pytest.raises(MigrationError, match="is damaged; copy it"):
            snapshot.connect(path, "mode=ro")
