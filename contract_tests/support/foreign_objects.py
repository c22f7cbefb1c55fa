"""What other programs make in a SQLite file, and the refusal of a file because of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from original_application import dump_file, read_rows

from flux_memory import ConversationMemory, SchemaError
from flux_memory.health import check_sqlite


def run_script(path: Path, sql: str) -> None:
    """Run SQL on a file as another program."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(sql)


def list_objects(path: Path) -> set[tuple[str, str]]:
    """The name and the SQL of each object that was written by hand."""
    return set(read_rows(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


async def refused_by_name(path: Path, *says: str) -> None:
    """Expect that every way in refuses the file with the same words, and that it stays as it was."""
    before = dump_file(path)
    memory = ConversationMemory(path)
    for way in (memory.count_sessions(), memory.create_session(), check_sqlite(str(path), 10)):
        with pytest.raises(SchemaError) as refusal:
            await way
        for words in says:
            assert words in str(refusal.value)
        assert "damaged" not in str(refusal.value)
    await memory.close()
    assert dump_file(path) == before
