"""Tests migrations from a broken SQLite file: a clear error, nothing moved, and a second run completes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from fault_report import Fault
from sqlite_locks import hold_lock
from transfer_memories import Trigger, make_old, make_random_file, move, read_target

from flux_memory import ConversationMemory, FluxMemoryError
from flux_memory.transfer import Plan, Status, migrate

# The command with a short timeout for locks.
COMMAND: Final = """
from flux_memory.transfer.source import snapshot
snapshot._BUSY_SECONDS = 0.5
from flux_memory.cli.migrate import migrate
migrate()
"""
SESSIONS, MESSAGES = 20, 1500
PAGE_BYTES: Final = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of the original application, with messages on many pages."""
    path = tmp_path / "chat.db"
    make_random_file(path, sessions=SESSIONS, messages=MESSAGES)
    return path


def run_impatient_migrate(path: Path, dsn: str) -> tuple[int, str]:
    """Run `flux-memory migrate`; return its exit code and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "--sqlite-path", str(path), "--postgres-dsn", dsn, "--yes"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@contextmanager
def hold_commit(path: Path) -> Iterator[None]:
    """Keep another process in the middle of a commit."""
    with hold_lock(path, "BEGIN EXCLUSIVE"):
        yield


@contextmanager
def overwrite_bytes(path: Path, at: int, size: int) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\xff" * size + content[at + size :])
    yield
    path.write_bytes(content)


@contextmanager
def truncate_to(path: Path, size: int) -> Iterator[None]:
    content = path.read_bytes()
    os.truncate(path, size)
    yield
    path.write_bytes(content)


FAULTS: Final = {
    "locked": (hold_commit, "another process holds the file's lock; stop it"),
    "header overwritten": (lambda path: overwrite_bytes(path, 0, 100), "is not a SQLite database; check --sqlite-path"),
    "page overwritten": (
        lambda path: overwrite_bytes(path, path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES, PAGE_BYTES),
        "is damaged",
    ),
    "schema overwritten": (
        lambda path: overwrite_bytes(path, path.read_bytes().index(b"CREATE TABLE sessions") + 2, 1),
        "is damaged; copy it",
    ),
    "truncated": (lambda path: truncate_to(path, path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES), "is damaged"),
    "truncated in a page": (lambda path: truncate_to(path, path.stat().st_size - 1000), "damaged"),
    "emptied": (lambda path: truncate_to(path, 0), "is empty and holds no conversation memory; check --sqlite-path"),
}


@pytest.mark.fault("migration from a broken file", backend="sqlite")
@pytest.mark.parametrize("old", [False, True], ids=["copied", "in place"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_source_moves_nothing_and_says_why(
    path: Path, flux_memory_postgres_dsn: str, fault: Fault, name: str, old: bool
) -> None:
    """Exit code 1 and a sentence, no traceback, nothing in the target; with the file repaired the command completes."""
    dsn = flux_memory_postgres_dsn
    break_, says = FAULTS[name]
    with break_(path):
        if old:
            make_old(path)
        code, errors = run_impatient_migrate(path, dsn)
        assert code == 1, errors
        assert says in errors
        assert "Traceback" not in errors
        assert read_target(dsn) == ([], [])
    assert run_impatient_migrate(path, dsn)[0] == 0
    sessions, messages = read_target(dsn)
    assert (len(sessions), len(messages)) == (SESSIONS, MESSAGES)
    fault.add(acknowledged=MESSAGES)


@pytest.mark.fault("source cut while a migration reads it", backend="sqlite")
@pytest.mark.parametrize("phase", ["Preflight", "Load", "Verify"])
def test_a_source_that_is_cut_while_it_is_read(
    tmp_path: Path, flux_memory_postgres_dsn: str, fault: Fault, phase: str
) -> None:
    """A file that an application has open is read in place: missing data is an error, or was read before."""
    dsn, path = flux_memory_postgres_dsn, tmp_path / "chat.db"

    async def run() -> tuple[Path, bool]:
        async with ConversationMemory(path) as application:
            for number in range(4):
                session = await application.create_session(session_id=str(number))
                await application.add_messages(
                    session, [{"role": "user", "content": f"{one} " + "x" * 3000} for one in range(100)]
                )
            whole = tmp_path / "whole.db"
            for suffix in ("", "-wal"):
                await asyncio.to_thread(
                    lambda end: Path(f"{whole}{end}").write_bytes(Path(f"{path}{end}").read_bytes()), suffix
                )
            cut = Trigger(phase, lambda: (os.truncate(path, PAGE_BYTES), os.truncate(f"{path}-wal", PAGE_BYTES)))
            (outcome,) = await asyncio.gather(
                migrate(Plan(sqlite_path=path, postgres_dsn=dsn), cut), return_exceptions=True
            )
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, FluxMemoryError)
                assert "damaged" in str(outcome) or "cannot be read" in str(outcome)
                return whole, False
            return whole, outcome.status is Status.IDENTICAL

    whole, moved = asyncio.run(run())
    sessions, messages = read_target(dsn)
    assert (len(sessions), len(messages)) == ((4, 400) if moved else (0, 0))
    assert move(whole, dsn).status is Status.IDENTICAL
    assert len(read_target(dsn)[1]) == 400
    fault.add(acknowledged=400)
