"""Tests quarantine files: never overwritten or incomplete, written last, and loaded again with `--retry`."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from original_application import add_sessions, make_file
from transfer_memories import Trigger, insert_message, move, read_target

from flux_memory.errors import MigrationError
from flux_memory.transfer import OnInvalid, Plan, Status, migrate, quarantine
from flux_memory.transfer.quarantine import write_quarantine
from flux_memory.transfer.rows.spool import RefusedRow


def test_a_quarantine_file_is_never_overwritten(path: Path, flux_memory_postgres_dsn: str) -> None:
    """An existing quarantine file may hold the only copy of rows to be corrected."""
    with closing(make_file(path)) as db:
        insert_message(db, "m", "gone")
    held = path.with_name("held")
    held.write_text("precious")
    with pytest.raises(MigrationError, match="not overwritten"):
        move(path, flux_memory_postgres_dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=held)
    assert held.read_text() == "precious"


def make_file_with_an_orphan(path: Path) -> None:
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        insert_message(db, "good", "one")
        insert_message(db, "orphan", "gone")


@pytest.mark.parametrize("phase", ["Load", "Verify"])
def test_interrupted_with_a_quarantine_the_same_command_completes(
    path: Path, tmp_path: Path, flux_memory_postgres_dsn: str, phase: str
) -> None:
    """The quarantine file is written last, so that it does not block the second run after an interruption."""
    make_file_with_an_orphan(path)
    held = tmp_path / "held.jsonl"
    plan = Plan(
        sqlite_path=path, postgres_dsn=flux_memory_postgres_dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=held
    )
    with pytest.raises(RuntimeError, match="interrupted"):
        asyncio.run(migrate(plan, Trigger(phase, interrupt)))
    report = asyncio.run(migrate(plan))
    assert (report.status, report.quarantine) == (Status.QUARANTINED, str(held))
    assert [json.loads(line)["row"]["id"] for line in held.read_text("utf-8").splitlines()] == ["orphan"]
    assert [row[1] for row in read_target(flux_memory_postgres_dsn)[1]] == ["good"]


def interrupt() -> None:
    raise RuntimeError("interrupted")


def test_an_unwritable_quarantine_file_is_reported_and_another_works(
    path: Path, tmp_path: Path, flux_memory_postgres_dsn: str
) -> None:
    """An unwritable path is refused before the move; if found later, the next run skips the rows already moved."""
    make_file_with_an_orphan(path)
    directory = tmp_path / "mounted"
    plan = Plan(
        sqlite_path=path,
        postgres_dsn=flux_memory_postgres_dsn,
        on_invalid=OnInvalid.QUARANTINE,
        quarantine_file=directory / "held",
    )
    with pytest.raises(MigrationError, match="give --quarantine-file another path"):
        asyncio.run(migrate(plan))
    assert read_target(flux_memory_postgres_dsn) == ([], [])
    directory.mkdir()
    with pytest.raises(MigrationError, match="what was moved is skipped"):
        asyncio.run(migrate(plan, Trigger("Verify", directory.rmdir)))
    assert [row[1] for row in read_target(flux_memory_postgres_dsn)[1]] == ["good"]
    directory.mkdir()
    assert asyncio.run(migrate(plan)).status is Status.QUARANTINED


def test_an_incomplete_quarantine_file_is_removed(tmp_path: Path) -> None:
    """A quarantine file that could not be completed, for example on a full disk, is removed."""

    def rows() -> Iterator[RefusedRow]:
        yield RefusedRow("messages", ("gone", "orphan"), None, [])
        raise OSError(errno.ENOSPC, "no space left")

    held = tmp_path / "held"
    with pytest.raises(MigrationError, match="no space left"):
        write_quarantine(held, rows())
    assert not held.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [("nonsense", "line 1"), ("[]", "not a JSON object"), ('{"table": "x", "row": {}}', "'table' must be")],
)
def test_a_broken_quarantine_file_names_the_line(
    path: Path, flux_memory_postgres_dsn: str, line: str, says: str
) -> None:
    """An error in a quarantine file edited by hand names the line."""
    path.write_text(line + "\n")
    with pytest.raises(MigrationError, match=says):
        move(path, flux_memory_postgres_dsn, retry=True)


def test_a_retry_of_many_rows_can_be_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled retry stops reading its file before the call ends."""
    session = {"id": "s", "created_at": "2026-01-01T00:00:00", "updated_at": "2026-01-01T00:00:00"}
    line = json.dumps({"table": "sessions", "problems": [], "row": session})
    path.write_text(f"{line}\n" * 300_000)
    begun, lines, row = threading.Event(), itertools.count(), quarantine._row

    def counted(*arguments: Any) -> Any:
        next(lines)
        begun.set()
        return row(*arguments)

    async def run() -> int:
        plan = Plan(sqlite_path=path, postgres_dsn="postgresql://user@127.0.0.1:1/nowhere", retry=True)
        retrying = asyncio.create_task(migrate(plan))
        await asyncio.to_thread(begun.wait)
        retrying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retrying
        return next(lines)

    monkeypatch.setattr(quarantine, "_row", counted)
    read = asyncio.run(run())
    assert read < 300_000
    # `asyncio.run` has waited for all threads.
    assert next(lines) == read + 1


def test_a_retry_looks_its_sessions_up(tmp_path: Path) -> None:
    """Sessions of refused messages are joined by an index; a nested scan would take a day for 100,000 rows."""
    path, scratch = tmp_path / "empty.jsonl", tmp_path / "scratch.db"
    path.touch()
    quarantine.to_scratch(path, scratch, lambda: False)
    with closing(sqlite3.connect(scratch)) as db:
        db.executescript("CREATE TEMP TABLE contexts (id, user_id, title, metadata, created_at, updated_at)")
        plan = [row[-1] for row in db.execute(f"EXPLAIN QUERY PLAN {quarantine.ADD_CONTEXTS}")]
    assert any("INDEX sessions_by_id (id=?)" in step for step in plan), plan
