"""Tests the checks of arguments before any I/O, and the errors that name a corrupt row."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import RFC_4122, UUID

import pytest

from flux_memory import records
from flux_memory.errors import ConflictError, FluxMemoryError, InvalidInputError, SessionNotFoundError
from flux_memory.records import building
from flux_memory.records.limits import MAX_BATCH_BYTES, MAX_CONTENT_BYTES, MAX_USER_ID_LENGTH
from flux_memory.records.metadata import encode_metadata
from flux_memory.testkit.reference import arguments as reference

WHEN = "2026-02-05T12:00:00.000000+00:00"
MESSAGE = ("m1", "user", "Hello", '{"a": 1}', WHEN)
SESSION = ("s1", "ann", "Trip", WHEN, WHEN, '{"a": 1}', "r1", 3)


def test_a_session_without_an_id_gets_one() -> None:
    """Generated ids are UUIDv7: 36 characters, distinct, and sorted by creation."""
    made = [records.check_new_session(None, "", "", None).id for _ in range(50)]
    assert made == sorted(set(made))
    assert all(len(id_) == 36 and id_[14] == "7" for id_ in made)


def test_made_ids_sort_by_the_time_of_their_making(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that a backend makes itself is one that the contract accepts, also while the clock is set back."""
    began = time.time_ns() // 1_000_000
    made = [records.make_id() for _ in range(50)]
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    made += [records.make_id() for _ in range(50)]
    assert made == sorted(set(made))
    assert [records.check_id("message_id", id_) for id_ in made] == made
    for id_ in map(UUID, made):
        assert (id_.version, id_.variant) == (7, RFC_4122)
        assert began <= id_.int >> 80 <= began + 60_000


def test_ids_made_in_several_threads_differ() -> None:
    """Threads may take the same step of the clock; each sees its own ids in order."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [records.make_id() for _ in range(1_000)], range(8)))
    assert all(ids == sorted(ids) for ids in made)
    assert len({id_ for ids in made for id_ in ids}) == 8_000


def test_times_have_the_form_that_stored_rows_need() -> None:
    """A time in any zone is stored in UTC, and the current time is one that `build_messages` takes."""
    moment = datetime(2026, 2, 5, 21, tzinfo=timezone(timedelta(hours=9)))
    assert records.format_time(moment) == WHEN
    (message,) = records.build_messages("s1", [(*MESSAGE[:4], records.utc_now())])
    assert abs(datetime.fromisoformat(message["created_at"]) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("metadata", "part", "found"),
    [
        ('{"a": 1}', None, True),
        ('{"a": 1}', "{}", True),
        ('{"a": 1.0, "b": 2}', '{"a": 1}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": null}', '{"b": null}', False),
        ('{"a": [1, {"b": [2, 3]}]}', '{"a": [{"b": [3]}]}', True),
        ("not JSON", "{}", False),
    ],
)
def test_a_filter_contains_as_jsonb_does(metadata: str, part: str | None, found: bool) -> None:
    """A backend without a filter of its own finds the same sessions as PostgreSQL."""
    assert records.contains(metadata, part) is found


def test_an_id_that_cannot_be_stored_is_not_found() -> None:
    """Looking it up is valid and finds nothing; a database would raise an error of its own."""
    assert records.check_lookup("session_id", "x" * 1000) == "x" * 1000
    for unstorable in ("a\x00", "\ud800"):
        asked = records.check_lookup("user_id", unstorable)
        assert len(asked) > MAX_USER_ID_LENGTH
        assert records.check_text("user_id", asked) == asked
    with pytest.raises(InvalidInputError, match="user_id must be a str, not int"):
        records.check_lookup("user_id", 7)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ("text", "messages must be a sequence of mappings, not str"),
        (b"bytes", "messages must be a sequence of mappings, not bytes"),
        ([7], r"messages\[0\] must be a mapping, not int"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], r"messages\[1\] has no 'content'"),
        ([{"role": "user", "content": "x", "id": "1"}], r"messages\[0\] has the unknown key 'id'; known are"),
        ([{"role": "", "content": "x"}], r"messages\[0\]\.role is empty; name the speaker"),
    ],
)
def test_the_error_of_a_wrong_batch_names_its_place(batch: object, says: str) -> None:
    """The message names the element and the key, and says what is allowed."""
    with pytest.raises(InvalidInputError, match=says):
        records.check_batch(batch)


def test_a_batch_that_is_too_large_as_a_whole_is_refused() -> None:
    """PostgreSQL would drop the connection at 1 GB until the deadline has passed; SQLite would store the batch."""
    parts = MAX_BATCH_BYTES // MAX_CONTENT_BYTES
    room = MAX_CONTENT_BYTES - len("user") - len("{}") - len(records.make_id())
    fits = [{"role": "user", "content": "x" * room}] * parts
    too_large = [*fits[1:], {"role": "user", "content": "x" * (room - 1) + "é"}]
    for new_batch in (records.check_batch, reference.drafts):
        assert len(new_batch(fits)) == parts
        with pytest.raises(InvalidInputError, match="messages are larger than"):
            new_batch(too_large)


def test_a_batch_that_repeats_a_message_stores_it_once() -> None:
    """The same id with the same content is a retry; with other content it is a conflict."""
    same = {"role": "user", "content": "x", "metadata": {"n": 1}, "message_id": "m"}
    rows = records.check_batch(
        [same, {**same, "metadata": {"n": 1.0}}, {"role": "user", "content": "y", "message_id": "n"}]
    )
    assert [row.id for row in rows] == ["m", "m", "n"]
    assert [row.id for row in records.drop_repeats(rows)] == ["m", "n"]
    with pytest.raises(ConflictError, match="two messages with the id 'm'"):
        records.check_batch([same, {**same, "content": "y"}])


@pytest.mark.parametrize(
    ("value", "says"), [(True, "offset must be an int, not bool"), (-1, "offset is -1; it must be 0 or more")]
)
def test_the_error_of_a_wrong_count_says_what_is_allowed(value: object, says: str) -> None:
    """The message says what is allowed."""
    with pytest.raises(InvalidInputError, match=says):
        records.check_count("offset", value)


def test_a_number_too_long_to_be_written_is_refused_as_any_other() -> None:
    """Python cannot print integers of more than 4,300 digits: building the message must not fail."""
    with pytest.raises(InvalidInputError, match="limit is a value of type int; it must be 0 or more"):
        records.check_limit(-(10**5000))
    with pytest.raises(InvalidInputError, match="unknown key a value of type int"):
        records.check_batch([{"role": "user", "content": "x", 10**5000: 1}])
    with pytest.raises(InvalidInputError, match="timeout is a value of type int; it must be more than 0 and finite"):
        records.check_seconds("timeout", 10**5000)
    with pytest.raises(InvalidInputError, match="it must be more than 0 and finite"):
        records.check_seconds("timeout", 10**400)


def test_an_impossible_session_is_named_by_its_characters() -> None:
    """A subclass of `str` counts by its characters, not by its `__str__`."""

    class Shouting(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "LIES"

    with pytest.raises(SessionNotFoundError, match=r"session 'a\\x00' does not exist"):
        records.check_session_id(Shouting("a\x00"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (1, b"\xff"),
        (2, None),
        (3, "{"),
        (3, "[]"),
        (3, "[" * 100_000),
        (3, 7),
        (3, '{"a": NaN}'),
        (4, "yesterday"),
        (4, None),
    ],
)
def test_a_corrupt_message_is_named(column: int, value: object) -> None:
    """A row that cannot be read raises an error of the library with its id and its session's, and keeps the cause."""
    row = (*MESSAGE[:column], value, *MESSAGE[column + 1 :])
    with pytest.raises(FluxMemoryError, match=r"^message 'm1' of session 's1' cannot be read") as caught:
        building.build_messages("s1", [row])
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("column", "value"), [(1, None), (2, b"\xff"), (3, "2026"), (4, 5), (5, "not JSON"), (5, "1"), (6, None)]
)
def test_a_corrupt_session_is_named(column: int, value: object) -> None:
    """A session that cannot be read raises an error of the library with its id."""
    row = (*SESSION[:column], value, *SESSION[column + 1 :])
    with pytest.raises(FluxMemoryError, match=r"^session 's1' cannot be read"):
        building.build_session(row)


@pytest.mark.parametrize(
    ("build", "row", "says"),
    [
        (lambda row: records.build_messages("s", [row]), ("m", "user", "x", "{}"), "created_at), and this one has 4"),
        (lambda row: records.build_messages("s", [row]), dict.fromkeys("abcde", "x"), "this one is of type dict"),
        (lambda row: records.build_messages("s", [row]), None, "this one is of type NoneType"),
        (records.build_session, ("s",) * 9, "message_count), and this one has 9"),
        (lambda row: records.build_sessions([row, row]), ("s",) * 7, "and this one has 7"),
        (lambda row: records.build_sessions([row]), dict.fromkeys("abcdefgh", "x"), "this one is of type dict"),
    ],
)
def test_a_row_of_other_columns_is_explained(build: Callable[[Any], object], row: object, says: str) -> None:
    """The author of a backend reads which columns a query has to select, not that a tuple cannot be unpacked."""
    with pytest.raises(TypeError, match=re.escape(says)):
        build(row)


def test_null_metadata_is_an_empty_object() -> None:
    """The original application's column allows NULL."""
    (message,) = building.build_messages("s1", [(*MESSAGE[:3], None, WHEN)])
    assert message == {"id": "m1", "role": "user", "content": "Hello", "metadata": {}, "created_at": WHEN}


@pytest.mark.parametrize("place", [0, 1, 127, 128, 299])
def test_a_corrupt_message_is_named_among_many(place: int) -> None:
    """The error names the broken row, also when a page is checked as a whole."""
    rows: list[tuple[Any, ...]] = [(f"m{n}", *MESSAGE[1:]) for n in range(300)]
    rows[place] = (*rows[place][:4], f"{WHEN}\n{WHEN}")
    with pytest.raises(FluxMemoryError, match=f"^message 'm{place}' of session 's1' cannot be read"):
        building.build_messages("s1", rows)


@pytest.mark.parametrize("place", [0, 127, 128, 299])
def test_a_corrupt_session_is_named_among_many(place: int) -> None:
    """As for messages. Sound rows keep their order, checked together or one by one, with and without NULL metadata."""
    rows: list[tuple[Any, ...]] = [(f"s{n}", *SESSION[1:]) for n in range(300)]
    rows[place] = (*rows[place][:5], None, *SESSION[6:])
    assert building.build_sessions(rows) == [building.build_session(row) for row in rows]
    rows[place] = (*rows[place][:4], f"{WHEN}\n{WHEN}", *SESSION[5:])
    with pytest.raises(FluxMemoryError, match=f"^session 's{place}' cannot be read"):
        building.build_sessions(rows)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**30, 1e22, 0.1, -1.5e-300])
def test_numbers_of_a_page_keep_type_and_value(number: float) -> None:
    """Integers beyond 64 bits come back exactly, as do their neighbours; rows given newest first come oldest first."""
    values = [{"n": 1}, {"n": [number]}, {}, {"n": 1.0}]
    rows = [(f"m{n}", "user", "Hello", encode_metadata(value), WHEN) for n, value in enumerate(values)]
    found = building.build_messages("s1", rows)
    assert [message["id"] for message in found] == ["m3", "m2", "m1", "m0"]
    assert repr([message["metadata"] for message in reversed(found)]) == repr(values)
