"""A migration and a check of a file that its author made to do harm: bounded memory and time, and nothing executed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from original_application import add_message, add_sessions, make_file, make_file_with_data
from transfer_memories import insert_message, insert_session, move

from flux_memory import BackendUnavailableError, FluxMemoryError, MigrationError, SchemaError, health
from flux_memory.cli import main
from flux_memory.health import check_sqlite
from flux_memory.transfer import Mode, Status
from flux_memory.transfer.source.snapshot import snapshot_of

LARGE: Final = "x" * 2**20
ROWS: Final = 64
GROWTH_MEGABYTES: Final = 32
"""Half of what the rows have together; a reader needs a few copies of one."""
READER: Final = """
import sys
from datetime import UTC
from pathlib import Path
from flux_memory.transfer.rows.spool import Spool
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.preflight import preflight
from flux_memory.transfer.source.reader import EVERYTHING, Source, inspect_source
from flux_memory.transfer.source.snapshot import snapshot_of

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

with snapshot_of(Path(sys.argv[1])) as snapshot, Spool() as spool:
    spool.keeps_rows = False
    snapshot.open()
    before = peak()
    source = Source(snapshot.db, inspect_source(snapshot.db))
    found = preflight(source, RowValidator(UTC), spool, lambda rows: None, EVERYTHING)
    print(found.sessions + found.messages + found.refused, peak() - before)
"""
COLUMNS: Final[dict[str, dict[str, object]]] = {
    "content": {"content": LARGE},
    "role": {"role": LARGE},
    "metadata": {"metadata": json.dumps({"a": LARGE})},
    "broken metadata": {"metadata": '{"a": "' + LARGE},
}
TABLES: Final = {
    "an index": "",
    "no index": "DROP INDEX idx_messages_session",
    "no keys": "CREATE TABLE m AS SELECT * FROM messages; DROP TABLE messages; ALTER TABLE m RENAME TO messages",
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
@pytest.mark.parametrize(
    ("column", "table", "times"),
    [
        *((column, "an index", "T12:00:{:02}") for column in COLUMNS),
        ("content", "no index", "T12:00:{:02}"),
        ("content", "no keys", "T12:00:{:02}"),
        ("content", "an index", "T{:02}:00:00+14:00"),
        ("title", "an index", "T12:00:{:02}"),
    ],
)
def test_large_texts_in_any_column_are_read_one_by_one(path: Path, column: str, table: str, times: str) -> None:
    """Neither a batch nor a sort holds many rows; the two forms of time make the reader sort by their values."""
    with closing(make_file(path)) as db:
        db.execute("BEGIN")
        insert_session(db, "one")
        for number in range(ROWS):
            when = f"2026-02-05{times.format(number % 24)}" if number else "2026-02-05T12:00:00Z"
            if column == "title":
                insert_session(db, f"s{number}", title=LARGE)
            else:
                insert_message(db, f"m{number}", "one", when=when, **COLUMNS[column])
        db.execute("COMMIT")
        db.executescript(TABLES[table])
    said = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    rows, megabytes = map(int, said.stdout.split())
    assert rows >= ROWS
    assert megabytes < GROWTH_MEGABYTES


ENDLESS: Final = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT"
IN_PLACE: Final = {
    "endless": f"{ENDLESS} x AS id, 'one' AS session_id, '' AS role, '' AS content, '' AS metadata, '' AS created_at"
    " FROM n",
    "huge": f"{ENDLESS} x AS id, 'one' AS session_id, '' AS role, hex(zeroblob(100000000)) AS content, '' AS metadata,"
    " '' AS created_at FROM n LIMIT 1000",
    "harmless": "SELECT * FROM hidden",
    "broken": "SELECT no_such_function() AS id FROM hidden",
}


@pytest.mark.parametrize("view", IN_PLACE)
def test_a_view_in_place_of_a_table_is_not_read(path: Path, view: str, flux_empty_database: str) -> None:
    """It has any number of rows of any size; the check and the dry run end at once and name it."""
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        db.executescript(f"ALTER TABLE messages RENAME TO hidden; CREATE VIEW messages AS {IN_PLACE[view]}")
    with pytest.raises(FluxMemoryError, match="'messages' is a view, which flux-memory does not read"):
        move(path, flux_empty_database, mode=Mode.PREFLIGHT)
    with pytest.raises(SchemaError, match="'messages' is a view, which flux-memory does not read"):
        asyncio.run(check_sqlite(str(path), 10))


@pytest.mark.asyncio
async def test_a_check_ends_at_its_deadline_whatever_it_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two statements an interrupt is lost: it is sent until the look has ended."""
    make_file_with_data(path)
    monkeypatch.setattr(health, "COUNTS", f"{ENDLESS} count(*), 0 FROM n")
    began = time.monotonic()
    with pytest.raises(BackendUnavailableError, match="the call took longer than its deadline"):
        await check_sqlite(str(path), 0.2)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_file_is_read_with_distrust(path: Path, journal: str) -> None:
    """Functions that could do harm cannot be called by a view or a trigger, and damaged pages are noticed."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
    with snapshot_of(path) as snapshot:
        snapshot.open()
        pragmas = [snapshot.db.execute(f"PRAGMA {name}").fetchone() for name in ("trusted_schema", "cell_size_check")]
    assert pragmas == [(0,), (1,)]


def test_an_index_on_an_expression_is_no_obstacle(path: Path, flux_empty_database: str) -> None:
    """SQLite would not load it with distrust, so the schema is loaded before."""
    make_file_with_data(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE INDEX by_number ON messages (json_extract(metadata, '$.n'))")
    assert move(path, flux_empty_database).status is Status.IDENTICAL
    assert asyncio.run(check_sqlite(str(path), 10)).messages == 6


NAMES: Final = ["$(touch hacked)", "`touch hacked`", "a'; touch hacked; '", "it\x1b]0;hacked\x07s", "--yes", "a b", "ü"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["migrate", *map(str, arguments)])


@pytest.mark.parametrize("name", NAMES)
def test_an_advised_command_names_what_the_file_names(
    path: Path, name: str, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted into a shell, the advice leaves that table behind, and runs nothing that the file's author wrote."""
    monkeypatch.chdir(path.parent)
    make_file_with_data(path)
    quoted = name.replace('"', '""')
    with closing(sqlite3.connect(path)) as db:
        db.execute(f'CREATE TABLE "{quoted}" (x)')
    command = ("--sqlite-path", path, "--postgres-dsn", flux_empty_database)
    refused = run(*command)
    assert refused.exit_code == 1
    assert refused.output.replace("\n", "").isprintable()
    advice = refused.stderr.partition("then run again with ")[2].strip()
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {advice}"], capture_output=True, check=True, timeout=20
    ).stdout.decode()
    assert words.split("\0")[:-1] == ["--leave-behind", name]
    assert not path.with_name("hacked").exists()
    assert run(*command, *words.split("\0")[:-1]).exit_code == 0


def test_ids_reach_neither_the_terminal_nor_the_report_raw(path: Path, flux_empty_database: str) -> None:
    """Ids of refused rows are shown, cut and escaped; the report means the same."""
    id_ = "\x1b[2J\x9b31m\u202e" + "x" * 100_000
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        add_message(db, id_, "one", "2026-02-05T12:00:00")
    report = path.with_name("report.json")
    result = run("--sqlite-path", path, "--postgres-dsn", flux_empty_database, "--dry-run", "--report", report)
    assert result.exit_code == 1
    assert "\\u001b[2J\\u009b31m\\u202exxx" in result.output
    assert result.output.replace("\n", "").isprintable()
    assert len(result.output) < 5_000
    text = report.read_text()
    assert text.replace("\n", "").isprintable()
    (tally,) = json.loads(text)["preflight"]["tallies"]
    assert tally["first"][0].startswith(id_[:50])


def test_a_missing_file_names_the_original_one_beside_it(path: Path, flux_empty_database: str) -> None:
    """The original application's default name is another: a migration of the default path would miss it."""
    make_file_with_data(path.with_name("memory.db"))
    with pytest.raises(MigrationError, match=r"chat\.db does not exist; .*memory\.db exists and is not used"):
        move(path, flux_empty_database)
