"""Clauses on sessions: what creating, renaming and deleting change, and what they do not."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final
from uuid import UUID

import pytest

from flux_memory import ConflictError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.pace import bumped, together
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_numbered, contents, gather_outcomes

SESSION_KEYS: Final = {"id", "user_id", "title", "created_at", "updated_at", "metadata", "message_count", "revision"}


class SessionsContract(Binding):
    """The promises of the methods on sessions."""

    @clause(
        "FM-SES-001",
        promise="A new session has the given values; missing ones are empty text, `{}` and no messages.",
        impact="A conversation appears without its title, owner or settings.",
        needs=Capability.SESSIONS
        | (Capability.SESSION_IDS | Capability.SESSION_METADATA | Capability.USER_SCOPE | Capability.TITLES),
    )
    async def test_a_new_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        plain = await memory.get_session(await memory.create_session())
        given = await memory.get_session(await memory.create_session("t", {"k": 1}, session_id="s", user_id="u"))
        assert plain is not None
        assert given is not None
        seen = [(row["title"], row["metadata"], row["user_id"], row["message_count"]) for row in (plain, given)]
        assert seen == [("", {}, "", 0), ("t", {"k": 1}, "u", 0)]
        assert given["id"] == "s"

    @clause(
        "FM-SES-002",
        promise="A session is a plain `dict` with exactly the keys of the record and values of the record's types.",
        impact="Code written for one backend breaks on the other.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_a_session_is_the_record(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("t")
        found = await memory.get_session(session)
        listed = await memory.get_sessions()
        assert type(listed) is list
        assert found == listed[0]
        rows: list[Any] = [found, listed[0]]
        for row in rows:
            assert type(row) is dict
            assert set(row) == SESSION_KEYS
            kinds = {key: type(value) for key, value in row.items()}
            assert kinds == dict.fromkeys(SESSION_KEYS, str) | {"metadata": dict, "message_count": int}

    @clause(
        "FM-SES-003",
        promise="An id made by the library is UUIDv7 text and unique across handles.",
        impact="Ids collide, or do not sort by age.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_ids_are_uuid7(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        ids = await together(handle.create_session() for _ in range(5) for handle in (memory, other))
        for handle in (memory, other):
            ids += await together(handle.add_message(ids[0], "user", "") for _ in range(5))
            ids += await handle.add_messages(ids[0], [{"role": "user", "content": ""} for _ in range(5)])
        assert len(set(ids)) == len(ids)
        for made in ids:
            assert type(made) is str
            assert (str(UUID(made)), UUID(made).version) == (made, 7)

    @clause(
        "FM-SES-004",
        promise="Creating a session with an existing id raises `ConflictError` and leaves that session unchanged.",
        impact="A new conversation overwrites an existing one.",
        needs=Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.SESSION_METADATA
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_a_taken_id_is_a_conflict(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session("mine", {"k": 1}, session_id="s", user_id="u")
        await add_numbered(memory, "s", range(2))
        await memory.create_session(session_id="empty")
        before = await memory.get_sessions(), await memory.get_history("s")
        for title in ("mine", "theirs"):
            for taken in ("s", "empty"):
                with pytest.raises(ConflictError):
                    await memory.create_session(title, {"k": 2}, session_id=taken, user_id="v")
        assert (await memory.get_sessions(), await memory.get_history("s")) == before
        assert await memory.get_session("s") in before[0]
        assert await memory.get_sessions(user_id="v") == []
        if Capability.METADATA_FILTER in store.capabilities:
            assert await memory.get_sessions(metadata={"k": 2}) == []
        assert await memory.count_sessions() == 2

    @clause(
        "FM-SES-005",
        promise="Adding to a session that does not exist raises `SessionNotFoundError` and stores nothing.",
        impact="Messages are stored where no reader will find them.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS,
    )
    async def test_adding_to_nowhere(self, store: StoreUnderTest) -> None:
        memory = store.open()
        kept = await memory.create_session()
        before = await memory.get_sessions()
        for _ in range(2):
            with pytest.raises(SessionNotFoundError) as caught:
                await memory.add_message("nowhere", "user", "lost")
            assert isinstance(caught.value, LookupError)
        assert await memory.get_session("nowhere") is None
        assert await memory.get_history("nowhere") == []
        assert await memory.get_sessions() == before
        # A session created later under this id must be empty.
        await memory.create_session(session_id="nowhere")
        assert await memory.get_history("nowhere") == []
        assert await memory.get_history(kept) == []

    @clause(
        "FM-SES-006",
        promise="Renaming a session that does not exist raises `SessionNotFoundError` and creates nothing.",
        impact="A rename that did nothing appears to have worked.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_renaming_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session("kept")
        before = await memory.get_sessions()
        with pytest.raises(SessionNotFoundError):
            await memory.update_session_title("nowhere", "title")
        assert await memory.get_sessions() == before
        for _ in range(3):
            gone = await memory.create_session("gone")
            renames = [memory.update_session_title(gone, "late") for _ in range(6)]
            outcomes = await gather_outcomes(*renames[:3], memory.delete_session(gone), *renames[3:])
            assert all(outcome is None or isinstance(outcome, SessionNotFoundError) for outcome in outcomes), outcomes
            assert await memory.get_session(gone) is None
        assert await memory.get_sessions() == before

    @clause(
        "FM-SES-007",
        promise="Renaming changes the title and `updated_at` of that session, and nothing else.",
        impact="Renaming loses a session's metadata, owner or messages.",
        needs=Capability.SESSIONS | Capability.SESSION_METADATA | Capability.USER_SCOPE | Capability.TITLES,
    )
    async def test_renaming_changes_the_title_only(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = await memory.create_session("other")
        session = await memory.create_session("old", {"k": [1.0]}, user_id="u")
        await add_numbered(memory, session, range(2))
        before = await memory.get_session(session)
        history = await memory.get_history(session)
        # The declared return value is None; callers would come to depend on any other.
        returned: object = await memory.update_session_title(session, "new")  # type: ignore[func-returns-value]
        assert returned is None
        after = await memory.get_session(session)
        untouched = await memory.get_session(other)
        assert before is not None
        assert after is not None
        assert untouched is not None
        assert after == {**before, "title": "new", "updated_at": after["updated_at"], "revision": after["revision"]}
        assert await memory.get_history(session) == history
        assert untouched["title"] == "other"

    @clause(
        "FM-SES-008",
        promise="Deleting a session removes it and its messages, and nothing else.",
        impact="Deleted messages reappear, or another session's messages are gone.",
        needs=Capability.IDEMPOTENT_IDS | Capability.SESSIONS | Capability.SESSION_IDS | Capability.SEVERAL_HANDLES,
    )
    async def test_deleting_removes_exactly_one(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        same: dict[str, Any] = {"metadata": {"k": 1}} if Capability.SESSION_METADATA in store.capabilities else {}
        for session in ("a", "b"):
            await memory.create_session(session_id=session, **same)
            await memory.add_message(session, "user", "same text", message_id="same id")
        kept = await memory.get_session("b"), await memory.get_history("b")
        # Through a new connection: enforcing foreign keys may be a setting of each connection.
        await other.delete_session("a")
        assert await memory.get_session("a") is None
        assert await memory.get_history("a") == []
        assert await memory.count_sessions() == 1
        assert (await memory.get_session("b"), await memory.get_history("b")) == kept
        await memory.create_session(session_id="a")
        assert await memory.get_history("a") == []
        await memory.add_message("a", "user", "anew", message_id="same id")
        assert contents(await memory.get_history("a")) == ["anew"]
        if Capability.USER_SCOPE in store.capabilities:
            for user in ("ann", "bob"):
                await memory.create_session(session_id="c", user_id=user)
                assert [row["id"] for row in await memory.get_sessions(user_id=user)] == ["c"]
                await other.delete_session("c")
                assert await memory.get_sessions(user_id=user) == []
            await memory.create_session(session_id="c", user_id="bob")
            assert await memory.get_sessions(user_id="ann") == []

    @clause(
        "FM-SES-009",
        promise="Deleting a session that does not exist does nothing.",
        impact="A retried delete raises, or deletes something else.",
        needs=Capability.SESSIONS,
    )
    async def test_deleting_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        kept, gone = await memory.create_session(), await memory.create_session()
        await add_numbered(memory, kept, range(2))
        await memory.delete_session(gone)
        before = await memory.get_sessions(), await memory.get_history(kept)
        for session in (gone, "nowhere"):
            await memory.delete_session(session)
        assert (await memory.get_sessions(), await memory.get_history(kept)) == before

    @clause(
        "FM-SES-010",
        promise="`clear_all` removes every session and every message; the store keeps working.",
        impact="Data that had to be erased is still there.",
        needs=Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE
        | Capability.CLEAR_ALL
        | Capability.SEVERAL_HANDLES,
    )
    async def test_clearing_removes_everything(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()

        async def fill(session: str) -> None:
            await memory.create_session(session_id=session, user_id=session)
            await add_numbered(memory, session, range(3))

        async def fill_again(session: str) -> None:
            assert await memory.get_history(session) == []
            await memory.create_session(session_id=session)
            assert await memory.get_history(session) == []
            assert await memory.get_sessions(user_id=session) == []

        await together(map(fill, "abc"))
        await other.clear_all()
        await _is_empty(memory)
        await other.clear_all()
        await together(map(fill_again, "abc"))
        await add_numbered(memory, "a", range(2))
        assert contents(await other.get_history("a")) == ["0", "1"]
        if Capability.IDEMPOTENT_IDS in store.capabilities:
            for content in ("before", "after"):
                await memory.clear_all()
                await memory.create_session(session_id="a")
                await memory.add_message("a", "user", content, message_id="same id")
                assert contents(await other.get_history("a")) == [content]

    @clause(
        "FM-SES-011",
        promise="`count_sessions` returns the number of sessions.",
        impact="A pager shows pages that do not exist.",
        needs=Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_counting(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _is_empty(memory)
        sessions = [await memory.create_session(user_id=user) for user in ("ann", "ann", "bob")]
        await add_numbered(memory, sessions[1], range(2))
        count = await memory.count_sessions()
        assert (type(count), count) == (int, 3)
        await memory.delete_session(sessions[0])
        assert await memory.count_sessions() == 2

    @clause(
        "FM-SES-012",
        promise="Renaming a session to the title it has is a rename: it succeeds, updates `updated_at` and moves the "
        "session to the top of the list.",
        impact="A repeated rename raises an error, or leaves the conversation at the bottom of the list.",
        needs=Capability.SESSIONS | Capability.TITLES | Capability.TIMESTAMPS,
    )
    async def test_renaming_to_the_same_title(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, other = await memory.create_session("same"), await memory.create_session("same")
        for renamed, still in ((session, other), (other, session)):
            top = {row["id"]: row["updated_at"] for row in await memory.get_sessions()}
            rename, newest = partial(memory.update_session_title, renamed, "same"), max(top.values())
            assert await bumped(rename, partial(_is_later, memory, newest)), "the rename did not update updated_at"
            first, second = await memory.get_sessions()
            assert (first["id"], first["title"], second["id"]) == (renamed, "same", still)
            assert second["updated_at"] == top[still]

    @clause(
        "FM-SES-013",
        promise="Only an id identifies: sessions with the same title, metadata and owner, and messages with the same "
        "text, are all kept, and one text may be the id of a session, a message and a user.",
        impact="A second conversation with the same title, or a repeated answer, is taken for the first.",
        needs=Capability.SESSIONS | Capability.SESSION_METADATA | Capability.USER_SCOPE | Capability.TITLES,
    )
    async def test_only_an_id_identifies(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session("t", {"k": 1}, user_id="u") for _ in range(3)]
        for session in sessions:
            for _ in range(3):
                await memory.add_message(session, "user", "text")
            await asyncio.gather(*(memory.add_message(session, "user", "text") for _ in range(2)))
        if Capability.BATCH in store.capabilities:
            await memory.add_messages(sessions[0], [{"role": "user", "content": "text"} for _ in range(3)])
        counts = [5 + 3 * (Capability.BATCH in store.capabilities), 5, 5]
        for session, count in zip(sessions, counts, strict=True):
            assert contents(await memory.get_history(session)) == ["text"] * count
        rows = await memory.get_sessions(user_id="u")
        assert {row["id"]: row["message_count"] for row in rows} == dict(zip(sessions, counts, strict=True))
        if Capability.SESSION_IDS | Capability.IDEMPOTENT_IDS in store.capabilities:
            for one in ("u", "t"):
                await memory.create_session(one, session_id=one, user_id=one)
                assert await memory.add_message(one, one, one, message_id=one) == one
            assert {row["id"] for row in await memory.get_sessions(user_id="u")} == {*sessions, "u"}
            await memory.delete_session("u")
            assert {row["id"] for row in await memory.get_sessions(user_id="u")} == {*sessions}
            assert contents(await memory.get_history("t")) == ["t"]


async def _is_later(memory: Memory, time: str) -> bool:
    return (await memory.get_sessions(1))[0]["updated_at"] > time


async def _is_empty(memory: Memory) -> None:
    assert await memory.count_sessions() == 0
    assert await memory.get_sessions(None) == []
