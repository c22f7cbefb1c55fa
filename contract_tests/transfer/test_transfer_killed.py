"""Tests that a second run completes a migration with exactly the same result after a kill at any point."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from raw_postgres import OTHER_CLIENTS, execute, wait_until_none
from transfer_memories import EMPTY, OTHER, make_tables, move, read_target
from transfer_processes import ROUNDS_PER_KILL, migrate_until_killed, seeded_random, start_command, start_migration

from flux_memory.transfer import Status, migrate_back

WORKING = f"{OTHER_CLIENTS} AND state <> 'idle'"


@pytest.fixture
def path(random_file: Path) -> Path:
    """A file in random order."""
    return random_file


def kill_at_row(path: Path, dsn: str, rows: int, *, helped: bool) -> bool:
    """Run a migration that kills itself, and return whether it did."""
    return migrate_until_killed(path, dsn, rows, batch_size=50, helper_bytes=0 if helped else 10**12)


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill a process after some time, and return whether it was still running."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def measure_duration(process: subprocess.Popen[str]) -> float:
    """Return the duration of a process that succeeds."""
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return time.monotonic() - began


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_killed_anywhere_and_run_again(path: Path, flux_memory_postgres_dsn: str, populated: bool, kills: int) -> None:
    """A second run completes after `kill -9` at a random point of preflight, load or verification."""
    dsn = flux_memory_postgres_dsn
    make_tables(dsn)
    before = [OTHER] if populated else []
    asyncio.run(execute(dsn, *EMPTY, *before))
    seconds = measure_duration(start_migration(path, dsn))
    expected = read_target(dsn)
    rng = seeded_random()
    done = rounds = 0
    while done < kills:
        rounds += 1
        assert rounds < ROUNDS_PER_KILL * kills
        asyncio.run(execute(dsn, *EMPTY, *before))
        if rounds % 2:
            killed = kill_after(start_migration(path, dsn), rng.uniform(seconds / 4, seconds))
            # It finished first: its duration is a better bound.
            seconds *= 1 if killed else 0.9
        else:
            killed = kill_at_row(path, dsn, rng.randrange(2 * 3040), helped=rounds % 4 == 0)
        done += killed
        asyncio.run(wait_until_none(dsn, WORKING))
        sessions, messages = read_target(dsn)
        if not populated:
            assert (len(sessions), len(messages)) in {(0, 0), (40, 3000)}, "all or nothing"
        assert sum(row[6] for row in sessions) == len(messages), "no batch is half there"
        assert len(sessions) >= populated
        assert move(path, dsn, batch_size=50).status is (Status.CONTAINED if populated else Status.IDENTICAL)
        assert read_target(dsn) == expected


def test_a_migration_to_sqlite_is_killed_anywhere_and_run_again(
    path: Path, flux_memory_postgres_dsn: str, tmp_path: Path, kills: int
) -> None:
    """After a kill there is no file, or the proven one; the run that completes leaves nothing else behind."""
    dsn = flux_memory_postgres_dsn
    make_tables(dsn)
    asyncio.run(execute(dsn, *EMPTY))
    assert move(path, dsn).status is Status.IDENTICAL
    back = tmp_path / "back.db"
    seconds = measure_duration(start_command("--to-sqlite", back, "--postgres-dsn", dsn))
    expected = read_tables(back)
    rng = seeded_random()
    done = rounds = 0
    while done < kills:
        rounds += 1
        assert rounds < ROUNDS_PER_KILL * kills
        back.unlink()
        process = start_command("--to-sqlite", back, "--postgres-dsn", dsn)
        killed = kill_after(process, rng.uniform(seconds / 4, seconds))
        # It finished first: its duration is a better bound.
        seconds *= 1 if killed else 0.9
        done += killed
        for file in tmp_path.iterdir():
            assert file.stat().st_mode & 0o077 == 0, "what was read is for its owner alone"
        if not back.exists():
            assert asyncio.run(migrate_back(dsn, back)).status is Status.IDENTICAL
            assert [file.name for file in tmp_path.iterdir()] == ["back.db"]
        assert read_tables(back) == expected


# Without the revisions, which are made anew.
CONTENTS: Final = (
    "SELECT id, user_id, created_at, updated_at, message_count FROM sessions ORDER BY id",
    "SELECT * FROM session_details ORDER BY session_id",
    "SELECT * FROM messages ORDER BY session_id, seq",
)


def read_tables(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return [db.execute(query).fetchall() for query in CONTENTS]


def test_the_next_run_removes_files_of_a_killed_run(
    path: Path, flux_memory_postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private copy is readable by its owner only, and is removed unless its process is alive."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = """
import os, signal, sys
from flux_memory.transfer.tempfiles import private_directory
with private_directory() as directory:
    (directory / "snapshot.db").write_text("people's words")
    print(directory, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    directory = Path(process.stdout.readline().strip())
    assert directory.stat().st_mode & 0o777 == 0o700
    asyncio.run(
        execute(
            flux_memory_postgres_dsn,
            "DROP TABLE IF EXISTS messages, session_details, sessions, feedback, flux_memory_schema",
        )
    )
    assert move(path, flux_memory_postgres_dsn).status is Status.IDENTICAL
    assert (directory / "snapshot.db").exists(), "its process lives"
    process.communicate()
    assert (directory / "snapshot.db").exists(), "it was killed"
    assert move(path, flux_memory_postgres_dsn).status is Status.IDENTICAL
    assert list(tmp_path.iterdir()) == []
