"""Tests the checks of changes, cursors and bulk deletions, and the errors of changes that are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from flux_memory import (
    ConflictError,
    FluxMemoryError,
    InvalidInputError,
    InvalidTypeError,
    Memory,
    records,
)
from flux_memory.protocol import not_supported
from flux_memory.records.limits import MAX_ID_LENGTH, MAX_USER_ID_LENGTH

NOTHING: dict[str, Any] = {
    "expected_revision": None,
    "title": None,
    "merge_metadata": None,
    "remove_metadata": (),
    "truncate_from": None,
    "truncate_all": False,
    "messages": (),
}
MESSAGE = {"role": "user", "content": "x", "message_id": "m"}
WHEN = "2026-02-05T12:00:00.000000+00:00"
UNSTORABLE = ["a\x00", "\ud800"]


def check(**parts: Any) -> records.SessionUpdate:
    """Return the checked parts of an update."""
    return records.check_update(**{**NOTHING, **parts})


def test_each_part_of_an_update_is_checked_and_encoded() -> None:
    """A backend gets what it stores: JSON text, keys and messages without repeats, and ids to look up."""
    message = {"role": "user", "content": "x", "message_id": "m"}
    update = check(
        expected_revision="r",
        title="new",
        merge_metadata={"a": 1.0},
        remove_metadata=iter(["b", "c", "b"]),
        truncate_from="m1",
        messages=iter([message, message]),
    )
    assert update == ("r", "new", '{"a":1.0}', ("b", "c"), "m1", False, [("m", "user", "x", "{}")])
    assert check(truncate_all=True) == (None, None, None, (), None, True, [])


@pytest.mark.parametrize(
    "part",
    [
        {"title": ""},
        {"merge_metadata": {}},
        {"remove_metadata": ["a"]},
        {"remove_metadata": ["\x00"]},
        {"truncate_from": "m"},
        {"truncate_all": True},
        {"messages": [{"role": "user", "content": ""}]},
    ],
)
def test_one_part_is_enough_for_an_update(part: dict[str, Any]) -> None:
    """Each part makes an update, also an empty title or an empty object, which is a value as any other."""
    assert check(**part)


@pytest.mark.parametrize("part", [{}, {"expected_revision": "r"}, {"messages": []}, {"remove_metadata": iter(())}])
def test_an_update_without_a_part_is_refused(part: dict[str, Any]) -> None:
    """It would change the revision and nothing else; the error names what can be given."""
    with pytest.raises(InvalidInputError, match=r"nothing to change; give title, merge_metadata, .* or messages"):
        check(**part)


@pytest.mark.parametrize(
    ("part", "error", "says"),
    [
        (
            {
                "truncate_from": "m",
                "truncate_all": True,
                "messages": [MESSAGE, {**MESSAGE, "content": "y"}],
            },
            InvalidInputError,
            "truncate_from and truncate_all are both given",
        ),
        ({"expected_revision": 7}, InvalidTypeError, "expected_revision must be a str, not int"),
        ({"title": 7}, InvalidTypeError, "title must be a str, not int"),
        ({"title": "\x00"}, InvalidInputError, "title"),
        ({"merge_metadata": [1]}, InvalidTypeError, "merge_metadata must be a mapping or None, not list"),
        ({"merge_metadata": {"a": float("nan")}}, InvalidInputError, "merge_metadata"),
        ({"remove_metadata": "abc"}, InvalidTypeError, "remove_metadata must be a sequence of keys, not str"),
        ({"remove_metadata": b"abc"}, InvalidTypeError, "remove_metadata must be a sequence of keys, not bytes"),
        ({"remove_metadata": {"a": 1}}, InvalidTypeError, "remove_metadata must be a sequence of keys, not dict"),
        ({"remove_metadata": 7}, InvalidTypeError, "remove_metadata must be a sequence of keys, not int"),
        ({"remove_metadata": None}, InvalidTypeError, "remove_metadata must be a sequence of keys, not NoneType"),
        ({"remove_metadata": ["a", 7]}, InvalidTypeError, "a key of remove_metadata must be a str, not int"),
        ({"truncate_from": 7}, InvalidTypeError, "truncate_from must be a str, not int"),
        ({"truncate_all": 1}, InvalidTypeError, "truncate_all must be a bool, not int"),
        ({"messages": "text"}, InvalidTypeError, "messages must be a sequence of mappings, not str"),
        ({"messages": [{"role": "user"}]}, InvalidInputError, r"messages\[0\] has no 'content'"),
        ({"truncate_all": True, "truncate_from": "m"}, InvalidInputError, "both given; give one of them"),
    ],
)
def test_the_error_of_a_wrong_part_names_it(part: dict[str, Any], error: type[InvalidInputError], says: str) -> None:
    """Each part is checked before any I/O, and the error says which one is wrong."""
    with pytest.raises(error, match=says) as caught:
        check(**{"title": "new", **part})
    assert isinstance(caught.value, TypeError) is (error is InvalidTypeError)


def test_an_update_with_two_contents_for_one_id_is_refused() -> None:
    """The same as in a batch of `add_messages`."""
    two = [{"role": "user", "content": text, "message_id": "m"} for text in "xy"]
    with pytest.raises(ConflictError, match="two messages with the id 'm'"):
        check(messages=two)


@pytest.mark.parametrize(
    "part", [{"merge_metadata": {"a": [1] * 50}}, {"messages": [{"role": "user", "content": ""}] * 50}]
)
def test_long_parts_of_an_update_stop_at_a_bound(part: dict[str, Any]) -> None:
    """An engine checks what is long in a thread; until then the check takes a bounded time."""
    with pytest.raises(records.TooLongError):
        check(**part, most=40)
    assert check(**part)


@pytest.mark.parametrize("text", UNSTORABLE)
def test_a_text_that_no_session_can_have_is_valid_and_matches_nothing(text: str) -> None:
    """A database would refuse to look it up with an error of its own. A key of this kind is removed already."""
    update = check(remove_metadata=[text, "b"], truncate_from=text, expected_revision=text)
    assert update.remove_metadata == ("b",)
    for asked in (update.truncate_from, update.expected_revision, records.check_revision(text)):
        assert asked is not None
        assert len(asked) > max(MAX_ID_LENGTH, MAX_USER_ID_LENGTH)
        assert records.check_text("text", asked) == asked


def test_a_fork_keeps_what_is_not_given() -> None:
    """`None` keeps the original's value, and an empty text is a value; the id is made here."""
    made = records.check_fork(None, None, None, None)
    assert (made.through, made.user_id, made.title) == (None, None, None)
    assert len(made.new_id) == 36
    assert records.check_fork("m", "x" * 255, "", "") == ("m", "x" * 255, "", "")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((7, None, None, None), InvalidTypeError, "through must be a str, not int"),
        ((None, 7, None, None), InvalidTypeError, "new_session_id must be a str, not int"),
        ((None, "", None, None), InvalidInputError, "new_session_id"),
        ((None, "x" * 256, None, None), InvalidInputError, "new_session_id has 256 characters"),
        ((None, "\x00", None, None), InvalidInputError, "new_session_id"),
        ((None, None, 7, None), InvalidTypeError, "user_id must be a str, not int"),
        ((None, None, "x" * 256, None), InvalidInputError, "user_id has 256 characters"),
        ((None, None, None, 7), InvalidTypeError, "title must be a str, not int"),
        ((None, None, None, "\ud800"), InvalidInputError, "title"),
    ],
)
def test_the_error_of_a_wrong_fork_names_the_argument(
    arguments: tuple[Any, ...], error: type[InvalidInputError], says: str
) -> None:
    """Each argument is checked before any I/O."""
    with pytest.raises(error, match=says):
        records.check_fork(*arguments)


def test_an_owner_is_any_short_text() -> None:
    """The empty text stands for no owner; a long one could not be indexed."""
    assert [records.check_owner(text) for text in ("", "ann", "x" * 255)] == ["", "ann", "x" * 255]
    for wrong in ("x" * 256, *UNSTORABLE, None):
        with pytest.raises(InvalidInputError, match="user_id"):
            records.check_owner(wrong)


@pytest.mark.parametrize("wrong", [1, 0, None, "yes", ()])
def test_a_flag_is_a_bool(wrong: object) -> None:
    """A text such as "no" is true in Python: a mistake that would delete or create."""
    assert [records.check_flag("create", value) for value in (True, False)] == [True, False]
    with pytest.raises(InvalidTypeError, match=f"create must be a bool, not {type(wrong).__name__}"):
        records.check_flag("create", wrong)


def test_an_expected_revision_is_a_text_or_none() -> None:
    """The empty text is a revision that no session has, not the same as none."""
    assert [records.check_revision(value) for value in (None, "", "r")] == [None, "", "r"]
    with pytest.raises(InvalidTypeError, match="expected_revision must be a str, not int"):
        records.check_revision(7)


def test_a_history_has_one_cursor() -> None:
    """Both together have no meaning; each alone is an id to look up."""
    assert records.check_cursors(None, None) == (None, None)
    assert records.check_cursors("m", None) == ("m", None)
    assert records.check_cursors(None, "") == (None, "")
    with pytest.raises(InvalidInputError, match="before and after are both given; give one of them"):
        records.check_cursors("m", "m")
    for wrong in ((7, None), (None, 7)):
        with pytest.raises(InvalidTypeError, match=r"(before|after) must be a str, not int"):
            records.check_cursors(*wrong)


def test_a_session_cursor_is_a_record_already_seen() -> None:
    """Only the time and the id count, so that a record that was stored or sent elsewhere works, too."""
    assert records.check_session_cursor(None) is None
    assert records.check_session_cursor({"id": "s", "updated_at": WHEN}) == (WHEN, "s")
    assert records.check_session_cursor({"id": "s", "updated_at": WHEN, "title": 7}) == (WHEN, "s")


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("s", InvalidTypeError, "before must be a session's record, not str"),
        (("s", WHEN), InvalidTypeError, "before must be a session's record, not tuple"),
        ({}, InvalidInputError, "before must be a record that get_sessions.. returned: it has no 'updated_at'"),
        ({"updated_at": WHEN}, InvalidInputError, "returned: it has no 'id'"),
        ({"id": 7, "updated_at": WHEN}, InvalidInputError, r"before\['id'\] must be a str, not int"),
        ({"id": "s", "updated_at": None}, InvalidInputError, "where a UTC time of 32 characters belongs"),
        ({"id": "s", "updated_at": "2026-02-05"}, InvalidInputError, "where a UTC time of 32 characters belongs"),
        ({"id": "s", "updated_at": WHEN.replace("02-05", "02-30")}, InvalidInputError, "before must be a record"),
    ],
)
def test_another_thing_than_a_record_is_no_session_cursor(
    wrong: object, error: type[InvalidInputError], says: str
) -> None:
    """A message's record or an id is an easy mistake; the error says what to pass."""
    with pytest.raises(error, match=says):
        records.check_session_cursor(wrong)


class Nowhere(tzinfo):
    """A time zone without an offset, with which a time is as good as one without a time zone."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


def test_a_moment_in_any_zone_has_the_form_of_the_records() -> None:
    """So it can be compared with stored times as text, from the first year to the last."""
    seoul = timezone(timedelta(hours=9))
    assert records.check_moment("inactive_since", datetime(2026, 2, 5, 21, tzinfo=seoul)) == WHEN
    assert (
        records.check_moment("inactive_since", datetime.min.replace(tzinfo=UTC)) == "0001-01-01T00:00:00.000000+00:00"
    )
    assert (
        records.check_moment("inactive_since", datetime.max.replace(tzinfo=UTC)) == "9999-12-31T23:59:59.999999+00:00"
    )


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (WHEN, InvalidTypeError, "since must be a datetime, not str"),
        (0.0, InvalidTypeError, "since must be a datetime, not float"),
        (datetime(2026, 2, 5).date(), InvalidTypeError, "since must be a datetime, not date"),  # noqa: DTZ001 - a date
        (datetime(2026, 2, 5), InvalidInputError, r"since has no time zone; use datetime.now\(UTC\)"),  # noqa: DTZ001 - naive
        (datetime(2026, 2, 5, tzinfo=Nowhere()), InvalidInputError, "since has no time zone"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), InvalidInputError, "outside the years 1 to 9999"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), InvalidInputError, "outside the years 1 to 9999"),
    ],
)
def test_a_moment_without_a_place_on_the_time_line_is_refused(
    wrong: object, error: type[InvalidInputError], says: str
) -> None:
    """A naive time would delete the sessions of other hours on a server in another time zone."""
    with pytest.raises(error, match=says):
        records.check_moment("since", wrong)


def test_a_bulk_deletion_has_a_criterion() -> None:
    """A forgotten argument must not remove every session; no owner is a criterion as any other."""
    moment = datetime(2026, 2, 5, 12, tzinfo=UTC)
    assert records.check_deletion("", None) == ("", None)
    assert records.check_deletion(None, moment) == (None, WHEN)
    assert records.check_deletion("ann", moment) == ("ann", WHEN)
    with pytest.raises(
        InvalidInputError, match=r"needs user_id or inactive_since; clear_all\(\) removes every session"
    ):
        records.check_deletion(None, None)
    with pytest.raises(InvalidTypeError, match="user_id must be a str, not int"):
        records.check_deletion(7, None)
    with pytest.raises(InvalidTypeError, match="inactive_since must be a datetime, not str"):
        records.check_deletion(None, WHEN)


def test_revisions_differ() -> None:
    """A revision is never used again, so it is random and has no order."""
    made = {records.make_revision() for _ in range(1000)}
    assert len(made) == 1000
    assert all(records.check_id("revision", revision) for revision in made)


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (records.revision_conflict, ConflictError, "has changed since the expected revision; read it again"),
        (records.owner_conflict, ConflictError, "belongs to another user; nothing was stored"),
        (lambda id_: records.message_not_found(id_, "m"), ConflictError, "has no message 'm'; nothing was changed"),
        (records.metadata_too_large, InvalidInputError, "larger than 16,777,216 bytes; remove keys, or store less"),
    ],
)
def test_the_errors_of_refused_changes_say_what_to_do(
    make: Callable[[str], FluxMemoryError], kind: type[FluxMemoryError], says: str
) -> None:
    """They name the session, whose id may be long, and stay in one line of a log."""
    assert says in str(make("trip"))
    assert "session 'trip'" in str(make("trip"))
    assert type(make("trip")) is kind
    assert len(str(make("\n" * 255))) < 300
    assert "\n" not in str(make("\n" * 255))


class Small(Memory):
    """A memory that has only what a memory needs."""


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_message", ("s", "m")),
        ("pop_message", ("s",)),
        ("update_session", ("s",)),
        ("fork_session", ("s",)),
        ("delete_sessions", ()),
    ],
)
async def test_a_memory_without_a_method_says_so(method: str, arguments: tuple[str, ...]) -> None:
    """An application learns that the backend lacks the method, not that its own argument is wrong."""
    with pytest.raises(InvalidInputError, match=rf"^this memory does not support {method}\(\)$"):
        await getattr(Small(), method)(*arguments)  # type: ignore[abstract]  # it lacks all methods
    assert str(not_supported(method)) == f"this memory does not support {method}()"
