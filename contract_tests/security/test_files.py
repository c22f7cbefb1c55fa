"""Tests that only their owner can read the files of a migration, under any umask."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from original_application import add_message, make_file_with_data

from flux_memory.transfer import OnInvalid, Plan, migrate, migrate_back


@pytest.fixture(autouse=True)
def permissive_umask() -> Iterator[None]:
    """A umask that grants everything to everyone."""
    before = os.umask(0)
    yield
    os.umask(before)


def file_modes(directory: Path) -> dict[str, int]:
    """Return the permissions of each file below a directory."""
    return {found.name: stat.S_IMODE(found.stat().st_mode) for found in directory.rglob("*") if found.is_file()}


def test_files_of_a_migration_are_private(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """The quarantine file and the file written by a migration to SQLite hold conversations, and are 0600."""
    source = tmp_path / "source.db"
    make_file_with_data(source)
    with closing(sqlite3.connect(source, isolation_level=None)) as db:
        add_message(db, "orphan", "nobody", "2026-02-05T15:17:00.407069")
    made = tmp_path / "made"
    made.mkdir()
    quarantine = made / "rows.jsonl"
    plan = Plan(
        sqlite_path=source,
        postgres_dsn=flux_memory_postgres_dsn,
        on_invalid=OnInvalid.QUARANTINE,
        quarantine_file=quarantine,
    )
    asyncio.run(migrate(plan))
    asyncio.run(migrate_back(flux_memory_postgres_dsn, made / "back.db"))
    assert json.loads(quarantine.read_text(encoding="utf-8").splitlines()[0])["row"]["id"] == "orphan"
    assert file_modes(made) == {"rows.jsonl": 0o600, "back.db": 0o600}
