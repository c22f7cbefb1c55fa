"""Tests migrations to SQLite: no file is overwritten, and only a complete, valid file is left."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from original_application import make_file_with_data
from raw_postgres import execute
from transfer_memories import move

from flux_memory.errors import MigrationError, SchemaError
from flux_memory.transfer import Status, migrate_back, to_sqlite


def test_no_file_is_overwritten_or_half_written(path: Path, target: str) -> None:
    """An existing file is kept, a missing directory is named, and no partial file is left."""
    make_file_with_data(path)
    move(path, target)
    before = path.read_bytes()
    with pytest.raises(MigrationError, match="not overwritten"):
        asyncio.run(migrate_back(target, path))
    assert path.read_bytes() == before
    with pytest.raises(MigrationError, match="check the directory"):
        asyncio.run(migrate_back(target, path.parent / "nowhere" / "back.db"))
    assert [file.name for file in path.parent.iterdir()] == ["chat.db"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE messages SET created_at = 'infinity'", "a time outside the years 1 to 9999"),
        ("UPDATE sessions SET updated_at = '0044-03-15 BC'", "a time outside the years 1 to 9999"),
        ("UPDATE messages SET metadata = NULL", "session one of .* has a NULL"),
        (
            "ALTER TABLE session_details ALTER COLUMN title DROP NOT NULL; UPDATE session_details SET title = NULL",
            "session one of .* has a NULL",
        ),
    ],
)
def test_a_row_that_no_file_can_hold_ends_the_call_at_once(path: Path, target: str, damage: str, says: str) -> None:
    """An invalid row ends the export at once, although the driver waits for an end of COPY that it has already seen."""
    make_file_with_data(path)
    move(path, target)
    asyncio.run(execute(target, damage))
    back = path.with_name("back.db")

    async def work() -> None:
        await asyncio.wait_for(migrate_back(target, back), 20)

    with pytest.raises(MigrationError, match=says):
        asyncio.run(work())
    assert not back.exists()


def test_a_database_without_a_memory_is_refused(target: str, tmp_path: Path) -> None:
    """A database without a memory is refused, not exported as an empty file."""
    with pytest.raises(SchemaError, match="no conversation memory"):
        asyncio.run(migrate_back(target, tmp_path / "back.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["UPDATE messages SET seq = seq + 100", "UPDATE sessions SET message_count = 9"])
def test_wrong_numbers_in_the_new_file_are_found(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Wrong counters in the new file are found, although its content is right; the library continues from them."""
    make_file_with_data(path)
    assert move(path, flux_empty_database).status is Status.IDENTICAL
    finish = to_sqlite._finish

    def finish_badly(db: sqlite3.Connection) -> None:
        finish(db)
        db.execute(damage)

    monkeypatch.setattr(to_sqlite, "_finish", finish_badly)
    report = asyncio.run(migrate_back(flux_empty_database, path.with_name("back.db")))
    assert report.status is Status.DIFFERENT
    assert not path.with_name("back.db").exists()
