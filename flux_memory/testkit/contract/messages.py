"""Clauses on single messages: the record, and retries that store once."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flux_memory import ConflictError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import same
from flux_memory.testkit.contract.lookalikes import CHANGED_METADATA, CHANGED_TEXTS, EQUAL_METADATA
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import SEPARATORS, StoreUnderTest, add_numbered, contents, gather_outcomes

MESSAGE_KEYS: Final = {"id", "role", "content", "metadata", "created_at"}


class MessagesContract(Binding):
    """The promises of `add_message`."""

    @clause(
        "FM-MSG-001",
        promise="A message is a plain `dict` with exactly the keys of the record and values of the record's types.",
        impact="Code written for one backend breaks on the other.",
        needs=Capability.MESSAGE_METADATA,
    )
    async def test_a_message_is_the_record(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        message_id = await memory.add_message(session, "user", "text", {"k": 1})
        history = await memory.get_history(session)
        assert type(history) is list
        row: Any = history[0]
        assert len(history) == 1
        assert type(row) is dict
        assert set(row) == MESSAGE_KEYS
        assert {key: type(value) for key, value in row.items()} == dict.fromkeys(MESSAGE_KEYS, str) | {"metadata": dict}
        assert (row["id"], row["role"], row["content"], row["metadata"]) == (message_id, "user", "text", {"k": 1})

    @clause(
        "FM-MSG-002",
        promise="Adding the same content again with the same `message_id` stores it once and returns the id.",
        impact="A retry after a lost response stores the message twice.",
        needs=Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SEVERAL_HANDLES,
    )
    async def test_a_retry_stores_once(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        for handle in (memory, memory, other):
            returned = await handle.add_message(session, "user", "text", {"a": 1, "b": [1.5]}, message_id="m")
            assert returned == "m"
        # The same object, with its keys in a different order.
        assert await memory.add_message(session, "user", "text", {"b": [1.5], "a": 1}, message_id="m") == "m"
        assert contents(await memory.get_history(session)) == ["text"]
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == 1

    @clause(
        "FM-MSG-003",
        promise="A retry changes nothing: not the order, the times or the count.",
        impact="A retry moves an old message to the end, or an old session to the top.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.SESSIONS,
    )
    async def test_a_retry_changes_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "first", message_id="m")
        await add_numbered(memory, session, range(2))
        await memory.create_session()
        before = await memory.get_sessions(), await memory.get_history(session)
        await memory.add_message(session, "user", "first", message_id="m")
        await memory.add_messages(session, [{"role": "user", "content": "first", "message_id": "m"}])
        assert (await memory.get_sessions(), await memory.get_history(session)) == before

    @clause(
        "FM-MSG-004",
        promise="Different content, role or metadata with a stored `message_id` raises `ConflictError`; nothing "
        "changes.",
        impact="One of two different messages is dropped without an error.",
        needs=Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SEVERAL_HANDLES,
    )
    async def test_another_content_is_a_conflict(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "text", {"k": 1}, message_id="m")
        await memory.create_session()
        before = await memory.get_sessions(), await memory.get_history(session)
        others: list[tuple[str, str, dict[str, Any] | None]] = [
            ("user", "another", {"k": 1}),
            ("assistant", "text", {"k": 1}),
            ("user", "text", {"k": 2}),
            ("user", "text", {"k": True}),
            ("user", "text", {"k": 1, "l": 1}),
            ("user", "text", None),
        ]

        async def refuse(handle: Memory, role: str, content: str, metadata: dict[str, Any] | None) -> None:
            with pytest.raises(ConflictError):
                await handle.add_message(session, role, content, metadata, message_id="m")

        await together(refuse(handle, *another) for another in others for handle in (memory, other))
        assert (await memory.get_sessions(), await memory.get_history(session)) == before

    @clause(
        "FM-MSG-005",
        promise="A `message_id` is unique within its session only.",
        impact="Copying a conversation fails, or drops messages.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_ids_belong_to_their_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        sessions = [await memory.create_session() for _ in range(3)]
        for session in sessions:
            assert await memory.add_message(session, "user", session, message_id="m") == "m"
        for session, history in zip(sessions, await together(map(memory.get_history, sessions)), strict=True):
            assert contents(history) == [session]
        await memory.delete_session(sessions[0])
        assert contents(await memory.get_history(sessions[1])) == [sessions[1]]
        await self._can_be_copied(store, memory)
        if Capability.SESSION_IDS in store.capabilities:
            # Joined with this separator, both pairs of session and message id give the same text.
            pairs = [pair for mark in SEPARATORS for pair in (("a", f"b{mark}c"), (f"a{mark}b", "c"))]
            names = list(dict.fromkeys(session for session, _ in pairs))
            await together(memory.create_session(session_id=session) for session in names)
            made = await together(memory.add_message(name, "user", name, message_id=each) for name, each in pairs)
            assert made == [message for _, message in pairs]
            for session, history in zip(names, await together(map(memory.get_history, names)), strict=True):
                assert contents(history) == [session] * [name for name, _ in pairs].count(session)
            await memory.delete_session("a")
            for session, history in zip(names[1:], await together(map(memory.get_history, names[1:])), strict=True):
                assert contents(history) == [session]

    @clause(
        "FM-MSG-006",
        promise="Concurrent retries of one message, on several handles, store it once and all return its id.",
        impact="If a client sends a message several times at once, it appears several times.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_concurrent_retries_store_once(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        session = await handles[0].create_session()
        for number in range(4):
            message_id = f"m{number}"
            outcomes = await gather_outcomes(
                *(handle.add_message(session, "user", "text", message_id=message_id) for handle in handles * 4)
            )
            assert outcomes == [message_id] * 8
        await self._stored_once(handles, session, ["m0", "m1", "m2", "m3"])

    @clause(
        "FM-MSG-007",
        promise="If different contents are added concurrently with one `message_id`, one is stored and the others "
        "raise `ConflictError`.",
        impact="Two messages share an id, or one is acknowledged and lost.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_concurrent_conflicts_store_one(self, store: StoreUnderTest) -> None:
        handles = [store.open(), store.open()]
        session = await handles[0].create_session()
        outcomes = await gather_outcomes(
            *(handles[n % 2].add_message(session, "user", str(n), message_id="m") for n in range(8))
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
        assert (outcomes.count("m"), len(refused)) == (1, 7), outcomes
        (row,) = await handles[1].get_history(session)
        assert row["content"] == str(outcomes.index("m"))
        await self._stored_once(handles, session, ["m"])

    @clause(
        "FM-MSG-008",
        promise="A retry compares numbers in metadata by value, at any depth: 1 equals 1.0; the value stored first is "
        "kept.",
        impact="A client whose language has only one number type cannot retry a message.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_retry_compares_numbers_by_value(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for number, (first, again) in enumerate([(1, 1.0), (1.0, 1), (1e22, 10**22), (0.0, -0.0)]):
            sent, resent = {"list": [{"k": first}]}, {"list": [{"k": again}]}
            await memory.add_message(session, "user", "", sent, message_id=str(number))
            assert await memory.add_message(session, "user", "", resent, message_id=str(number)) == str(number)
            stored = (await memory.get_history(session))[number:]
            assert repr([row["metadata"] for row in stored]) == repr([sent])

    @clause(
        "FM-MSG-009",
        promise="A retry is recognised by exactly equal text and metadata, in adds, in batches and within one batch: "
        "anything that only looks equal raises `ConflictError`.",
        impact="A corrected message is taken for a retry, and the correction is dropped.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS,
    )
    async def test_a_retry_is_exactly_equal(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        changes: list[tuple[Any, Any]] = [
            *(({"content": one}, {"content": other}) for one, other in CHANGED_TEXTS),
            *(({"role": one}, {"role": other}) for one, other in CHANGED_TEXTS),
            *(({"metadata": one}, {"metadata": other}) for one, other in CHANGED_METADATA),
        ]
        first: list[Any] = []
        second: list[Any] = []
        for number, pair in enumerate(changes):
            for drafts, change in zip((first, second), pair, strict=True):
                drafts.append({"role": "user", "content": "text", "message_id": str(number), **change})
        together: list[list[Any]] = [
            [{**draft, "message_id": "m"} for draft in pair] for pair in zip(first, second, strict=True)
        ]
        ids = await memory.add_messages(session, first)
        before = await memory.get_sessions(), await memory.get_history(session)
        outcomes = await gather_outcomes(
            *(memory.add_message(session, **draft) for draft in second),
            *(memory.add_messages(session, [draft]) for draft in second),
            *(memory.add_messages(session, pair) for pair in together),
        )
        for (one, other), outcome in zip(changes * 3, outcomes, strict=True):
            assert isinstance(outcome, ConflictError), f"{one} was added, then {other}: {outcome!r}"
        assert await memory.add_messages(session, first) == ids
        assert (await memory.get_sessions(), await memory.get_history(session)) == before

    @clause(
        "FM-MSG-010",
        promise="Equal metadata in another form is a retry, in adds and batches: `None` and `{}`, another order of "
        "keys, 1 and 1.0; so is a message under the id that the memory made for it.",
        impact="A client that repeats its request raises a conflict with itself.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_retry_in_another_form(self, store: StoreUnderTest) -> None:
        memory = store.open()
        first: list[Any] = [{"role": "user", "content": "text", "metadata": one} for one, _ in EQUAL_METADATA]
        second: list[Any] = [{"role": "user", "content": "text", "metadata": other} for _, other in EQUAL_METADATA]
        named = [{**draft, "message_id": f"m{number}"} for number, draft in enumerate(first)]
        for batched in (True, False):
            session = await memory.create_session()
            drafts = [*named, *first]
            if batched:
                ids = await memory.add_messages(session, drafts)
            else:
                ids = await together(memory.add_message(session, **draft) for draft in drafts)
            before = await memory.get_history(session)
            again: list[Any] = [
                {**draft, "message_id": made} for draft, made in zip([*second, *second], ids, strict=True)
            ]
            assert await together(memory.add_message(session, **draft) for draft in again) == ids
            assert await memory.add_messages(session, again) == ids
            assert await memory.add_messages(session, again[::-1]) == ids[::-1]
            with pytest.raises(ConflictError):
                await memory.add_message(session, "user", "another", message_id=ids[-1])
            assert same(await memory.get_history(session), before)

    @staticmethod
    async def _can_be_copied(store: StoreUnderTest, memory: Memory) -> None:
        """Store equal messages with equal ids in several sessions, and delete some of the sessions."""
        messages: list[Any] = [{"role": "user", "content": str(n), "message_id": f"m{n}"} for n in range(3)]
        sessions = [await memory.create_session() for _ in range(4)]
        for number, session in enumerate(sessions):
            if number % 2 and Capability.BATCH in store.capabilities:
                assert await memory.add_messages(session, messages) == ["m0", "m1", "m2"]
            else:
                for message in messages:
                    assert await memory.add_message(session, **message) == message["message_id"]
        for session in sessions:
            assert contents(await memory.get_history(session)) == ["0", "1", "2"], "a copy is not complete"
        for session in sessions[:2]:
            await memory.delete_session(session)
        for session in sessions[2:]:
            assert contents(await memory.get_history(session)) == ["0", "1", "2"], "a copy is not independent"

    @staticmethod
    async def _stored_once(handles: list[Memory], session: str, ids: list[str]) -> None:
        for handle in handles:
            found = await handle.get_session(session)
            assert found is not None
            assert found["message_count"] == len(ids)
            assert [row["id"] for row in await handle.get_history(session)] == ids
