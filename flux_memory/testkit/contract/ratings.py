"""Clauses on the entries of feedback: what they hold, their ids, exactly-once adds, order, filters and numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import (
    LOOKALIKES,
    METADATA,
    NAMES,
    NOT_TEXTS,
    NUL_TEXTS,
    SURROGATE_TEXTS,
    TEXTS,
    same,
)
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle

KEYS: Final = {
    *("feedback_id", "session_id", "message_id", "rating"),
    *("comment", "corrected_answer", "metadata", "created_at"),
}
MIDNIGHT: Final = datetime(2026, 3, 1, tzinfo=UTC)


async def ids_of(memory: Memory, **filters: Any) -> list[str]:
    """Return the ids of all entries that meet the filters, newest first."""
    return [entry["feedback_id"] for entry in await memory.feedback.get(None, **filters)]


class RatingsContract(Binding):
    """The promises of `memory.feedback` about its entries."""

    @clause(
        "FM-FBK-001",
        promise="`feedback.get` returns each entry as it was added, for any text and metadata, `None` included.",
        impact="The comment that explains a bad rating arrives cut or changed.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_entries_are_as_added(self, store: StoreUnderTest) -> None:
        memory = store.open()
        metadata, given = list(METADATA.values()), dict[str, dict[str, Any]]()
        for at, text in enumerate(TEXTS.values()):
            given[f"entry {at}"] = {
                "session_id": f"session {at}",
                "message_id": f"message {at}" if at % 3 else None,
                "rating": at % 3 - 1,
                "comment": text,
                "corrected_answer": text[::-1] if at % 2 else None,
                "metadata": metadata[at % len(metadata)],
            }
        await together(memory.feedback.add(feedback_id=name, **entry) for name, entry in given.items())
        found: dict[str, Any] = {entry["feedback_id"]: entry for entry in await memory.feedback.get(None)}
        assert found.keys() == given.keys()
        for name, entry in given.items():
            assert found[name].keys() == KEYS
            shown = {key: found[name][key] for key in entry}
            assert same(shown, entry), f"{shown!r:.200} instead of {entry!r:.200}"
        assert await memory.feedback.add("bare", 0) in await ids_of(memory, session_id="bare")
        (bare,) = await memory.feedback.get(session_id="bare")
        assert (bare["message_id"], bare["comment"], bare["corrected_answer"], bare["metadata"]) == (None, "", None, {})

    @clause(
        "FM-FBK-002",
        promise="`feedback.add` returns the id of its entry: the given one, told apart from similar ones, or a new "
        "one.",
        impact="Two ratings share an id, so that one of them is lost, or deleted with the other.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_ids(self, store: StoreUnderTest) -> None:
        memory = store.open()
        given = [one for one in dict.fromkeys((*NAMES.values(), *LOOKALIKES)) if len(one) <= store.max_id_length]
        given.append("i" * store.max_id_length)
        assert await together(memory.feedback.add("s", 1, feedback_id=one, comment=one) for one in given) == given
        made = await together(memory.feedback.add("s", 1) for _ in range(20))
        assert len({*given, *made}) == len(given) + 20
        assert sorted(await ids_of(memory)) == sorted([*given, *made])
        for entry in await memory.feedback.get(None):
            assert entry["feedback_id"] in made or entry["comment"] == entry["feedback_id"]

    @clause(
        "FM-FBK-003",
        promise="Adding an entry again under its id, where 1 equals 1.0 in metadata, returns the id and changes "
        "nothing.",
        impact="A retry after a timeout counts one rating twice, or fails.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_exactly_once(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        given: dict[str, Any] = {"message_id": "m", "comment": "c", "corrected_answer": "a", "metadata": {"n": 1}}
        assert await memory.feedback.add("s", -1, feedback_id="f", **given) == "f"
        before = await memory.feedback.get()
        for handle in (memory, other):
            assert await handle.feedback.add("s", -1, feedback_id="f", **given) == "f"
        assert await other.feedback.add("s", -1, feedback_id="f", **{**given, "metadata": {"n": 1.0}}) == "f"
        assert await memory.feedback.get() == before
        assert (await memory.feedback.stats())["total"] == 1

    @clause(
        "FM-FBK-004",
        promise="Adding another entry under a stored id is a `ConflictError`, and the stored one stays as it is.",
        impact="A client that reuses ids overwrites another user's rating, or believes that its own was stored.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_conflicts(self, store: StoreUnderTest) -> None:
        memory = store.open()
        first: dict[str, Any] = {
            "session_id": "s",
            "rating": 1,
            "message_id": "m",
            "comment": "c",
            "corrected_answer": "a",
            "metadata": {"n": 1},
        }
        await memory.feedback.add(feedback_id="f", **first)
        before = await memory.feedback.get()
        changes: list[dict[str, Any]] = [
            *({"session_id": other} for other in ("t", "S", "s ")),
            *({"rating": other} for other in (0, -1)),
            *({"message_id": other} for other in ("n", None)),
            *({"comment": other} for other in ("", "c ")),
            *({"corrected_answer": other} for other in ("", None)),
            *({"metadata": other} for other in ({}, {"n": True}, {"n": "1"}, {"n": 1, "m": 2})),
        ]

        async def add_over(change: dict[str, Any]) -> None:
            with pytest.raises(ConflictError):
                await memory.feedback.add(feedback_id="f", **{**first, **change})

        await together(map(add_over, changes))
        assert await memory.feedback.get() == before

    @clause(
        "FM-FBK-005",
        promise="A rating is -1, 0 or 1: another number is an `InvalidInputError`, another type is one that is a "
        "`TypeError`, and nothing is stored.",
        impact="Stars from 1 to 5 are stored as ratings, and every average is wrong.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_ratings(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for rating in (-1, 0, 1):
            await memory.feedback.add("s", rating)
        for wrong in (2, -2, 5, 100, 2**15, 2**63, -(2**64), 10**400):
            for call in (memory.feedback.add("s", wrong), memory.feedback.get(rating=wrong)):
                with pytest.raises(InvalidInputError, match="rating"):
                    await call
        kinds: list[Any] = [True, False, 1.0, 0.5, "1", b"1", [1], object(), float("nan")]
        for kind in kinds:
            for typed in (memory.feedback.add("s", kind), memory.feedback.get(rating=kind)):
                with pytest.raises(InvalidInputError, match="rating") as caught:
                    await typed
                assert isinstance(caught.value, TypeError), f"rating={kind!r} raised {caught.value!r}"
        assert sorted(entry["rating"] for entry in await memory.feedback.get(None)) == [-1, 0, 1]

    @clause(
        "FM-FBK-006",
        promise="`feedback.get` returns the newest entries first; entries of one time are ordered by the bytes of "
        "their "
        "ids, the largest first.",
        impact="The page of new complaints begins with old ones, or changes its order at each visit.",
        needs=Capability.FEEDBACK | Capability.TIMESTAMPS,
    )
    async def test_feedback_newest_first(self, store: StoreUnderTest) -> None:
        memory = store.open()
        expected: list[str] = await ids_of(memory)
        for later in (0, 1, 2, 60):
            names = [f"{letter}{later}" for letter in "baBéz_1"]
            async with store.clock_at(MIDNIGHT + timedelta(seconds=later)):
                await together(memory.feedback.add("s", 1, feedback_id=name) for name in names)
            expected = sorted(names, key=str.encode, reverse=True) + expected
        assert await ids_of(memory) == expected
        times = [entry["created_at"] for entry in await memory.feedback.get(None)]
        assert times == sorted(times, reverse=True)
        assert times[-1] == "2026-03-01T00:00:00.000000+00:00"

    @clause(
        "FM-FBK-007",
        promise="The filters of `feedback.get` hold alone and together, each by the exact value.",
        impact="A dashboard of one conversation shows the ratings of others.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_filters(self, store: StoreUnderTest) -> None:
        memory = store.open()
        given: list[tuple[str, str | None, int]] = [*product(("s", "S", "s "), ("m", "M", None), (-1, 0, 1))]
        made = await together(
            memory.feedback.add(session, rating, message_id=message) for session, message, rating in given
        )
        added = dict(zip(made, given, strict=True))

        async def check(*wanted: object) -> None:
            expected = {
                one
                for one, values in added.items()
                if all(want in {None, value} for want, value in zip(wanted, values, strict=True))
            }
            filters = dict(zip(("session_id", "message_id", "rating"), wanted, strict=True))
            found = await ids_of(memory, **filters)
            assert len(found) == len(expected), filters
            assert {*found} == expected, filters

        async def find_nothing(key: str) -> None:
            assert await memory.feedback.get(session_id=key) == [], f"session {key!r:.50} was found"
            assert await memory.feedback.get(message_id=key) == [], f"message {key!r:.50} was found"

        some = product((None, "s", "S", "t"), (None, "m", "M", "n"), (None, -1, 0, 1))
        await together(check(*wanted) for wanted in some)
        await together(map(find_nothing, (*NOWHERE, " s", "s\t", "m ", " m", "_", "s%", "\uff53", "\uff4d")))

    @clause(
        "FM-FBK-008",
        promise="`limit` and `offset` page through the entries without a gap or a repeat, also with filters; by "
        "default "
        "a page has 50.",
        impact="An export of the ratings misses some of them.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_pages(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await together(memory.feedback.add("s", at % 3 - 1) for at in range(60))
        whole = await ids_of(memory)
        assert len(whole) == 60
        assert [entry["feedback_id"] for entry in await memory.feedback.get()] == whole[:50]
        some: list[dict[str, Any]] = [{}, {"rating": 1}, {"session_id": "s", "rating": 0}]

        async def check(filters: dict[str, Any], expected: list[str], size: int, start: int) -> None:
            page = await memory.feedback.get(size, start, **filters)
            assert [entry["feedback_id"] for entry in page] == expected[start : start + size]

        for filters in some:
            expected = await ids_of(memory, **filters)
            await together(check(filters, expected, size, start) for size in (1, 7, 60) for start in range(0, 70, size))
        assert [entry["feedback_id"] for entry in await memory.feedback.get(None, 55)] == whole[55:]
        for limit, offset in ((0, 0), (5, 60), (2**64, 2**64)):
            assert await memory.feedback.get(limit, offset) == []
        for name in ("limit", "offset"):
            for wrong in (-1, "1", 1.0, True):
                given: Any = {name: wrong}
                with pytest.raises(InvalidInputError, match=name):
                    await memory.feedback.get(**given)

    @clause(
        "FM-FBK-009",
        promise="`feedback.stats` counts the entries by rating, in total and for each day, which begins at midnight "
        "UTC; "
        "days without entries are left out.",
        impact="The chart of a day shows the ratings of another, depending on where the server stands.",
        needs=Capability.FEEDBACK | Capability.TIMESTAMPS,
    )
    async def test_feedback_stats(self, store: StoreUnderTest) -> None:
        memory = store.open()
        nothing = {"total": 0, "positive": 0, "negative": 0, "neutral": 0}
        assert await memory.feedback.stats() == {**nothing, "by_day": []}
        moments = {
            MIDNIGHT - timedelta(microseconds=1): (1,),
            MIDNIGHT: (1, -1, -1, 0),
            MIDNIGHT + timedelta(hours=23, minutes=59): (0,),
            MIDNIGHT + timedelta(days=3): (-1,),
        }
        for moment, ratings in moments.items():
            async with store.clock_at(moment):
                for rating in ratings:
                    await memory.feedback.add("s", rating)
        assert await memory.feedback.stats() == {
            "total": 7,
            "positive": 2,
            "negative": 3,
            "neutral": 2,
            "by_day": [
                {"day": "2026-02-28", "total": 1, "positive": 1, "negative": 0, "neutral": 0},
                {"day": "2026-03-01", "total": 5, "positive": 1, "negative": 2, "neutral": 2},
                {"day": "2026-03-04", "total": 1, "positive": 0, "negative": 1, "neutral": 0},
            ],
        }

    @clause(
        "FM-FBK-010",
        promise="`since` counts the entries of that time and later, in any time zone; a time without a zone, or "
        "another "
        "type, is an error.",
        impact="The report of a week leaves out its first rating, or shifts by the hours of a time zone.",
        needs=Capability.FEEDBACK | Capability.TIMESTAMPS,
    )
    async def test_feedback_stats_since(self, store: StoreUnderTest) -> None:
        memory = store.open()
        assert (await memory.feedback.stats(since=MIDNIGHT))["total"] == 0
        for later in range(3):
            async with store.clock_at(MIDNIGHT + timedelta(hours=later)):
                await memory.feedback.add("s", later - 1)
        step = timedelta(microseconds=1)
        for since, total in ((0, 3), (1, 2), (2, 1)):
            moment = MIDNIGHT + timedelta(hours=since)
            elsewhere = moment.astimezone(_zone(9))
            for asked in (moment, elsewhere):
                counted = await memory.feedback.stats(since=asked)
                assert (counted["total"], sum(day["total"] for day in counted["by_day"])) == (total, total)
            assert (await memory.feedback.stats(since=moment + step))["total"] == total - 1
        with pytest.raises(InvalidInputError, match="since"):
            await memory.feedback.stats(since=datetime(2026, 3, 1))  # noqa: DTZ001 - that is the mistake
        wrongs: list[Any] = ["2026-03-01", 0, MIDNIGHT.date()]
        for wrong in wrongs:
            with pytest.raises(InvalidInputError, match="since") as caught:
                await memory.feedback.stats(since=wrong)
            assert isinstance(caught.value, TypeError)

    @clause(
        "FM-FBK-011",
        promise="An invalid id, text or metadata of an entry is an error that names the argument, and nothing is "
        "stored.",
        impact="A comment with a stray character fails on one engine only, in production.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_invalid_arguments(self, store: StoreUnderTest) -> None:
        memory = store.open()
        valid: dict[str, Any] = {"session_id": "s", "rating": 1}
        for name in ("session_id", "message_id", "feedback_id", "comment", "corrected_answer"):
            ids = ["", "x" * 256] if name.endswith("_id") else []
            for bad in (*ids, *NUL_TEXTS, *SURROGATE_TEXTS):
                with pytest.raises(InvalidInputError, match=name):
                    await memory.feedback.add(**{**valid, name: bad})
            for kind in NOT_TEXTS:
                with pytest.raises(InvalidInputError, match=name) as caught:
                    await memory.feedback.add(**{**valid, name: kind})
                assert isinstance(caught.value, TypeError), f"{name}={kind!r} raised {caught.value!r}"
        for metadata in ({"a": float("nan")}, {"a": object()}, {1: 2}, {"a": "\x00"}, ["a"], "text"):
            with pytest.raises(InvalidInputError, match="metadata"):
                await memory.feedback.add(**{**valid, "metadata": metadata})
        assert await memory.feedback.get() == []


def _zone(hours: int) -> Any:
    return datetime.fromisoformat(f"2026-01-01T00:00:00+{hours:02}:00").tzinfo
