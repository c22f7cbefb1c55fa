"""Tests that memories of every kind move both ways, with each field as an application reads it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import tempfile
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from original_application import make_file, make_file_with_data
from raw_postgres import execute, fetch_rows
from transfer_memories import FORGET, insert_message, insert_session, make_random_file, move, read_target

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.records import timestamps
from flux_memory.transfer import Mode, Status, migrate_back
from flux_memory.transfer.rows.canonical import Canonicalizer
from flux_memory.transfer.rows.postgres_time import microseconds, time_text
from flux_memory.transfer.rows.problems import InvalidValueError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40) | st.sampled_from(
    [
        "",
        " ",
        "\r\n",
        "\ufeff",
        "한국어",
        "é",
        "e\u0301",
        "👩‍👩‍👧",
        "\\",
        '"',
        "\\u0041",
        "\t|\\N",
        "%s $1 ?",
        "\x7f\x1f\u2028",
    ]
)
NUMBERS = st.integers() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=5)
SPELLINGS = st.sampled_from(
    [{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}, {"sort_keys": True, "ensure_ascii": False}]
)
# In a TEXT column eight digits are a date, so seconds are unambiguous only from 1974 on.
MOMENTS = st.datetimes(datetime(1974, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 - naive, as the original wrote them


@st.composite
def draw_time(draw: st.DrawFn) -> str | int:
    """A time in one of the forms found in existing files."""
    moment = draw(MOMENTS)
    form = draw(st.sampled_from(["naive", "utc", "short", "z", "space", "offset", "seconds", "milliseconds", "digits"]))
    seconds = int(moment.replace(tzinfo=UTC).timestamp())
    forms: dict[str, str | int] = {
        "naive": moment.isoformat(),
        "utc": moment.isoformat() + "+00:00",
        "short": moment.replace(microsecond=0).isoformat(),
        "z": moment.isoformat() + "Z",
        "space": moment.isoformat(" "),
        "offset": moment.isoformat() + "+05:30",
        "seconds": seconds,
        "milliseconds": seconds * 1000 + moment.microsecond // 1000,
        "digits": str(seconds + 100_000_000),
    }
    return forms[form]


MESSAGES = st.tuples(st.sampled_from("abc"), TEXT.filter(bool), TEXT, METADATA, SPELLINGS, draw_time())
ON_A_DATABASE = settings(
    max_examples=int(os.environ.get("FLUX_MEMORY_TRANSFER_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ON_A_DATABASE
@given(
    sessions=st.lists(st.tuples(TEXT, METADATA, SPELLINGS, draw_time()), min_size=3, max_size=3),
    messages=st.lists(MESSAGES, max_size=12),
    generation=st.sampled_from([1, 2]),
    batch_size=st.none() | st.integers(1, 5),
)
def test_every_field_arrives(
    flux_memory_postgres_dsn: str, sessions: Any, messages: Any, generation: int, batch_size: int | None
) -> None:
    """Text, JSON with its types, times and order survive load or merge, and the way back."""
    dsn = flux_memory_postgres_dsn
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "chat.db"
        expected: dict[str, list[tuple[Any, ...]]] = {"a": [], "b": [], "c": []}
        with closing(make_file(path, generation=generation)) as db:
            db.execute("BEGIN")
            for id_, (title, metadata, spelling, when) in zip("abc", sessions, strict=True):
                insert_session(db, id_, title=title, metadata=json.dumps(metadata, **spelling), when=when)
            for number, (session, role, content, metadata, spelling, when) in enumerate(messages):
                written = json.dumps(metadata, **spelling)
                insert_message(db, f"m{number}", session, role=role, content=content, metadata=written, when=when)
                expected[session].append(
                    (timestamps.parse(_as_stored(when)), number, f"m{number}", role, content, _with_types(metadata))
                )
            db.execute("COMMIT")
        clear_target(dsn)
        if batch_size is not None:
            asyncio.run(execute(dsn, "INSERT INTO sessions (id, created_at, updated_at) VALUES ('x', now(), now())"))
        report = move(path, dsn, **({} if batch_size is None else {"batch_size": batch_size}))
        assert report.status is (Status.IDENTICAL if batch_size is None else Status.CONTAINED)
        assert report.moved is not None
        assert (report.moved.sessions, report.moved.messages) == (3, len(messages))
        in_order = {id_: [row[:1] + row[2:] for row in sorted(expected[id_], key=lambda row: row[:2])] for id_ in "abc"}
        assert asyncio.run(read_histories(PostgresConversationMemory(dsn, min_size=1))) == in_order
        back = Path(directory) / "back.db"
        assert asyncio.run(migrate_back(dsn, back)).status is Status.IDENTICAL
        assert asyncio.run(read_histories(ConversationMemory(back))) == in_order
        asyncio.run(assert_same_sessions(dsn, back))


def _as_stored(when: str | int) -> str:
    """Return what a TEXT column stores for a number."""
    return str(when)


def _with_types(value: Any) -> Any:
    """Return JSON in which 1, 1.0 and True differ, and -0.0 and 0.0 do not."""
    if isinstance(value, dict):
        return {key: _with_types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_types(item) for item in value]
    if isinstance(value, float):
        value = 0.0 if value == 0 else value
    return type(value).__name__, repr(value)


async def read_histories(memory: Any) -> dict[str, list[tuple[Any, ...]]]:
    async with memory:
        return {
            session: [
                (row["created_at"], row["id"], row["role"], row["content"], _with_types(row["metadata"]))
                for row in await memory.get_history(session)
            ]
            for session in "abc"
        }


async def assert_same_sessions(dsn: str, path: Path) -> None:
    async with PostgresConversationMemory(dsn, min_size=1) as there, ConversationMemory(path) as back:
        for session in "abc":
            one, other = await there.get_session(session), await back.get_session(session)
            assert one is not None
            assert other is not None
            assert {**one, "revision": ""} == {**other, "revision": ""}
            assert _with_types(one["metadata"]) == _with_types(other["metadata"])


def clear_target(dsn: str) -> None:
    async def work() -> None:
        async with PostgresConversationMemory(dsn, min_size=1) as memory:
            await memory.clear_all()
        await execute(dsn, FORGET)

    asyncio.run(work())


@ON_A_DATABASE
@given(METADATA, SPELLINGS)
@example({"b": 1, "a": 2, "aa": 1, "é": 1, "z": [1e22, -0.0, 1e-7, 1.5, 10**30]}, {})
@example({"a": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "": {"": []}}, {})
def test_the_canonical_text_equals_the_servers(flux_memory_postgres_dsn: str, metadata: Any, spelling: Any) -> None:
    """The canonical text equals PostgreSQL's byte for byte, since both sides are compared by it."""
    written = json.dumps(metadata, **spelling)
    canonical = Canonicalizer().canonical(written)
    ((shown,),) = asyncio.run(fetch_rows(flux_memory_postgres_dsn, "SELECT $1::text::jsonb::text", canonical))
    assert shown == canonical
    assert _with_types(json.loads(canonical)) == _with_types(metadata)


FLAT = st.dictionaries(
    st.sampled_from(["a", "bb", "%s", 'q"', "é", "\\", "\n", ""]),
    st.none() | st.booleans() | NUMBERS | TEXT | st.lists(st.integers() | TEXT, max_size=3),
    max_size=4,
)
FLAT_TEXTS = st.tuples(FLAT, SPELLINGS).map(lambda pair: json.dumps(pair[0], **pair[1])) | st.sampled_from(
    ['{"a": -0}', '{"a": -0.0}', '{"a": 01.5}', '{"a": 1.50}', '{"a": 0.00001}', '{"a": 12345678901234567.5}']
)


@given(st.lists(FLAT_TEXTS, min_size=2, max_size=8))
@example(['{"a": 1.5}', '{"a": 1.50}', '{"a": -0.0}', '{"a": 01.5}', '{"a": 0.00001}'])
@example(['{"a": 1}', '{"a": -0}', '{"a": 1, "a": 2}', '{"a": 01}', '{"a": 1}\n'])
@example(['{"bb": "x", "a": [1, "y"]}', '{"bb": "x\ty", "a": []}', '{"bb": "\\"", "a": [1,2]}'])
def test_a_shape_that_was_seen_before_changes_nothing(texts: list[str]) -> None:
    """A cached template and the parser give the same canonical text."""

    def outcome(canonicalizer: Canonicalizer, text: str) -> str:
        try:
            return canonicalizer.canonical(text)
        except InvalidValueError as error:
            return str(error.kind)

    experienced = Canonicalizer()
    for text in [*texts, *texts]:
        assert outcome(experienced, text) == outcome(Canonicalizer(), text)


@given(st.text() | st.recursive(st.none() | st.floats(), st.lists).map(json.dumps))
def test_no_text_breaks_the_canonicalizer(text: str) -> None:
    """The canonicalizer returns JSON or refuses the text; it never raises another error."""
    with suppress(InvalidValueError, UnicodeEncodeError):
        assert isinstance(json.loads(Canonicalizer().canonical(text)), dict)


@pytest.mark.parametrize(
    "text",
    ['{"a":1.50}', '{"a":1E2}', '{"a":-0}', '{"a":-0.0}', '{"a":1e-5}', '{"a":1,"a":2}', ' {"a" : 1}\n', '{"a":1e5}'],
)
def test_numbers_spelled_in_other_ways_keep_their_type(
    tmp_path: Path, flux_memory_postgres_dsn: str, text: str
) -> None:
    """Python reads the same value from the canonical text as from the original."""
    with closing(make_file(tmp_path / "chat.db")) as db:
        insert_session(db, "a", metadata=text)
        insert_message(db, "m", "a", metadata=text)
    clear_target(flux_memory_postgres_dsn)
    assert move(tmp_path / "chat.db", flux_memory_postgres_dsn).status is Status.IDENTICAL
    stored = read_target(flux_memory_postgres_dsn)[1][0][4]
    assert _with_types(json.loads(stored)) == _with_types(json.loads(text))


@given(draw_time())
def test_the_fast_reading_of_times_agrees_with_the_library(when: str | int) -> None:
    """The fast path reads each time as `timestamps.parse` does."""
    assert time_text(microseconds(when)) == timestamps.parse(when)


@pytest.mark.parametrize(
    "when", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", math.inf, "20260205", None, b""]
)
def test_invalid_times_are_refused_by_both(when: Any) -> None:
    """The fast path refuses each value that `timestamps.parse` refuses."""
    for read in (microseconds, timestamps.parse):
        if when == "20260205":
            continue
        with pytest.raises((ValueError, OverflowError)):
            read(when)


def test_naive_times_are_of_the_zone_that_is_given(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """Times without an offset are read in the given zone."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - for this test alone

    make_file_with_data(tmp_path / "chat.db")
    clear_target(flux_memory_postgres_dsn)
    move(tmp_path / "chat.db", flux_memory_postgres_dsn, assume_timezone=ZoneInfo("Asia/Seoul"))
    assert read_target(flux_memory_postgres_dsn)[0][0][3] == "2026-02-05 06:17:45.407069"


def test_the_librarys_own_files_move_in_their_order(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """Messages with a `seq` keep that order, independent of their times."""

    async def write() -> list[str]:
        async with ConversationMemory(tmp_path / "chat.db") as memory:
            session = await memory.create_session("t", {"a": 1.0}, session_id="a", user_id="u")
            return await memory.add_messages(session, [{"role": "user", "content": str(n)} for n in range(50)])

    ids = asyncio.run(write())
    clear_target(flux_memory_postgres_dsn)
    assert move(tmp_path / "chat.db", flux_memory_postgres_dsn).status is Status.IDENTICAL
    assert [row[1] for row in read_target(flux_memory_postgres_dsn)[1]] == ids


def test_a_thousand_messages_move_there_and_back(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """A file with many sessions, several chunks of COPY data, survives both ways."""
    make_random_file(tmp_path / "chat.db", sessions=100, messages=1000)
    clear_target(flux_memory_postgres_dsn)
    assert move(tmp_path / "chat.db", flux_memory_postgres_dsn).status is Status.IDENTICAL
    before = read_target(flux_memory_postgres_dsn)
    assert asyncio.run(migrate_back(flux_memory_postgres_dsn, tmp_path / "back.db")).status is Status.IDENTICAL
    assert move(tmp_path / "back.db", flux_memory_postgres_dsn, mode=Mode.VERIFY).status is Status.IDENTICAL
    clear_target(flux_memory_postgres_dsn)
    assert move(tmp_path / "back.db", flux_memory_postgres_dsn).status is Status.IDENTICAL
    assert read_target(flux_memory_postgres_dsn) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["back.db", "chat.db"]


def test_the_original_applications_real_file_moves(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """The original application's database, 66 sessions and 30 messages, is moved and proven."""
    legacy = os.environ.get("FLUX_MEMORY_LEGACY_DB")
    if legacy is None:
        pytest.skip("FLUX_MEMORY_LEGACY_DB names no file")
    shutil.copyfile(legacy, tmp_path / "chat.db")
    clear_target(flux_memory_postgres_dsn)
    report = move(tmp_path / "chat.db", flux_memory_postgres_dsn)
    assert report.status is Status.IDENTICAL
    assert report.verification is not None
    assert (report.verification.target_sessions, report.verification.target_messages) == (66, 30)
