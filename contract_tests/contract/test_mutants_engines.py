"""Tests that the contract finds bugs of the engines: with one changed line of SQL, the clause for it fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from bound_stores import make_postgres_clock, make_postgres_corrupter, make_sqlite_corrupter, run_clause

from flux_memory import ConversationMemory, PostgresConversationMemory, Session, records
from flux_memory.backends.postgres import adds as postgres_adds
from flux_memory.backends.postgres import appending, creating, deleting, updating
from flux_memory.backends.postgres import feedback as postgres_feedback
from flux_memory.backends.postgres import queries as postgres_queries
from flux_memory.backends.sqlite import adds as sqlite_adds
from flux_memory.backends.sqlite import edits as sqlite_edits
from flux_memory.backends.sqlite import feedback as sqlite_feedback
from flux_memory.backends.sqlite import history as sqlite_history
from flux_memory.backends.sqlite import listing as sqlite_listing
from flux_memory.backends.sqlite import opening
from flux_memory.backends.sqlite.listing import CONTAINS
from flux_memory.records import building, checking, metadata, text, timestamps
from flux_memory.schema import postgres as postgres_schema
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.evidence.properties import MUTANT

Record = Callable[[str, object], None]

# A broken memory may leave handles open and calls without an await.
pytestmark = pytest.mark.filterwarnings("ignore")


class Break(NamedTuple):
    """Replaces one constant or function, or one part of a text."""

    caught_by: str
    module: ModuleType | type
    name: str
    part: str
    replacement: Any

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Break the module; fails if the text to replace is gone."""
        sound = getattr(self.module, self.name)
        if isinstance(sound, str):
            assert self.part in sound
            patch.setattr(self.module, self.name, sound.replace(self.part, self.replacement))
        else:
            patch.setattr(self.module, self.name, self.replacement(sound))


def without_foreign_keys(sound: Callable[..., None]) -> Callable[..., None]:
    return lambda db, pragma, value, expected: None if pragma == "foreign_keys" else sound(db, pragma, value, expected)


def foreign_keys_once(sound: Callable[..., None]) -> Callable[..., None]:
    seen: list[sqlite3.Connection] = []

    def require(db: sqlite3.Connection, pragma: str, value: str, expected: tuple[object, ...]) -> None:
        if pragma == "foreign_keys":
            seen.append(db)
        if pragma != "foreign_keys" or db is seen[0]:
            sound(db, pragma, value, expected)

    return require


def without_empty(sound: Callable[..., str]) -> Callable[..., str]:
    return lambda name, value, **limits: sound(name, value, **limits) or " "


def without_zone(sound: Callable[..., list[Session]]) -> Callable[..., list[Session]]:
    return lambda rows, most: [{**row, "created_at": row["created_at"][:26]} for row in sound(rows, most)]


def without_last_change(_: Callable[..., str]) -> Callable[..., str]:
    return lambda session_id, updated_at: timestamps.utc_now()


def replacing(sound: Callable[..., str]) -> Callable[..., str]:
    def create(row: records.SessionRow, db: sqlite3.Connection) -> str:
        db.execute("UPDATE session_details SET title = 'x' WHERE session_id = ?", (row.id,))
        return row.id if db.execute("SELECT 1 FROM sessions WHERE id = ?", (row.id,)).fetchone() else sound(row, db)

    return create


VALUES = {
    "NUL is let through": Break("FM-TXT-008", text, "find_unstorable", "", lambda _: lambda value: None),
    "roles may be empty": Break("FM-TXT-011", checking, "check_text", "", without_empty),
    "NaN is let through": Break("FM-MET-010", metadata, "_encode_float", "", lambda _: repr),
    "-0.0 is kept": Break("FM-MET-005", metadata, "_encode_float", "", lambda _: repr),
    "times without a zone": Break("FM-TIM-001", timestamps, "check", "", lambda _: lambda value: value[:26]),
    "times without a zone in a listing": Break("FM-TIM-001", building, "_sound_sessions", "", without_zone),
}
"""Bugs in code that both backends share; a bug that one engine compensates is in the other engine's list."""


SQLITE = {
    **{name: broken for name, broken in VALUES.items() if name != "NaN is let through"},
    "ordered by time and id": Break(
        "FM-ORD-002", sqlite_history, "SELECT_HISTORY", "seq DESC", "created_at DESC, id DESC"
    ),
    "oldest first": Break("FM-ORD-003", sqlite_history, "SELECT_HISTORY", "seq DESC", "seq ASC"),
    "before is inclusive": Break("FM-ORD-006", sqlite_history, "SELECT_HISTORY_BEFORE", "seq <", "seq <="),
    "the clock decides": Break("FM-TIM-004", sqlite_edits, "later", "", without_last_change),
    "by creation": Break("FM-LST-001", sqlite_listing, "NEWEST_FIRST", "updated_at DESC", "created_at DESC"),
    "ties at random": Break("FM-LST-002", sqlite_listing, "NEWEST_FIRST", "id DESC", "random()"),
    "offset is dropped": Break("FM-LST-003", sqlite_listing, "NEWEST_FIRST", ":offset", "0 * :offset"),
    "users like users": Break("FM-TXT-004", sqlite_listing, "OF_USER", "=", "LIKE"),
    "the filter is equality": Break("FM-LST-011", sqlite_listing, "CONTAINS", CONTAINS, "details.metadata = :metadata"),
    "the filter asks the index only": Break("FM-LST-012", sqlite_listing, "CONTAINS", CONTAINS, "TRUE"),
    "creating replaces": Break("FM-SES-004", sqlite_adds, "create_session", "", replacing),
    "foreign keys are off": Break("FM-SES-008", opening, "_require", "", without_foreign_keys),
    "foreign keys are on in the first connection": Break("FM-SES-008", opening, "_require", "", foreign_keys_once),
    "clearing spares one": Break("FM-SES-010", sqlite_edits, "DELETE_SESSIONS", "sessions", "sessions WHERE rowid > 1"),
    "retries compare the role only": Break(
        "FM-MSG-004",
        records.MessageRow,
        "same_as",
        "",
        lambda _: lambda self, role, *_: self.role == role,
    ),
    "pops take the oldest": Break("FM-POP-001", sqlite_edits, "SELECT_LAST_MESSAGE", "DESC", "ASC"),
    "copies lose metadata": Break("FM-FRK-002", sqlite_edits, "COPY_DETAILS", "coalesce(metadata, '{}')", "'{}'"),
    "copies of messages lose metadata": Break(
        "FM-FRK-001", sqlite_edits, "COPY_MESSAGES", "metadata, created_at\nFROM", "'{}', created_at\nFROM"
    ),
    "after is inclusive": Break("FM-ORD-030", sqlite_history, "SELECT_HISTORY_AFTER", "seq >", "seq >="),
    "the list cursor is inclusive": Break("FM-LST-030", sqlite_listing, "AFTER_CURSOR", "<", "<="),
    "inactive since is inclusive": Break("FM-DEL-011", sqlite_edits, "SELECT_SOME_INACTIVE", "<", "<="),
    "deletes users like users": Break("FM-DEL-010", sqlite_edits, "SELECT_SOME_OF_USER", "= ?", "LIKE ?"),
    "feedback ties by age": Break(
        "FM-FBK-006", sqlite_feedback, "SELECT_FEEDBACK", "created_at DESC, id DESC", "created_at DESC, rowid DESC"
    ),
    "feedback since is exclusive": Break("FM-FBK-010", sqlite_feedback, "SELECT_STATS", ">= ?", "> ?"),
    "feedback without its owner": Break(
        "FM-FBK-015", sqlite_feedback, "SELECT_OWNER", "SELECT user_id", "SELECT '' AS user_id"
    ),
    "feedback before its session is kept": Break(
        "FM-FBK-015", sqlite_feedback, "DELETE_OF_SESSION", "user_id IN ('', ?)", "user_id IN (?)"
    ),
}

NO_WAIT = """
SELECT 1 / pg_try_advisory_xact_lock(hashtextextended('flux_memory_schema', 0))::int, pg_sleep(0.1)
"""
"""Raises instead of waiting for another process's lock; its holder keeps it long enough to be met."""

POSTGRES = {
    **{name: broken for name, broken in VALUES.items() if name != "-0.0 is kept"},
    "ordered by time and id": Break(
        "FM-ORD-002", postgres_queries, "SELECT_HISTORY", "seq DESC", "created_at DESC, id DESC"
    ),
    "oldest first": Break("FM-ORD-003", postgres_queries, "SELECT_HISTORY", "seq DESC", "seq ASC"),
    "before is inclusive": Break("FM-ORD-006", postgres_queries, "SELECT_HISTORY_BEFORE", "seq <", "seq <="),
    "milliseconds": Break("FM-TIM-001", postgres_queries, "SELECT_SESSIONS", ".US", ".MS"),
    "the server's time zone": Break("FM-TIM-002", postgres_adds, "ADD_MESSAGE", "'UTC'", "'Asia/Seoul'"),
    "the clock decides": Break("FM-TIM-004", updating, "UPDATE_TITLE", "greatest(updated_at, ", "greatest("),
    "ties at random": Break("FM-LST-002", postgres_queries, "NEWEST_FIRST", 'id COLLATE "C" DESC', "random()"),
    "the filter is equality": Break("FM-LST-011", postgres_queries, "CONTAINS", "@>", "="),
    "large floats lose their point": Break("FM-MET-003", metadata, "_encode_float", "", lambda _: repr),
    "creating replaces": Break("FM-SES-004", creating, "INSERT_SESSION", "DO NOTHING", "DO UPDATE SET user_id = 'x'"),
    "deleting empties the title": Break(
        "FM-SES-008", deleting, "DELETE_SESSION", "DELETE FROM sessions", "UPDATE sessions SET user_id = ''"
    ),
    "retries go in again": Break(
        "FM-MSG-002", postgres_adds, "ADD_MESSAGE", " AND NOT EXISTS (SELECT 1 FROM stored)", ""
    ),
    "retries compare the content only": Break("FM-MSG-004", postgres_adds, "ADD_MESSAGE", "role = $3 AND ", ""),
    "the creation of tables is not awaited": Break(
        "FM-CON-002", postgres_schema, "TRY_LOCK", postgres_schema.TRY_LOCK, NO_WAIT
    ),
    "pops take the oldest": Break("FM-POP-001", updating, "POP_MESSAGE", "ORDER BY seq DESC", "ORDER BY seq"),
    "pops keep the revision": Break(
        "FM-POP-003", updating, "POP_MESSAGE", "revision = $2::text::uuid\n", "user_id = user_id\n"
    ),
    "pops trust their snapshot": Break("FM-POP-005", updating, "POP_MESSAGE", "THEN 'stale'", "THEN 'done'"),
    "through is exclusive": Break("FM-FRK-003", creating, "FORK_SESSION", "seq <= CASE", "seq < CASE"),
    "the clock dates copies": Break("FM-FRK-007", creating, "FORK_SESSION", "greatest(updated_at, now.utc)", "now.utc"),
    "unknown through copies nothing": Break(
        "FM-FRK-004", creating, "FORK_SESSION", "WHERE $2::text IS NULL OR EXISTS (SELECT 1 FROM last)\n", ""
    ),
    "the list cursor is inclusive": Break("FM-LST-030", postgres_queries, "BEFORE", "<", "<="),
    "counts ignore the user": Break(
        "FM-LST-035", postgres_queries, "COUNT_SESSIONS_OF_USER_BY_METADATA", "user_id = $1", "$1 = $1"
    ),
    "feedback ties by the collation": Break(
        "FM-FBK-006", postgres_feedback, "SELECT_FEEDBACK", 'id COLLATE "C" DESC', "lower(id) DESC"
    ),
    "feedback replaces": Break(
        "FM-FBK-004", postgres_feedback, "INSERT_FEEDBACK", "DO NOTHING", "DO UPDATE SET comment = excluded.comment"
    ),
    "days elsewhere": Break(
        "FM-FBK-009", postgres_feedback, "SELECT_STATS", "to_char(created_at", "to_char(created_at + interval '9 hours'"
    ),
    "an erasure ends with the sessions": Break(
        "FM-FBK-015", postgres_feedback, "DELETE_OF_USER", "WHERE", "WHERE session_id IN (SELECT id FROM sessions) AND"
    ),
    "turns are numbered like one message": Break(
        "FM-REV-060", appending, "APPEND_MESSAGES", "message_count + (SELECT count(*) FROM item)", "message_count + 1"
    ),
    "turns are in the order of their ids": Break(
        "FM-REV-060", appending, "APPEND_MESSAGES", "+ item.position", "+ row_number() OVER (ORDER BY item.id)"
    ),
    "conditional messages keep the time": Break(
        "FM-TIM-061",
        appending,
        "APPEND_MESSAGE",
        "greatest(updated_at, statement_timestamp() AT TIME ZONE 'UTC')",
        "updated_at",
    ),
    "conditional messages return another session": Break(
        "FM-REV-060",
        appending,
        "APPEND_MESSAGE",
        "FROM session_details WHERE session_id::text = $1",
        "FROM session_details WHERE session_id::text <> $1 LIMIT 1",
    ),
    "turns do not compare": Break(
        "FM-REV-061", appending, "APPEND_MESSAGES", "revision::text = $3", "$3::text IS NOT NULL"
    ),
    "clearing sessions only": Break("FM-FBK-016", deleting, "DELETE_EVERYTHING", "; DELETE FROM feedback", ""),
}


@pytest.mark.parametrize("name", SQLITE)
def test_a_broken_sqlite_is_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The named clause fails on the backend with this bug."""
    record_property(MUTANT, f"{name} on SQLite")
    SQLITE[name].apply(monkeypatch)
    path = tmp_path / "chat.db"
    damage = make_sqlite_corrupter(path, "UPDATE messages SET metadata = '{' WHERE session_id = ? AND id = ?")
    store = StoreUnderTest(lambda: ConversationMemory(path), corrupt_message=damage)
    assert run_clause(SQLITE[name].caught_by, store) is not None


@pytest.mark.parametrize("name", POSTGRES)
def test_a_broken_postgres_is_caught(
    name: str, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The named clause fails on the backend with this bug."""
    record_property(MUTANT, f"{name} on PostgreSQL")
    POSTGRES[name].apply(monkeypatch)
    store = StoreUnderTest(
        lambda: PostgresConversationMemory(flux_empty_database),
        clock_at=make_postgres_clock(flux_empty_database),
        corrupt_message=make_postgres_corrupter(
            flux_empty_database, "UPDATE messages SET metadata = '[]' WHERE session_id = $1 AND id = $2"
        ),
    )
    assert run_clause(POSTGRES[name].caught_by, store) is not None
