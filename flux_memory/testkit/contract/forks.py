"""Clauses on `fork_session`: a copy that is complete, has a life of its own, and leaves the original as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.clock import UNSET_CLOCK
from flux_memory.testkit.contract.corpus import METADATA, NOT_TEXTS, VARIED_MESSAGES, same
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.spelling import twins_of
from flux_memory.testkit.contract.under_test import StoreUnderTest, add_many, add_numbered, contents
from flux_memory.testkit.verdicts import unverified

UNSTORABLE: Final = ("nul\x00", "\ud800")


class ForksContract(Binding):
    """The promises of one `fork_session`, and of the two sessions that there are after it."""

    @clause(
        "FM-FRK-001",
        promise="A fork has the messages of the original: in the same order, with the same ids, texts, metadata and "
        "times.",
        impact="A conversation that continues from a copy has other tool calls, or other times, than the original.",
        needs=Capability.FORK | Capability.BATCH | Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_fork_has_the_messages(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_messages(session, VARIED_MESSAGES)
        await add_numbered(memory, session, range(3))
        history = await memory.get_history(session)
        fork = await memory.fork_session(session)
        assert fork != session
        for name in (fork, session, await memory.fork_session(fork)):
            assert same(await memory.get_history(name), history)
            assert same(await memory.get_history(name, 4), history[-4:])
        if Capability.CURSOR in store.capabilities:
            assert same(await memory.get_history(fork, before=history[5]["id"]), history[:5])
        empty = await memory.fork_session(await memory.create_session())
        assert await memory.get_history(empty) == []

    @clause(
        "FM-FRK-002",
        promise="A fork has the metadata, the owner and the title of the original, unless the call gives an owner or "
        'a title; `""` is one.',
        impact="The copy of a conversation is in no user's list, or in the wrong user's.",
        needs=Capability.FORK
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.USER_SCOPE
        | Capability.TITLES
        | Capability.METADATA_FILTER,
    )
    async def test_a_fork_has_the_record(self, store: StoreUnderTest) -> None:
        memory = store.open()
        metadata = {name: value for name, value in METADATA.items() if len(repr(value)) < 10_000}
        session = await memory.create_session("t\u00eftle", {"k": metadata, "marker": 1.0}, user_id="ann")
        await add_numbered(memory, session, range(2))
        original: Any = await memory.get_session(session)
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({}, "ann", "t\u00eftle"),
            ({"user_id": None, "title": None}, "ann", "t\u00eftle"),
            ({"user_id": "bob"}, "bob", "t\u00eftle"),
            ({"title": "another"}, "ann", "another"),
            ({"user_id": "", "title": ""}, "", ""),
        ]
        for given, user, title in cases:
            fork = await memory.fork_session(session, **given)
            found: Any = await memory.get_session(fork)
            assert (found["id"], found["user_id"], found["title"]) == (fork, user, title), f"with {given}"
            assert same(found["metadata"], original["metadata"])
            assert found["message_count"] == 2
            assert fork in [row["id"] for row in await memory.get_sessions(user_id=user, metadata={"marker": 1})]
        assert await memory.get_session(session) == original

    @clause(
        "FM-FRK-003",
        promise="`through` copies the messages up to it, and itself: of the first, any other or the last message.",
        impact="A user edits a message, and the copy still has the answer to the old one, or misses the question.",
        needs=Capability.FORK | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_through_is_the_last_message(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other, session = await memory.create_session(), await memory.create_session()
        ids = []
        for number in range(7):
            # The place in the session is not the place among all messages.
            await add_numbered(memory, other, range(2))
            ids += await add_numbered(memory, session, [number])
        forks = await together(memory.fork_session(session, through=one) for one in (*ids, None))
        for at, fork in enumerate(forks):
            count = min(at + 1, len(ids))
            assert [row["id"] for row in await memory.get_history(fork)] == ids[:count], f"through message {at}"
            found: Any = await memory.get_session(fork)
            assert found["message_count"] == count
            (added,) = await add_numbered(memory, fork, [at])
            assert [row["id"] for row in await memory.get_history(fork)] == [*ids[:count], added]

    @clause(
        "FM-FRK-004",
        promise="A fork of a session that does not exist, through a message that it does not have, or to an id that is "
        "taken, raises its error, and changes nothing.",
        impact="A failed copy leaves an empty conversation behind, or replaces an existing one.",
        needs=Capability.FORK
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS,
    )
    async def test_refused_forks(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, other = await memory.create_session(), await memory.create_session()
        await memory.add_message(session, "user", "text", message_id="mine")
        await memory.add_message(other, "user", "text", message_id="foreign")
        before = [await _whole(memory, one) for one in (session, other)]
        keys = ("foreign", "unknown", *(key for key in NOWHERE if key != "unknown"), "x" * (store.max_id_length + 1))
        for key in keys:
            with pytest.raises(ConflictError):
                await memory.fork_session(session, through=key, new_session_id="new")
        for key in (*NOWHERE, "x" * (store.max_id_length + 1)):
            for through in (None, "mine"):
                with pytest.raises(SessionNotFoundError):
                    await memory.fork_session(key, through=through, new_session_id="new")
        for taken in (session, other):
            for through in (None, "mine"):
                with pytest.raises(ConflictError):
                    await memory.fork_session(session, through=through, new_session_id=taken)
        assert await memory.count_sessions() == 2
        assert await memory.get_history("new") == []
        assert [await _whole(memory, one) for one in (session, other)] == before
        assert await memory.fork_session(session, through="mine", new_session_id="new") == "new"
        assert contents(await memory.get_history("new")) == ["text"]

    @clause(
        "FM-FRK-005",
        promise="An invalid argument of a fork is rejected, with its name, and nothing is stored.",
        impact="A wrong argument makes a copy that no user can find.",
        needs=Capability.FORK
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_wrong_arguments_of_forks(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        wrong: dict[str, tuple[Any, ...]] = {
            "new_session_id": ("", "x" * (store.max_id_length + 1), *UNSTORABLE),
            "user_id": ("x" * 256, *UNSTORABLE),
            "title": UNSTORABLE,
        }
        for name, given in wrong.items():
            for value in given:
                with pytest.raises(InvalidInputError, match=name):
                    await memory.fork_session(session, **{name: value})
        for name in ("through", *wrong):
            for value in NOT_TEXTS:
                with pytest.raises(InvalidInputError, match=name) as caught:
                    await memory.fork_session(session, **{name: value})
                assert isinstance(caught.value, TypeError), f"{name}={value!r} raised {caught.value!r}"
        values: list[Any] = [None, *NOT_TEXTS]
        for value in values:
            with pytest.raises(InvalidInputError, match="session_id") as caught:
                await memory.fork_session(value)
            assert isinstance(caught.value, TypeError), f"{value!r} raised {caught.value!r}"
        assert await memory.count_sessions() == 1

    @clause(
        "FM-FRK-006",
        promise="Original and fork are independent: adds, renames, removals and a deletion of one leave the other as "
        "it was.",
        impact="A user deletes a copy of a conversation, and the original is gone.",
        needs=Capability.FORK
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.TITLES,
    )
    async def test_forks_are_independent(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("title")
        for name in "abc":
            await memory.add_message(session, "user", name, message_id=name)
        fork = await memory.fork_session(session)
        for changed, kept in ((fork, session), (session, fork)):
            before = await _whole(memory, kept)
            # The same new id in both sessions, too.
            await memory.add_message(changed, "user", f"d of {changed}", message_id="d")
            await memory.update_session_title(changed, "another title")
            assert await memory.add_message(changed, "user", "a", message_id="a") == "a"
            assert contents(await memory.get_history(changed)) == ["a", "b", "c", f"d of {changed}"]
            if Capability.POP in store.capabilities:
                for _ in range(3):
                    await memory.pop_message(changed)
                assert contents(await memory.get_history(changed)) == ["a"]
                await memory.add_message(changed, "user", "another b", message_id="b")
            assert await _whole(memory, kept) == before
        again = await memory.fork_session(session)
        for deleted, kept in ((fork, session), (session, again)):
            before = await _whole(memory, kept)
            await memory.delete_session(deleted)
            assert await _whole(memory, deleted) == (None, [])
            assert await _whole(memory, kept) == before

    @clause(
        "FM-FRK-007",
        promise="A fork is a new session: it has a creation time, an activity and a revision of its own, none of them "
        "before the original's last change. The original does not change.",
        impact="The copy that a user has just made is not at the top of the list.",
        needs=Capability.FORK | Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_times_of_a_fork(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        moment = datetime.now(UTC) + timedelta(hours=1)
        for later in (timedelta(0), timedelta(hours=1)):
            if later:
                async with store.clock_at(moment):
                    await add_numbered(memory, session, range(2))
            original: Any = await memory.get_session(session)
            forks = [await memory.fork_session(session) for _ in range(2)]
            found: list[Any] = [await memory.get_session(fork) for fork in forks]
            for row in found:
                assert row["created_at"] == row["updated_at"], "a new session was changed"
                assert row["updated_at"] >= original["updated_at"], "a copy is older than what it copies"
            assert await memory.get_session(session) == original
            if Capability.REVISIONS in store.capabilities:
                assert len({row["revision"] for row in (original, *found)}) == 3
        if original["updated_at"] < moment.isoformat(timespec="seconds"):
            unverified(UNSET_CLOCK)

    @clause(
        "FM-FRK-008",
        promise="A fork of a long session is complete.",
        impact="The copy of a long conversation ends after a few hundred messages.",
        needs=Capability.FORK | Capability.MESSAGE_IDS | Capability.SESSIONS,
    )
    async def test_a_fork_of_a_long_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await add_many(store, memory, session, 0)
        fork = await memory.fork_session(session)
        assert [row["id"] for row in await memory.get_history(fork)] == ids
        found: Any = await memory.get_session(fork)
        assert found["message_count"] == len(ids)

    @clause(
        "FM-FRK-009",
        promise="A copy of a copy has everything that the first copy had, and keeps it when both are gone.",
        impact="The second branch of a conversation has lost its settings, or vanishes with the first.",
        needs=Capability.FORK
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_a_copy_of_a_copy(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("t", {"k": {"l": [1.0]}}, user_id="u")
        await add_numbered(memory, session, range(3))
        line = [session]
        for number in range(3):
            line.append(await memory.fork_session(line[-1]))
            await memory.add_message(line[-1], "user", f"in copy {number}")
            await memory.update_session_title(line[-1], f"copy {number}")
        last: Any = await memory.get_session(line[-1])
        assert (last["title"], last["metadata"], last["user_id"]) == ("copy 2", {"k": {"l": [1.0]}}, "u")
        for gone in line[:-1]:
            await memory.delete_session(gone)
        said = ["0", "1", "2", *(f"in copy {number}" for number in range(3))]
        assert contents(await memory.get_history(line[-1])) == said
        assert await memory.get_sessions() == [last]
        assert last["message_count"] == len(said)

    @clause(
        "FM-FRK-010",
        promise="A fork takes the ids and the owner that it is given byte for byte: its own id, its owner, and the "
        "message that `through` names. Those that look alike are different.",
        impact="The copy of a conversation ends at another message, or belongs to another user.",
        needs=Capability.FORK
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE,
    )
    async def test_ids_of_forks_are_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session, twins = await memory.create_session(), twins_of(store)
        ids = [one for one, _ in twins]
        for one in ids:
            await memory.add_message(session, "user", one, message_id=one)

        async def check(one: str, twin: str) -> None:
            with pytest.raises(ConflictError):
                await memory.fork_session(session, through=twin)
            assert await memory.fork_session(session, through=one, new_session_id=one, user_id=one) == one
            assert await memory.fork_session(session, through=ids[0], new_session_id=twin, user_id=twin) == twin
            for name, count in ((one, ids.index(one) + 1), (twin, 1)):
                rows = await memory.get_sessions(user_id=name)
                assert [(row["id"], row["user_id"], row["message_count"]) for row in rows] == [(name, name, count)]

        await together(check(one, twin) for one, twin in twins)
        assert await memory.count_sessions() == 2 * len(twins) + 1


async def _whole(memory: Memory, session: str) -> tuple[Any, Any]:
    return await memory.get_session(session), await memory.get_history(session)
