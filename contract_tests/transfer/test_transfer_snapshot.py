"""A migration changes no byte of the SQLite file, and leaves no file beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from ordinary_user import ordinary_user
from original_application import add_sessions, make_file, make_file_with_data
from small_disk import small_files
from waiting import until

from flux_memory.errors import MigrationError
from flux_memory.transfer import Plan, migrate
from flux_memory.transfer.source import reader, snapshot
from flux_memory.transfer.source.snapshot import snapshot_of

COUNT = "SELECT count(*) FROM sessions"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory / "chat.db"


def state(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with snapshot_of(path) as snapshot:
        snapshot.open()
        yield snapshot.db


def count(path: Path) -> int:
    with opened(path) as db:
        return int(db.execute(COUNT).fetchone()[0])


def write_ahead(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")


def killed_while(path: Path, script: str) -> None:
    """Run a script on the file in a process that dies without closing it."""
    script = f"import os, sqlite3\ndb = sqlite3.connect({str(path)!r}, isolation_level=None)\n{script}\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9


def test_an_ordinary_file_is_left_as_it_was(path: Path) -> None:
    """A file in rollback-journal mode stays unchanged, and no file appears beside it."""
    make_file_with_data(path)
    before = state(path.parent)
    assert count(path) == 2
    assert state(path.parent) == before


def test_a_closed_write_ahead_file_is_left_as_it_was(path: Path) -> None:
    """Reading a file in WAL mode leaves no -wal or -shm file beside it."""
    make_file_with_data(path)
    write_ahead(path)
    before = state(path.parent)
    assert list(before) == ["chat.db"]
    assert count(path) == 2
    assert state(path.parent) == before


def test_the_log_of_a_killed_application_is_read_and_left_alone(path: Path) -> None:
    """Rows that are only in the write-ahead log are read, after recovery in a copy."""
    make_file_with_data(path)
    write_ahead(path)
    killed_while(path, "db.execute(\"INSERT INTO sessions VALUES ('three', '', '2026-01-01', '2026-01-01', '{}')\")")
    before = state(path.parent)
    assert sorted(before) == ["chat.db", "chat.db-shm", "chat.db-wal"]
    assert count(path) == 3
    assert state(path.parent) == before


def test_a_log_without_its_index_is_read(path: Path) -> None:
    """A database copied with its log but without its -shm file is read."""
    make_file_with_data(path)
    write_ahead(path)
    killed_while(path, "db.execute(\"INSERT INTO sessions VALUES ('three', '', '2026-01-01', '2026-01-01', '{}')\")")
    path.with_name("chat.db-shm").unlink()
    before = state(path.parent)
    assert count(path) == 3
    assert state(path.parent) == before


@pytest.mark.parametrize("to_directory", [False, True], ids=["to the file", "to its directory"])
@pytest.mark.parametrize("killed", [False, True], ids=["at work", "killed"])
def test_the_log_of_a_file_behind_a_link_is_read(path: Path, killed: bool, to_directory: bool) -> None:
    """For a link, the log beside the link's target is read."""
    make_file_with_data(path)
    write_ahead(path)
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
        assert count(given) == 3


def test_a_transaction_that_a_crash_left_half_done_is_not_read(path: Path) -> None:
    """A hot journal is rolled back in a copy; the file and its journal are left for the application."""
    make_file_with_data(path)
    killed_while(
        path,
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('PRAGMA cache_spill = 1')\n"
        "db.execute('BEGIN')\n"
        "for n in range(5000): db.execute(\"INSERT INTO sessions VALUES (?, '', '', '', '')\", (f'half-{n}',))",
    )
    before = state(path.parent)
    assert "chat.db-journal" in before
    assert count(path) == 2
    assert state(path.parent) == before


def test_what_is_written_later_is_not_seen_and_not_kept_waiting(path: Path) -> None:
    """A migration reads one snapshot from a live write-ahead log while the application writes."""
    make_file_with_data(path)
    write_ahead(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        add_sessions(application, "three")
        with opened(path) as db:
            assert db.execute(COUNT).fetchone() == (3,)
            add_sessions(application, "four")
            assert db.execute(COUNT).fetchone() == (3,)
        add_sessions(application, "five")
    assert count(path) == 5


def test_a_writer_without_a_log_is_not_kept_waiting(path: Path) -> None:
    """A read does not block the original application, whose files have no write-ahead log."""
    make_file_with_data(path)
    with opened(path) as db, closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as application:
        add_sessions(application, "three")
        assert db.execute(COUNT).fetchone() == (2,)
    assert count(path) == 3


def test_the_locks_of_the_same_process_hold(path: Path) -> None:
    """Taking a snapshot keeps the application's POSIX locks, which closing the file in this process would drop."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN IMMEDIATE")
        assert count(path) == 2
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
    with opened(path) as db:
        assert list(temporary.iterdir()) == []
        assert db.execute(COUNT).fetchone() == (2,)


def test_a_read_only_directory_is_enough(path: Path) -> None:
    """A backup on a read-only path can be migrated."""
    make_file_with_data(path)
    write_ahead(path)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    before = state(path.parent)
    try:
        assert count(path) == 2
        assert state(path.parent) == before
    finally:
        path.parent.chmod(0o755)


def ordinary_user_can_reach(path: Path) -> closing[_Reachable]:
    return closing(_Reachable(path))


class _Reachable:
    """Lets another user traverse pytest's directories, which are private, during a test."""

    def __init__(self, path: Path) -> None:
        self._closed = [parent for parent in path.parents if parent.stat().st_mode & 0o001 == 0]
        self._modes = [parent.stat().st_mode for parent in self._closed]
        for parent in self._closed:
            parent.chmod(0o711 | parent.stat().st_mode)

    def close(self) -> None:
        for parent, mode in zip(self._closed, self._modes, strict=True):
            parent.chmod(mode)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("dear diary\n" * 1000), "is not a SQLite database"),
    ],
)
def test_what_is_no_memory_has_a_sentence_of_its_own(path: Path, make: object, says: str) -> None:
    """The error says whether the file is missing, a directory, empty or not a database."""
    make(path)  # type: ignore[operator]
    with pytest.raises(MigrationError, match=says):
        count(path)


@pytest.mark.parametrize("name", ["a\0b.db", "a\ud800b.db"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    """A NUL in the path, as from a DATABASE_URL with %00, is an error that names the path."""
    with pytest.raises(MigrationError, match="cannot be a file's name"):
        count(tmp_path / name)


def test_an_unreadable_file_says_so(path: Path) -> None:
    """Run as the wrong user, the command reports the missing permission."""
    make_file_with_data(path)
    path.chmod(0)
    with ordinary_user_can_reach(path), ordinary_user(), pytest.raises(MigrationError, match="no permission"):
        count(path)


def test_a_locked_file_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names another process's exclusive lock as the reason."""
    make_file_with_data(path)
    monkeypatch.setattr(snapshot, "_BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        application.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MigrationError, match="is locked"):
            count(path)


@pytest.mark.parametrize("shared", [False, True], ids=["no log", "a log that it shared"])
def test_waiting_for_a_lock_can_be_cancelled(path: Path, shared: bool) -> None:
    """Ctrl-C ends the wait for another process's lock."""
    make_file_with_data(path)

    async def run() -> None:
        migration = asyncio.create_task(
            migrate(Plan(sqlite_path=path, postgres_dsn="postgresql://nobody@127.0.0.1:1/nowhere"))
        )
        await asyncio.wait([migration], timeout=1)
        migration.cancel()
        done, _ = await asyncio.wait([migration], timeout=10)
        assert done, "it waits for the lock, for 30 s"
        assert migration.cancelled()

    with closing(sqlite3.connect(path, isolation_level=None)) as application:
        if shared:
            write_ahead(path)
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
    with pytest.raises(MigrationError, match="damaged"), opened(path) as db:
        db.execute("SELECT * FROM sessions ORDER BY title").fetchall()


def test_no_room_for_a_copy_says_so(path: Path) -> None:
    """The error names a full temporary directory and the remedy."""
    make_file_with_data(path)
    with small_files(), pytest.raises(MigrationError, match="TMPDIR"):
        count(path)


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


def test_ctrl_c_on_a_terminal_is_for_one_process(path: Path) -> None:
    """Ctrl-C does not reach the probe process, so an application that handles it can continue the migration."""
    make_file_with_data(path)

    async def asked() -> bool:
        return waiting._probe is not None

    with closing(sqlite3.connect(path, isolation_level=None)) as application, ThreadPoolExecutor(1) as pool:
        application.execute("BEGIN EXCLUSIVE")
        with snapshot_of(path) as waiting:
            opening = pool.submit(waiting.open)
            asyncio.run(until(asked))
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
    before = state(path.parent)
    assert count(path) == 66
    assert state(path.parent) == before


@pytest.mark.parametrize("damage", [b"CR\x80ATE TABLE sessions", b"CREATE TABLE sessions (\x80"])
def test_a_damaged_schema_is_said_though_python_cannot_read_it(path: Path, damage: bytes) -> None:
    """A damaged schema whose text SQLite quotes in its error is reported as damage."""
    make_file_with_data(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"CREATE TABLE sessions")
    content[at : at + len(damage)] = damage
    path.write_bytes(content)
    with pytest.raises(MigrationError, match="is damaged; copy it"), opened(path) as db:
        reader.inspect_source(db)
    if damage.startswith(b"CR\x80"):
        with pytest.raises(MigrationError, match="is damaged; copy it"):
            snapshot.connect(path, "mode=ro")
