"""Tests the metadata filter on SQLite: it finds exactly the containing sessions, with any writer and query plan."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from original_application import INSERT_SESSION, make_file

from flux_memory import records
from flux_memory.backends.sqlite import adds, edits
from flux_memory.backends.sqlite.listing import Criteria, count, select_page
from flux_memory.backends.sqlite.opening import connect
from flux_memory.records.checking import MAX_COUNT
from flux_memory.records.filters import MetadataFilter
from flux_memory.records.metadata import encode_metadata

KEYS = st.sampled_from(["a", "b", "é", 'q"\\', "[]", "a" * 101, "a" * 102])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 1.0, 0.5, -0.0, 2**53 + 1, 2**63, 10**30, 1e30, 1e22, 10**22]),
    st.sampled_from(["", "x", "é", "😀", "1", "#", "null", "x" * 101, "x" * 102]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=3)
WHEN = "2026-01-01T00:00:00.{:06d}+00:00"


SELECT_ALL = """
SELECT id, user_id, metadata FROM sessions JOIN session_details ON session_id = id ORDER BY updated_at DESC
"""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The backend's connection to an empty file."""
    with closing(connect(str(tmp_path / "chat.db"), 5)[0]) as db:
        yield db


def insert(db: sqlite3.Connection, id_: str, user_id: str, when: str, metadata: str, *, verb: str = "INSERT") -> None:
    """Insert a session as another program may."""
    db.execute(
        f"{verb} INTO sessions (id, user_id, created_at, updated_at) VALUES (?, ?, ?, ?)", (id_, user_id, when, when)
    )
    db.execute(f"{verb} INTO session_details (session_id, metadata) VALUES (?, ?)", (id_, metadata))


def read_page(
    limit: int, offset: int, criteria: Criteria, db: sqlite3.Connection, *, with_metadata: bool = True
) -> list[tuple[Any, ...]]:
    """Return a page, and end the read's transaction as the worker does."""
    try:
        return select_page(limit, offset, criteria, with_metadata, db)
    finally:
        db.rollback()


def filter_ids(db: sqlite3.Connection, part: dict[str, Any], user_id: str | None = None, limit: int = 50) -> list[str]:
    """Return the ids that a filter finds; counting finds as many."""
    criteria = Criteria(user_id, encode_metadata(part))
    found = [row[0] for row in read_page(limit, 0, criteria, db)]
    assert count_matching(criteria, db) == len(found) or len(found) == limit
    return found


def count_matching(criteria: Criteria, db: sqlite3.Connection) -> int:
    """Count sessions, and end the read's transaction as the worker does."""
    try:
        return count(criteria, db)
    finally:
        db.rollback()


def count_search_rows(db: sqlite3.Connection) -> int:
    """Return the number of rows in the search table."""
    return int(db.execute("SELECT count(*) FROM session_metadata").fetchone()[0])


@settings(max_examples=150, deadline=None)
@given(objects=st.lists(OBJECTS, max_size=8), part=OBJECTS, escaped=st.booleans())
def test_the_filter_finds_exactly_the_containing_sessions(
    objects: list[dict[str, Any]], part: dict[str, Any], *, escaped: bool
) -> None:
    """Neither the search table nor the plan changes the result; JSON escapes do not either."""
    with closing(connect(":memory:", 5)[0]) as db:
        for number, value in enumerate([*objects, part]):
            text = json.dumps(value) if escaped else encode_metadata(value)
            insert(db, str(number), "ann", WHEN.format(number), text)
        stored = dict(
            db.execute(
                "SELECT id, metadata FROM sessions JOIN session_details ON session_id = id ORDER BY updated_at DESC"
            )
        )
        expected = [id_ for id_, text in stored.items() if MetadataFilter(encode_metadata(part)).finds(text)]
        assert expected[0] == str(len(objects))
        assert filter_ids(db, part) == expected
        assert filter_ids(db, part, "ann") == expected
        for limit in range(len(expected)):
            assert filter_ids(db, part, limit=limit) == expected[:limit]
        db.execute("DELETE FROM sessions")
        assert count_search_rows(db) == 0


@pytest.mark.parametrize("matching", [0, 1, 30, 199, 200, 201, 1_000, 3_000])
def test_few_or_many_the_page_is_the_newest(db: sqlite3.Connection, matching: int) -> None:
    """Whether the plan sorts the matches or walks the newest sessions, pages follow one another without a gap."""
    db.execute("BEGIN")
    for number in range(3_000):
        match = number * matching // 3_000 != (number + 1) * matching // 3_000
        text = encode_metadata({"lang": "ko" if match else "en", "number": number})
        insert(db, f"{number:04}", f"user-{number % 3}", WHEN.format(number), text)
    db.execute("COMMIT")
    wanted = encode_metadata({"lang": "ko"})
    for user_id in (None, "user-1"):
        criteria = Criteria(user_id, wanted)
        expected = [
            id_
            for id_, user, text in db.execute(SELECT_ALL)
            if MetadataFilter(wanted).finds(text) and user_id in {None, user}
        ]
        found: list[str] = []
        while rows := read_page(50, len(found), criteria, db):
            found += [row[0] for row in rows]
        assert found == expected
        followed: list[str] = []
        after = criteria
        while rows := read_page(50, 0, after, db, with_metadata=False):
            followed += [row[0] for row in rows]
            after = criteria._replace(cursor=(rows[-1][4], rows[-1][0]))
        assert followed == expected
        everything = read_page(MAX_COUNT, 0, criteria, db)
        assert [row[0] for row in everything] == expected
        assert count_matching(criteria, db) == len(expected)
        assert read_page(0, 0, criteria, db) == []


def test_a_page_is_of_one_moment(db: sqlite3.Connection, tmp_path: Path) -> None:
    """Deletions by other processes between the statements of a page do not hide a session that exists throughout."""
    matching = [f"match-{number}" for number in range(4)]
    for number, id_ in enumerate([*matching, *(f"other-{number:02}" for number in range(36))]):
        text = encode_metadata({"lang": "ko" if id_ in matching else "en"})
        insert(db, id_, "ann", WHEN.format(number), text)
        insert(db, f"bob-{id_}", "bob", WHEN.format(number), '{"lang":"ko"}')

    def delete_before_the_count(statement: str) -> None:
        if "SELECT 1 FROM sessions" in statement:
            with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other:
                other.execute("DELETE FROM sessions WHERE id LIKE 'other-%'")

    db.set_trace_callback(delete_before_the_count)
    assert filter_ids(db, {"lang": "ko"}, "ann", limit=2) == ["match-3", "match-2"]
    assert not db.in_transaction


def test_writes_of_other_programs_are_found(db: sqlite3.Connection) -> None:
    """Any program that inserts, changes, replaces or deletes sessions keeps the filter right without knowing of it."""
    insert(db, "one", "", WHEN.format(1), '{"tags": ["a", {"b": 1}], "u": {"p": 1.50}}')
    insert(db, "two", "", WHEN.format(2), '{"t\\u0061gs": ["\\u0061"]}')
    assert filter_ids(db, {"tags": ["a"]}) == ["two", "one"]
    assert filter_ids(db, {"tags": [{"b": 1.0}]}) == ["one"]
    assert filter_ids(db, {"u": {"p": 1.5}}) == ["one"]
    db.execute("UPDATE session_details SET metadata = '{\"tags\": []}' WHERE session_id = 'one'")
    assert filter_ids(db, {"tags": ["a"]}) == ["two"]
    assert filter_ids(db, {"tags": []}) == ["two", "one"]
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("UPDATE sessions SET id = 'three' WHERE id = 'one'")
    db.execute("UPDATE session_details SET session_id = 'three' WHERE session_id = 'one'")
    assert filter_ids(db, {"tags": []}) == ["two", "three"]
    insert(db, "two", "", WHEN.format(3), '{"tags": ["c"]}', verb="INSERT OR REPLACE")
    assert filter_ids(db, {"tags": ["a"]}) == []
    assert filter_ids(db, {"tags": ["c"]}) == ["two"]


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO session_details VALUES ('one', '', :text) ON CONFLICT DO UPDATE SET metadata = excluded.metadata",
        "INSERT OR REPLACE INTO session_details VALUES ('one', '', :text)",
        "UPDATE OR ABORT session_details SET metadata = :text",
        "UPDATE OR ROLLBACK session_details SET metadata = :text",
        "UPDATE session_details SET metadata = :text",
    ],
)
def test_a_repeated_value_is_stored_under_any_conflict_clause(db: sqlite3.Connection, write: str) -> None:
    """SQLite hands the conflict clause of a statement on to the triggers that it fires, in place of their own."""
    insert(db, "one", "", WHEN.format(1), '{"tags": ["x"]}')
    db.execute(write, {"text": '{"tags": ["a", "a"]}'})
    assert filter_ids(db, {"tags": ["a"]}) == ["one"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "null", '"a"', '{"a": NaN}', "[" * 3_000, '{"a": 1} x'])
def test_metadata_that_is_not_an_object_matches_no_filter(db: sqlite3.Connection, text: str) -> None:
    """Corrupt metadata written beside the library matches no filter and hides no other session."""
    insert(db, "good", "", WHEN.format(1), '{"a": 1}')
    insert(db, "bad", "", WHEN.format(2), text)
    assert filter_ids(db, {"a": 1}) == ["good"]
    assert filter_ids(db, {}) == ["good"]
    db.execute("UPDATE session_details SET metadata = '{\"a\": 1}' WHERE session_id = 'bad'")
    assert filter_ids(db, {"a": 1}) == ["bad", "good"]


def test_no_session_leaves_anything_behind(db: sqlite3.Connection) -> None:
    """The search rows of a session are deleted with it."""
    for id_ in ("one", "two"):
        adds.create_session(records.check_new_session(id_, "", "", {"a": [1, 2], "b": {"c": None}}), db)
    assert count_search_rows(db) == 10
    edits.delete_session("one", None, db)
    assert count_search_rows(db) == 5
    edits.clear(db)
    assert count_search_rows(db) == 0


@pytest.mark.parametrize("generation", [1, 2])
def test_an_adopted_files_metadata_is_found(tmp_path: Path, generation: int) -> None:
    """The first filter finds the original application's metadata, including escaped letters."""
    path = tmp_path / "chat.db"
    with closing(make_file(path, generation=generation)) as original:
        for id_, text in (("old", json.dumps({"언어": "한국어", "n": [1]})), ("null", None), ("bad", "{")):
            original.execute(INSERT_SESSION, (id_, "", "2026-01-01T00:00:00", "2026-01-01T00:00:00", text))
    with closing(connect(str(path), 5)[0]) as db:
        assert filter_ids(db, {"언어": "한국어"}) == ["old"]
        assert filter_ids(db, {"n": [1.0]}) == ["old"]
        assert filter_ids(db, {}) == ["old", "null"]
