"""Tests the helper process: two processes that read halves of a large file find what one process finds."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from original_application import make_file
from raw_postgres import execute
from transfer_memories import (
    EMPTY,
    OTHER,
    insert_message,
    insert_session,
    make_random_file,
    make_tables,
    move,
    read_target,
)

from flux_memory.errors import MigrationError
from flux_memory.transfer import Mode, OnInvalid, Report, Status
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source import helper, reader, snapshot
from flux_memory.transfer.source import preflight as preflight_module
from flux_memory.transfer.source.preflight import preflight
from flux_memory.transfer.source.snapshot import snapshot_of


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the helper for files of any size, on any number of processors."""
    monkeypatch.setattr(snapshot, "_HELPER_MIN_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def insert_invalid_rows(path: Path) -> None:
    """Add invalid rows in both halves, and rows whose ids are not text."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number, home in enumerate(["", "gone", "s-0", "s-f", "zz"]):
            insert_message(db, f"bad-{number}", home, metadata="[")
        insert_message(db, None, "gone")
        insert_message(db, "blob", b"x")
        insert_session(db, None)
        insert_session(db, "zz", metadata="nothing")
        db.execute("INSERT INTO messages VALUES ('mixed', 'zz', 'user', CAST(? AS TEXT), '{}', 5)", (b"\xff",))


def summarize(report: Report) -> dict[str, Any]:
    found = report.as_dict()
    tallies = {(tally["table"], tally["kind"]): tally["count"] for tally in found["preflight"].pop("tallies")}
    return {"preflight": found["preflight"], "tallies": tallies, "verification": found["verification"]}


@pytest.mark.parametrize("populated", [False, True], ids=["empty", "populated"])
def test_two_processes_find_and_move_the_same_rows_as_one(
    path: Path, flux_memory_postgres_dsn: str, monkeypatch: pytest.MonkeyPatch, populated: bool
) -> None:
    """Rows, refused rows, counts and digests are the same with and without the helper, for load and merge."""
    dsn = flux_memory_postgres_dsn
    make_random_file(path, sessions=40, messages=1000)
    insert_invalid_rows(path)
    make_tables(dsn)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    results = []
    for large in (10**12, 0):
        asyncio.run(execute(dsn, *EMPTY, *([OTHER] if populated else [])))
        monkeypatch.setattr(snapshot, "_HELPER_MIN_BYTES", large)
        held = path.with_name(f"held-{large}")
        report = move(path, dsn, batch_size=7, on_invalid=OnInvalid.QUARANTINE, quarantine_file=held)
        assert report.status is Status.QUARANTINED
        results.append((summarize(report), sorted(held.read_text("utf-8").splitlines()), read_target(dsn)))
    assert len(results[0][2][1]) == 1000
    assert results[0] == results[1]


def test_rows_are_found_alike_however_many_are_checked_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not depend on where chunks end within valid and invalid sessions."""
    make_random_file(path, sessions=40, messages=300)
    insert_invalid_rows(path)
    results = []
    for together in (1, 3, 100, 1000):
        monkeypatch.setattr(preflight_module, "_CHUNK_MESSAGES", together)
        with closing(sqlite3.connect(path)) as db, Spool() as prepared:
            source = reader.Source(db, reader.inspect_source(db))
            found = preflight(source, RowValidator(UTC), prepared, lambda _: None, reader.EVERYTHING)
            rows = [b"".join(prepared.chunks(table)) for table in ("sessions", "messages")]
            results.append((found, [*prepared.digests()], [*prepared.refused()], rows))
    assert results[0][0].messages == 300
    assert results[0][0].refused_messages == 8
    assert all(result == results[0] for result in results)


def test_two_processes_see_one_state_during_writes(path: Path, two_processes: None) -> None:
    """Both processes see a transaction that commits while they open the file, or neither does."""
    with closing(make_file(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        insert_session(db, "a")
        insert_session(db, "z")
    stop = threading.Event()

    def application() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            number = 0
            while not stop.wait(0.002):
                db.execute("BEGIN IMMEDIATE")
                for session in "az":
                    insert_message(db, f"{session}-{number}", session)
                db.execute("COMMIT")
                number += 1

    writer = threading.Thread(target=application)
    writer.start()
    try:
        for _ in range(5):
            with snapshot_of(path) as opened:
                opened.open()
                found = []
                assert opened.helper is not None
                layout = reader.inspect_source(opened.db)
                with Spool() as mine:
                    source = reader.Source(opened.db, layout)
                    found = [
                        preflight(source, RowValidator(UTC), mine, lambda _: None, reader.Part(end="m")),
                        opened.helper.preflight(layout, UTC, reader.Part(first="m"), lambda _: None, keeps_rows=False),
                    ]
                assert found[0].messages == found[1].messages
                assert found[0].sessions == found[1].sessions == 1
    finally:
        stop.set()
        writer.join()


def test_a_helper_that_is_killed_is_an_error_with_advice(
    path: Path, flux_memory_postgres_dsn: str, two_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the kernel kills the helper, the error says so, nothing was changed, and the next run completes."""
    make_random_file(path, sessions=40, messages=1000)
    preflight = helper.Helper.preflight

    def killed(self: helper.Helper, *arguments: Any, **options: Any) -> Any:
        self.kill()
        return preflight(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(helper.Helper, "preflight", killed)
        with pytest.raises(MigrationError, match=r"exit code -9.*run again"):
            move(path, flux_memory_postgres_dsn)
    assert read_target(flux_memory_postgres_dsn) == ([], [])
    assert move(path, flux_memory_postgres_dsn).status is Status.IDENTICAL


def test_a_dry_run_and_a_comparison_use_both(path: Path, flux_memory_postgres_dsn: str, two_processes: None) -> None:
    """The helper spools no rows for a dry run or a comparison."""
    make_random_file(path, sessions=40, messages=1000)
    assert move(path, flux_memory_postgres_dsn, mode=Mode.PREFLIGHT).preflight.messages == 1000
    assert move(path, flux_memory_postgres_dsn).status is Status.IDENTICAL
    assert move(path, flux_memory_postgres_dsn, mode=Mode.VERIFY).status is Status.IDENTICAL
