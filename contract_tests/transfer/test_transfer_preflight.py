"""Tests the preflight: it finds every invalid row before the target changes, and refused rows are never lost."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from original_application import add_sessions, make_file
from transfer_memories import insert_message, insert_session, move, read_target

from flux_memory.errors import MigrationError, SchemaError
from flux_memory.transfer import Mode, OnInvalid, ProblemKind, Report, Status

Db = sqlite3.Connection
JSON = "metadata"
EARLIEST, LATEST = "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59.999999-23:59"
"""Times within the years 1 to 9999 in their own zone, but not in UTC."""


def count_problems(report: Report) -> dict[tuple[str, str], int]:
    return {(tally.table, str(tally.kind)): tally.count for tally in report.preflight.tallies.values()}


def insert_bad_session(db: Db) -> None:
    insert_session(db, "b", metadata="[")
    insert_message(db, "x", "b")


PROBLEMS: list[tuple[str, str, ProblemKind, Callable[[Db], Any]]] = [
    ("orphan", "messages", ProblemKind.ORPHAN, lambda db: insert_message(db, "bad", "gone")),
    ("null-id", "messages", ProblemKind.NULL_ID, lambda db: insert_message(db, None, "one")),
    ("null-session-id", "sessions", ProblemKind.NULL_ID, lambda db: insert_session(db, None)),
    ("empty-id", "messages", ProblemKind.BAD_LENGTH_ID, lambda db: insert_message(db, "", "one")),
    ("long-id", "messages", ProblemKind.BAD_LENGTH_ID, lambda db: insert_message(db, "x" * 256, "one")),
    ("nul", "messages", ProblemKind.NUL, lambda db: insert_message(db, "bad", "one", content="a\x00b")),
    (
        "nul-in-json",
        "messages",
        ProblemKind.NUL,
        lambda db: insert_message(db, "bad", "one", metadata='{"a": "\\u0000"}'),
    ),
    ("nul-in-key", "messages", ProblemKind.NUL, lambda db: insert_message(db, "bad", "one", metadata='{"\\u0000": 1}')),
    ("surrogate", "messages", ProblemKind.LONE_SURROGATE, lambda db: insert_raw(db, "content", b"\xed\xa0\x80")),
    (
        "surrogate-in-json",
        "messages",
        ProblemKind.LONE_SURROGATE,
        lambda db: insert_message(db, "b", "one", metadata='{"a": "\\ud800"}'),
    ),
    ("utf8", "messages", ProblemKind.BAD_UTF8, lambda db: insert_raw(db, "content", b"caf\xe9")),
    ("utf8-in-title", "sessions", ProblemKind.BAD_UTF8, lambda db: insert_raw(db, "title", b"caf\xe9")),
    ("blob", "messages", ProblemKind.BLOB, lambda db: insert_message(db, "bad", "one", content=b"\x00\x01")),
    ("blob-json", "messages", ProblemKind.BLOB, lambda db: insert_message(db, "bad", "one", metadata=b"{}")),
    ("json", "messages", ProblemKind.BAD_JSON, lambda db: insert_message(db, "bad", "one", metadata="{'a': 1}")),
    ("json-rest", "messages", ProblemKind.BAD_JSON, lambda db: insert_message(db, "bad", "one", metadata="{} {}")),
    ("json-empty", "messages", ProblemKind.BAD_JSON, lambda db: insert_message(db, "bad", "one", metadata="")),
    ("json-list", "messages", ProblemKind.NOT_AN_OBJECT, lambda db: insert_message(db, "bad", "one", metadata="[1]")),
    ("json-null", "sessions", ProblemKind.NOT_AN_OBJECT, lambda db: insert_session(db, "bad", metadata="null")),
    ("nan", "messages", ProblemKind.NAN, lambda db: insert_message(db, "bad", "one", metadata='{"a": NaN}')),
    (
        "nan-after-space",
        "messages",
        ProblemKind.NAN,
        lambda db: insert_message(db, "bad", "one", metadata=' {"a": NaN}'),
    ),
    ("infinity", "messages", ProblemKind.NAN, lambda db: insert_message(db, "bad", "one", metadata='{"a": -Infinity}')),
    (
        "1e400",
        "messages",
        ProblemKind.NUMBER_OUT_OF_RANGE,
        lambda db: insert_message(db, "b", "one", metadata='{"a": 1e400}'),
    ),
    (
        "digits",
        "messages",
        ProblemKind.NUMBER_OUT_OF_RANGE,
        lambda db: insert_message(db, "b", "one", metadata=f'{{"a": {"9" * 5000}}}'),
    ),
    (
        "deep",
        "messages",
        ProblemKind.TOO_DEEP,
        lambda db: insert_message(db, "b", "one", metadata='{"a":' + "[" * 150 + "]" * 150 + "}"),
    ),
    (
        "abyss",
        "messages",
        ProblemKind.TOO_DEEP,
        lambda db: insert_message(db, "b", "one", metadata='{"a":' + "[" * 99999 + "]" * 99999 + "}"),
    ),
    ("time", "messages", ProblemKind.BAD_TIMESTAMP, lambda db: insert_message(db, "bad", "one", when="yesterday")),
    (
        "month-13",
        "messages",
        ProblemKind.BAD_TIMESTAMP,
        lambda db: insert_message(db, "bad", "one", when="2026-13-01T00:00:00"),
    ),
    ("year-10000", "messages", ProblemKind.BAD_TIMESTAMP, lambda db: insert_message(db, "bad", "one", when=1e18)),
    (
        "year-10000-in-utc",
        "messages",
        ProblemKind.BAD_TIMESTAMP,
        lambda db: insert_message(db, "b", "one", when=LATEST),
    ),
    ("year-0-in-utc", "sessions", ProblemKind.BAD_TIMESTAMP, lambda db: insert_session(db, "bad", updated=EARLIEST)),
    ("session-time", "sessions", ProblemKind.BAD_TIMESTAMP, lambda db: insert_session(db, "bad", updated="never")),
    ("empty-role", "messages", ProblemKind.EMPTY_ROLE, lambda db: insert_message(db, "bad", "one", role="")),
    (
        "its-session",
        "messages",
        ProblemKind.SESSION_REFUSED,
        insert_bad_session,
    ),
]


def insert_raw(db: Db, column: str, value: bytes) -> None:
    """Store bytes that are not UTF-8 as TEXT, as some programs do."""
    if column == "title":
        db.execute("INSERT INTO sessions VALUES ('bad', CAST(? AS TEXT), '2026-01-01', '2026-01-01', '{}')", (value,))
    else:
        db.execute("INSERT INTO messages VALUES ('bad', 'one', 'user', CAST(? AS TEXT), '{}', '2026-01-01')", (value,))


@pytest.mark.parametrize(
    ("table", "kind", "spoil"), [case[1:] for case in PROBLEMS], ids=[case[0] for case in PROBLEMS]
)
def test_each_problem_is_found_refused_and_quarantined(
    path: Path, tmp_path: Path, flux_memory_postgres_dsn: str, table: str, kind: ProblemKind, spoil: Callable[[Db], Any]
) -> None:
    """By default nothing is moved. With a quarantine the other rows are, and the corrected row can be loaded later."""
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        insert_message(db, "good-1", "one", when="2026-01-01T00:00:01")
        spoil(db)
        insert_message(db, "good-2", "one", when="2026-01-01T00:00:02")

    report = move(path, flux_memory_postgres_dsn)
    assert (report.status, report.exit_code) == (Status.REFUSED, 1)
    assert count_problems(report)[table, str(kind)] == 1
    assert read_target(flux_memory_postgres_dsn) == ([], [])

    held = tmp_path / "held.jsonl"
    report = move(path, flux_memory_postgres_dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=held)
    assert (report.status, report.exit_code) == (Status.QUARANTINED, 3)
    assert [row[1] for row in read_target(flux_memory_postgres_dsn)[1]] == ["good-1", "good-2"]
    entries = [json.loads(line) for line in held.read_text("utf-8").splitlines()]
    assert len(entries) == report.preflight.refused
    assert held.stat().st_mode & 0o777 == 0o600

    retried = move(held, flux_memory_postgres_dsn, retry=True)
    assert retried.status is Status.REFUSED, "a row that is not corrected is refused again"
    held.write_text("".join(json.dumps(correct(entry)) + "\n" for entry in entries), "utf-8")
    retried = move(held, flux_memory_postgres_dsn, retry=True)
    assert retried.status is Status.CONTAINED
    sessions, messages = read_target(flux_memory_postgres_dsn)
    assert len(messages) == 2 + sum(entry["table"] == "messages" for entry in entries)
    assert len(sessions) == 1 + sum(entry["table"] == "sessions" for entry in entries)


def correct(entry: dict[str, Any]) -> dict[str, Any]:
    row = entry["row"]
    if entry["table"] == "messages":
        session = "one" if row["session_id"] in {"gone", "one"} else row["session_id"]
        row |= {"id": "fixed", "role": "user", "content": "fixed", "session_id": session}
        row |= {"metadata": "{}", "created_at": "2026-01-01"}
        entry.pop("session", None) if session != "one" else None
        if session == "one":
            entry["session"] = session_one()
    else:
        row |= {"id": row["id"] or "fixed", "title": "fixed", "metadata": "{}", "updated_at": "2026-01-01"}
    return entry


def session_one() -> dict[str, Any]:
    when = "2026-02-05T15:17:45.407069"
    return {"id": "one", "title": "title of one", "metadata": '{"lang": "ko"}', "created_at": when, "updated_at": when}


def test_ids_that_are_there_twice_are_found_where_no_key_forbids_them(
    path: Path, flux_memory_postgres_dsn: str
) -> None:
    """The first row with an id is moved; the others are refused, not lost."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(
            """
            CREATE TABLE sessions (id TEXT, title TEXT, created_at TEXT, updated_at TEXT, metadata TEXT);
            CREATE TABLE messages (id TEXT, session_id TEXT, role TEXT, content TEXT, metadata TEXT, created_at TEXT);
            """
        )
        insert_session(db, "one")
        insert_session(db, "one", title="another")
        insert_message(db, "m", "one", content="first")
        insert_message(db, "m", "one", content="second")
    report = move(
        path, flux_memory_postgres_dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=path.with_suffix(".q")
    )
    assert count_problems(report) == {
        ("sessions", str(ProblemKind.DUPLICATE_ID)): 1,
        ("messages", str(ProblemKind.DUPLICATE_ID)): 1,
    }
    assert [row[3] for row in read_target(flux_memory_postgres_dsn)[1]] == ["first"]


def test_a_dry_run_changes_nothing(path: Path, flux_empty_database: str) -> None:
    """A dry run and a comparison do not even create the tables."""
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
    assert move(path, flux_empty_database, mode=Mode.PREFLIGHT).status is Status.READY
    with pytest.raises(SchemaError, match="no conversation memory"):
        move(path, flux_empty_database, mode=Mode.VERIFY)


def test_ties_in_time_are_counted(path: Path, flux_memory_postgres_dsn: str) -> None:
    """Messages of the same time keep the order in which they were written."""
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        for id_ in "zyx":
            insert_message(db, id_, "one")
    report = move(path, flux_memory_postgres_dsn)
    assert report.preflight.ties == 2
    assert [row[1] for row in read_target(flux_memory_postgres_dsn)[1]] == ["z", "y", "x"]


def test_unknown_columns_and_tables_are_refused(path: Path, flux_memory_postgres_dsn: str) -> None:
    """Unknown columns and tables are left behind only if they are named."""
    with closing(make_file(path)) as db:
        add_sessions(db, "one")
        db.executescript("ALTER TABLE messages ADD COLUMN rating INT; CREATE TABLE feedback (id TEXT)")
    with pytest.raises(MigrationError, match=r"feedback, messages\.rating"):
        move(path, flux_memory_postgres_dsn)
    allowed = frozenset({"feedback", "messages.rating"})
    assert move(path, flux_memory_postgres_dsn, leave_behind=allowed).status is Status.IDENTICAL


def test_a_file_of_another_kind_is_refused(path: Path, flux_memory_postgres_dsn: str) -> None:
    """Files of other applications, in UTF-16, or of a newer schema are refused."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE books (title TEXT)")
    with pytest.raises(MigrationError, match="holds no conversation memory"):
        move(path, flux_memory_postgres_dsn)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sessions (cookie TEXT)")
    with pytest.raises(MigrationError, match="not conversation memory"):
        move(path, flux_memory_postgres_dsn)
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA encoding = 'UTF-16'")
        db.executescript("CREATE TABLE sessions (id, title, created_at, updated_at, metadata)")
        db.executescript("CREATE TABLE messages (id, session_id, role, content, metadata, created_at)")
    with pytest.raises(MigrationError, match="UTF-16"):
        move(path, flux_memory_postgres_dsn)
    with closing(make_file(path.with_name("newer.db"))) as db:
        db.execute("CREATE TABLE flux_memory_schema (version, name, checksum, applied_at)")
        db.execute("INSERT INTO flux_memory_schema VALUES (99, '', '', '')")
    with pytest.raises(SchemaError, match="upgrade flux-memory"):
        move(path.with_name("newer.db"), flux_memory_postgres_dsn)
