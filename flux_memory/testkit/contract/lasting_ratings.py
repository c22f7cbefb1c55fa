"""Clauses on the life of feedback: beside sessions that come and go, users, other handles and cancelled calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, MemoryClosedError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.cancel_points import cancelled_everywhere
from flux_memory.testkit.contract.corpus import NOT_TEXTS
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.ratings import ids_of
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, gather_outcomes

CALLERS: Final = 12
"""Concurrent adds of one id."""
FILTERS: Final[tuple[dict[str, Any], ...]] = ({}, {"session_id": "s"}, {"message_id": "m"}, {"rating": 1})
"""The filters that find one entry of those clauses."""


class LastingRatingsContract(Binding):
    """The promises of `memory.feedback` about how long its entries last."""

    @clause(
        "FM-FBK-012",
        promise="Feedback may name sessions and messages that do not exist, and a session takes no notice of it.",
        impact="A rating that arrives after its conversation was deleted is lost, or moves an old session to the top.",
        needs=Capability.FEEDBACK | Capability.SESSIONS,
    )
    async def test_feedback_sessions_need_not_exist(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "text")
        before = await memory.get_session(session)
        for name, message in ((session, "no message"), ("no session", None), ("no session", "no message")):
            made = await memory.feedback.add(name, 1, message_id=message)
            assert made in await ids_of(memory, session_id=name)
        assert await memory.get_session(session) == before
        assert [row["id"] for row in await memory.get_sessions()] == [session]

    @clause(
        "FM-FBK-013",
        promise="`delete_session` keeps the feedback on the session.",
        impact="Every bad rating disappears with the conversation that it is about.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_outlives_its_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.feedback.add(session, -1, comment="wrong")
        before = await memory.feedback.get()
        await memory.delete_session(session)
        assert len(before) == 1
        assert await memory.feedback.get(session_id=session) == before

    @clause(
        "FM-FBK-014",
        promise="`delete_sessions` with `inactive_since` keeps feedback, also of one user.",
        impact="The job that removes old conversations also removes the ratings that show whether answers improve.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE,
    )
    async def test_feedback_retention_keeps_feedback(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session(user_id=user) for user in ("ann", "ben")]
        for session in sessions:
            await memory.feedback.add(session, 1)
        before = await memory.feedback.get()
        future = datetime.now(UTC) + timedelta(days=400)
        assert await memory.delete_sessions(user_id="ann", inactive_since=future) == 1
        assert await memory.delete_sessions(inactive_since=future) == 1
        assert len(before) == 2
        assert await memory.feedback.get() == before

    @clause(
        "FM-FBK-015",
        promise="`delete_sessions` with a `user_id` alone erases the user's feedback, also that on sessions deleted "
        "before and that added before its session; other feedback stays.",
        impact="A person asks to be forgotten, and the comments remain.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE | Capability.SESSION_IDS,
    )
    async def test_feedback_erasure_of_a_user(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.feedback.add("later", -1, feedback_id="before its session")
        for session, user in (("gone", "ann"), ("left", "ann"), ("later", "ann"), ("other", "ben"), ("open", "")):
            await memory.create_session(session_id=session, user_id=user)
            await memory.feedback.add(session, 1, feedback_id=f"on {session}")
        await memory.feedback.add("nowhere", 0, feedback_id="on nowhere")
        await memory.delete_session("gone")
        # Another user's session under the id of one of hers.
        await memory.create_session(session_id="gone", user_id="ben")
        await memory.feedback.add("gone", 0, feedback_id="on gone again")
        assert await memory.delete_sessions(user_id="ann") == 2
        kept = ["on gone again", "on nowhere", "on open", "on other"]
        assert sorted(await ids_of(memory)) == kept
        # A call that was cut off is completed by calling again.
        assert await memory.delete_sessions(user_id="ann") == 0
        assert sorted(await ids_of(memory)) == kept
        assert await memory.delete_sessions(user_id="") == 1
        assert sorted(await ids_of(memory)) == kept, "feedback without a user was erased"

    @clause(
        "FM-FBK-016",
        promise="`clear_all` erases all feedback.",
        impact="A test begins with the ratings of the one before.",
        needs=Capability.FEEDBACK | Capability.CLEAR_ALL,
    )
    async def test_feedback_clear_all(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.feedback.add(await memory.create_session(), 1)
        await memory.feedback.add("nowhere", 1)
        await memory.clear_all()
        assert await memory.feedback.get() == []
        assert (await memory.feedback.stats())["total"] == 0

    @clause(
        "FM-FBK-017",
        promise="`feedback.delete` removes one entry; an unknown id is not an error, and an id that is not a `str` "
        "is a "
        "type error.",
        impact="A user withdraws one rating, and another one disappears, too.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_deletion(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for name in ("a", "A", "b", "c"):
            await memory.feedback.add("s", 1, message_id="m", feedback_id=name)
        await memory.feedback.delete("a")
        assert sorted(await ids_of(memory)) == ["A", "b", "c"]
        for key in ("a", "s", "m", "b ", " b", "B", "_", "b%", "\uff42", *NOWHERE):
            await memory.feedback.delete(key)
        assert sorted(await ids_of(memory)) == ["A", "b", "c"]
        assert (await memory.feedback.stats())["total"] == 3
        values: list[Any] = [None, *NOT_TEXTS]
        for wrong in values:
            with pytest.raises(InvalidInputError, match="feedback_id") as caught:
                await memory.feedback.delete(wrong)
            assert isinstance(caught.value, TypeError), f"{wrong!r} raised {caught.value!r}"
        # Its id is free again.
        assert await memory.feedback.add("t", -1, feedback_id="a") == "a"
        assert await ids_of(memory, session_id="t") == ["a"]

    @clause(
        "FM-FBK-029",
        promise="An entry that is added under the id of one that was deleted, erased or cleared has nothing of it: no "
        "owner, session, message, text, rating or metadata.",
        impact="One person asks to be forgotten, and the rating of another one disappears.",
        needs=Capability.FEEDBACK | Capability.RETENTION | Capability.USER_SCOPE | Capability.SESSION_IDS,
    )
    async def test_feedback_ids_used_again(self, store: StoreUnderTest) -> None:
        memory = store.open()
        endings: dict[str, Callable[[str], Awaitable[object]]] = {
            "deleted": memory.feedback.delete,
            "erased": lambda _: memory.delete_sessions(user_id="ann"),
        }
        if Capability.CLEAR_ALL in store.capabilities:
            endings["cleared"] = lambda _: memory.clear_all()
        for name, end in endings.items():
            await memory.create_session(session_id=f"{name} ann", user_id="ann")
            old: Any = {"message_id": "m", "comment": "old", "corrected_answer": "old", "metadata": {"k": 1}}
            await memory.feedback.add(f"{name} ann", -1, feedback_id=name, **old)
            await memory.feedback.add(f"{name} later", -1, feedback_id=f"{name} early", **old)
            await end(name)
            await memory.feedback.delete(f"{name} early")
            await memory.create_session(session_id=f"{name} ben", user_id="ben")
            for key in (name, f"{name} early"):
                assert await memory.feedback.add(f"{name} ben", 1, feedback_id=key) == key
            again = await memory.feedback.get(session_id=f"{name} ben")
            assert [entry["feedback_id"] for entry in again if entry["rating"] == 1] == [f"{name} early", name]
            for entry in again:
                rest = (entry["message_id"], entry["comment"], entry["corrected_answer"], entry["metadata"])
                assert rest == (None, "", None, {}), f"something of an entry that was {name} is there"
            await memory.create_session(session_id=f"{name} later", user_id="ann")
            assert await ids_of(memory, session_id=f"{name} ann") == []
            assert await ids_of(memory, session_id=f"{name} later") == []
            await memory.delete_sessions(user_id="ann")
            assert await memory.feedback.get() == again, f"taken for an entry that was {name}"
            await memory.delete_sessions(user_id="ben")
            assert await memory.feedback.get() == [], f"not erased, as an entry was {name}"

    @clause(
        "FM-FBK-018",
        promise="Each handle sees at once what another one added or deleted.",
        impact="A rating appears in the dashboard only after a restart.",
        needs=Capability.FEEDBACK | Capability.SEVERAL_HANDLES,
    )
    async def test_feedback_handles_agree(self, store: StoreUnderTest) -> None:
        one, other = store.open(), store.open()
        for name in "abc":
            assert (await other.feedback.stats())["total"] == 0
            await one.feedback.add("s", 1, message_id="m", feedback_id=name)
            for filters in FILTERS:
                assert await ids_of(other, **filters) == [name], f"with {filters}"
            assert (await other.feedback.stats())["total"] == 1
            await other.feedback.delete(name)
            for filters in FILTERS:
                assert await ids_of(one, **filters) == [], f"with {filters}"

    @clause(
        "FM-FBK-019",
        promise="Of concurrent adds under one id, through any handles, one entry is stored: the same one succeeds for "
        "each caller, and callers with another one get a `ConflictError`.",
        impact="A double click counts twice, or both of two different ratings are reported as stored.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_concurrent_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))

        def add(at: int, name: str, comment: str) -> Any:
            return handles[at % 2].feedback.add("s", 1, comment=comment, feedback_id=name)

        for number in range(3):
            same = await gather_outcomes(*(add(at, f"same {number}", "text") for at in range(CALLERS)))
            assert same == [f"same {number}"] * CALLERS
            mixed = await gather_outcomes(*(add(at, f"mixed {number}", f"{at}") for at in range(CALLERS)))
            stored = [at for at, outcome in enumerate(mixed) if outcome == f"mixed {number}"]
            assert len(stored) == 1, f"{len(stored)} callers stored their own entry: {mixed}"
            assert all(isinstance(each, ConflictError) for at, each in enumerate(mixed) if at not in stored), mixed
            found = {entry["feedback_id"]: entry["comment"] for entry in await memory.feedback.get(None)}
            assert found[f"mixed {number}"] == str(stored[0])
        assert len(await ids_of(memory)) == 6

    @clause(
        "FM-FBK-020",
        promise="A cancelled `feedback.add` is stored completely or not at all, and the handle keeps working.",
        impact="A user closes the tab while a rating is sent, and ratings fail from then on.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_cancelled_adds(self, store: StoreUnderTest) -> None:
        memory = store.open()
        expected, uncertain = set[str](), set[str]()
        async for attempt in cancelled_everywhere(
            lambda n: memory.feedback.add("s", 1, comment=f"{n}", metadata={"n": n}, feedback_id=f"try {n}")
        ):
            (uncertain if attempt.cancelled else expected).add(f"try {attempt.number}")
            expected.add(await memory.feedback.add("s", 0, comment="after", metadata={"n": "after"}))
        # A request that was under way may arrive after its call was cancelled.
        await asyncio.sleep(0)
        found: dict[str, Any] = {entry["feedback_id"]: entry for entry in await memory.feedback.get(None)}
        assert expected <= found.keys() <= expected | uncertain
        for name, entry in found.items():
            number = int(name.split()[1]) if name.startswith("try ") else "after"
            assert (entry["comment"], entry["metadata"]) == (str(number), {"n": number})
        # Each one may be sent again.
        numbers = {name: int(name.split()[1]) for name in sorted(uncertain)}
        await together(
            memory.feedback.add("s", 1, comment=f"{number}", metadata={"n": number}, feedback_id=name)
            for name, number in numbers.items()
        )
        assert {*await ids_of(memory)} == expected | uncertain

    @clause(
        "FM-FBK-021",
        promise="On a closed handle each call on feedback raises `MemoryClosedError`, also with invalid arguments.",
        impact="A shutdown shows errors of the driver, or a call opens the store again.",
        needs=Capability.FEEDBACK,
    )
    async def test_feedback_closed_handles(self, store: StoreUnderTest) -> None:
        memory = store.open()
        feedback = memory.feedback
        await feedback.add("s", 1)
        await memory.close()
        wrong: Any = object()
        for kept in (feedback, memory.feedback):
            for call in (
                kept.add("s", 1),
                kept.add(wrong, wrong),
                kept.get(),
                kept.get(wrong),
                kept.stats(),
                kept.stats(since=wrong),
                kept.delete("f"),
                kept.delete(wrong),
            ):
                with pytest.raises(MemoryClosedError):
                    await call
