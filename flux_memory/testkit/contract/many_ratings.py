"""Clauses on much feedback, long texts in it, and entries of other decades."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import ConflictError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.moments import AGES_DAYS, DECADES, require_clock
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.ratings import ids_of
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle

ENTRIES: Final = 101
"""More entries than a page, or a part of a deletion, has."""
MANY_ENTRIES: Final = 1_001
"""The same in the thorough profile."""
ROUND: Final = (0, 1, 50, 100)
"""Sessions of a user whose feedback is erased: none, and the sizes that parts of a deletion often have."""
SIZES_BYTES: Final = (2**16, 2**20)
"""Sizes at which a store may cut a text, and in the thorough profile 16 MiB as well."""
MORE_BYTES: Final = 2**24


class ManyRatingsContract(Binding):
    """The promises of `memory.feedback` on amounts, sizes and times."""

    @clause(
        "FM-FBK-022",
        promise="However much feedback a store has, each entry is listed, counted and erased: with its user, or by "
        "`clear_all`.",
        impact="A user is forgotten except for the ratings beyond the first hundred.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE | Capability.SESSION_IDS,
    )
    async def test_feedback_of_any_number(self, store: StoreUnderTest) -> None:
        memory = store.open()
        most = MANY_ENTRIES if store.includes(f"{MANY_ENTRIES:,} entries of a session") else ENTRIES
        await memory.create_session(session_id="hers", user_id="ann")
        given = {"hers": 1, "unowned": -1}
        await together(memory.feedback.add(session, rating) for session, rating in given.items() for _ in range(most))
        assert len({*await ids_of(memory)}) == 2 * most
        for session, rating in given.items():
            by_session, by_rating, page = await asyncio.gather(
                ids_of(memory, session_id=session),
                ids_of(memory, rating=rating),
                memory.feedback.get(most, session_id=session),
            )
            assert len(by_session) == len(by_rating) == len(page) == most
        stats = await memory.feedback.stats()
        assert (stats["total"], stats["positive"], stats["negative"]) == (2 * most, most, most)
        await memory.delete_sessions(user_id="ann")
        assert await ids_of(memory, session_id="hers") == []
        assert len(await ids_of(memory)) == most
        if Capability.CLEAR_ALL in store.capabilities:
            await memory.clear_all()
            assert await ids_of(memory) == []

    @clause(
        "FM-FBK-023",
        promise="An erasure of a user's feedback does not depend on how many sessions the user has left: none, or any "
        "other number.",
        impact="A person who has deleted every conversation is not forgotten.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE,
    )
    async def test_feedback_erasure_for_any_number_of_sessions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for number in ROUND:
            user = f"user of {number}"
            gone = await memory.create_session(user_id=user)
            await memory.feedback.add(gone, -1, comment=user)
            await memory.delete_session(gone)
            await together(memory.create_session(user_id=user) for _ in range(number))
            assert await memory.delete_sessions(user_id=user) == number
            assert await ids_of(memory, session_id=gone) == [], f"with {number} sessions"

    @clause(
        "FM-FBK-024",
        promise="An erasure takes only the feedback of exactly this user, not of one whose id looks alike.",
        impact="One user asks to be forgotten, and the ratings of another one disappear.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE,
    )
    async def test_feedback_erasure_is_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        users = ("ann", "Ann", "ann ", " ann", "änn", "a\u0308nn", "ann%", "an_", "a")
        sessions = {user: await memory.create_session(user_id=user) for user in users}
        for user, session in sessions.items():
            await memory.feedback.add(session, 1, comment=user)
        left = [*users]
        for user in ("ann", "an_", "änn", "ann "):
            left.remove(user)
            assert await memory.delete_sessions(user_id=user) == 1
            assert sorted(entry["comment"] for entry in await memory.feedback.get(None)) == sorted(left), user

    @clause(
        "FM-FBK-025",
        promise="A comment, a corrected answer and metadata of any size up to the limit are returned unchanged, "
        "through any handle.",
        impact="The corrected answer that a model is trained on ends in the middle of a sentence.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_of_any_size(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        for size in (*SIZES_BYTES, *([MORE_BYTES] if store.includes("texts of 16 MiB") else [])):
            # The character lies across the size.
            text = "x" * (min(size, store.max_content_bytes - 4) - 1) + "é!"
            given: list[dict[str, Any]] = [
                {"comment": text},
                {"corrected_answer": text},
                {"metadata": {"text": text[: MORE_BYTES // 2]}},
            ]
            for at, parts in enumerate(given):
                name = f"{size} {at}"
                assert await memory.feedback.add(name, 1, feedback_id=name, **parts) == name
                (found,) = await other.feedback.get(session_id=name)
                shown: dict[str, Any] = {**found}
                assert all(shown[key] == value for key, value in parts.items()), f"{[*parts]} of {size:,} bytes"
                assert await memory.feedback.add(name, 1, feedback_id=name, **parts) == name, "a retry of a long entry"

    @clause(
        "FM-FBK-026",
        promise="Feedback does not expire, and its times are right in any decade: in entries, in their order, by day "
        "and by `since`.",
        impact="From 2038 on ratings cannot be stored, or those of last year are gone from the report.",
        needs=Capability.FEEDBACK | Capability.TIMESTAMPS,
    )
    async def test_feedback_of_any_decade(self, store: StoreUnderTest) -> None:
        memory = store.open()
        now = datetime.now(UTC)
        moments = [*(now - timedelta(days=days) for days in AGES_DAYS), *DECADES]
        for moment in moments:
            async with store.clock_at(moment):
                await memory.feedback.add("s", 1, comment=moment.date().isoformat())
        later = store.open() if Capability.SEVERAL_HANDLES in store.capabilities else memory
        found = await later.feedback.get(None)
        require_clock([entry["created_at"] for entry in found], now)
        assert [entry["comment"] for entry in found] == [moment.date().isoformat() for moment in reversed(moments)]
        assert [entry["created_at"][:10] for entry in found] == [entry["comment"] for entry in found]
        days = sorted({moment.date().isoformat() for moment in moments})
        assert [day["day"] for day in (await later.feedback.stats())["by_day"]] == days
        for at, moment in enumerate(moments):
            counted = (await later.feedback.stats(since=moment.replace(microsecond=0)))["total"]
            assert counted == len(moments) - at, f"since {moment}"

    @clause(
        "FM-FBK-027",
        promise="An empty corrected answer is not a missing one, and no part of an entry is taken for another: each is "
        "returned as given, and one over the other is a `ConflictError`.",
        impact="An answer that should have been left out is trained on as if nothing was wrong with it.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_parts_are_told_apart(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        kinds: list[dict[str, Any]] = [
            {},
            {"corrected_answer": ""},
            {"corrected_answer": " "},
            {"corrected_answer": "None"},
            {"comment": " "},
            {"comment": "None"},
            {"message_id": "None"},
            {"message_id": "s"},
            {"metadata": {"": None}},
            {"metadata": {"corrected_answer": ""}},
        ]
        bare: dict[str, Any] = {"message_id": None, "comment": "", "corrected_answer": None, "metadata": {}}
        names = {f"kind {at}": parts for at, parts in enumerate(kinds)}

        async def add_over(name: str, again: dict[str, Any]) -> None:
            if again == names[name]:
                assert await other.feedback.add("s", 0, feedback_id=name, **again) == name
                return
            with pytest.raises(ConflictError):
                await other.feedback.add("s", 0, feedback_id=name, **again)

        await together(memory.feedback.add("s", 0, feedback_id=name, **parts) for name, parts in names.items())
        await together(add_over(name, again) for name in names for again in kinds)
        found: dict[str, Any] = {entry["feedback_id"]: entry for entry in await other.feedback.get(None)}
        assert {name: {key: entry[key] for key in bare} for name, entry in found.items()} == {
            name: bare | parts for name, parts in names.items()
        }
        pages = await together(memory.feedback.get(1, at, session_id="s") for at in range(len(kinds)))
        assert all(pages)
        assert len(await ids_of(memory)) == len(kinds)

    @clause(
        "FM-FBK-028",
        promise="Changes of a session leave its feedback and the owner of it as they are: a fork for another user has "
        "none of it, and a title, a pop or a truncation removes none.",
        impact="A colleague who was given a copy of a conversation is forgotten, and its author's ratings disappear.",
        needs=Capability.FEEDBACK
        | Capability.FORK
        | Capability.TITLES
        | Capability.RETENTION
        | Capability.USER_SCOPE
        | Capability.BATCH
        | Capability.MESSAGE_IDS,
    )
    async def test_feedback_stays_with_its_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(user_id="ann")
        ids = await memory.add_messages(session, [{"role": "user", "content": str(at)} for at in range(3)])
        for rated in (None, *ids):
            await memory.feedback.add(session, 1, message_id=rated)
        before = await memory.feedback.get(None)
        copy = await memory.fork_session(session, user_id="ben")
        await memory.feedback.add(copy, -1, feedback_id="of the copy")
        assert await ids_of(memory, session_id=copy) == ["of the copy"]
        await memory.update_session_title(session, "new")
        if Capability.POP in store.capabilities:
            await memory.pop_message(session)
        if Capability.TRUNCATE in store.capabilities:
            await memory.update_session(session, truncate_all=True)
        assert await memory.delete_sessions(user_id="ben") == 1
        assert await memory.feedback.get(None) == before
        assert await memory.delete_sessions(user_id="ann") == 1
        assert await memory.feedback.get(None) == []
