"""Clauses on `create` and `user_id` of adds: a session that is made with its first message, or not at all."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import numbered
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import LOOKALIKES, METADATA, NOT_TEXTS, same
from flux_memory.testkit.contract.lookalikes import TWIN_IDS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import MANY, StoreUnderTest, another_handle, contents, gather_outcomes
from flux_memory.testkit.contract.updates import state_of

CREATES: Final = Capability.CREATE_ON_ADD | Capability.SESSIONS | Capability.SESSION_IDS
BATCHES: Final = CREATES | Capability.BATCH
OWNED: Final = BATCHES | Capability.USER_SCOPE


class CreatedByAddsContract(Binding):
    """The promises of adds that create their session, and of adds that name its owner."""

    @clause(
        "FM-CRE-001",
        promise="With `create`, an add to a session that does not exist creates it with the message: with the given id "
        "and owner, an empty title, empty metadata and correct counts.",
        impact="A new conversation belongs to no user, or its first message is lost.",
        needs=OWNED,
    )
    async def test_an_add_creates_its_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        made = await memory.add_message("one", "user", "first", create=True, user_id="ann")
        ids = await memory.add_messages("batch", numbered(0, 1, 2), create=True, user_id="bob")
        await memory.add_message("unowned", "user", "first", create=True)
        expected: dict[str, tuple[str, list[str]]] = {
            "one": ("ann", ["first"]),
            "batch": ("bob", ["0", "1", "2"]),
            "unowned": ("", ["first"]),
        }
        for session, (owner, said) in expected.items():
            record, history = await state_of(other, session)
            assert (record["id"], record["user_id"], record["title"], record["metadata"]) == (session, owner, "", {})
            assert record["message_count"] == len(history)
            assert contents(history) == said
            if Capability.TIMESTAMPS in store.capabilities:
                assert record["created_at"] <= history[0]["created_at"] == history[-1]["created_at"]
                assert record["updated_at"] == history[-1]["created_at"]
            assert await other.get_sessions(user_id=owner) == [record]
        if Capability.MESSAGE_IDS in store.capabilities:
            histories = [await other.get_history(session) for session in ("one", "batch")]
            assert [row["id"] for history in histories for row in history] == [made, *ids]
        assert await other.count_sessions() == len(expected)
        with pytest.raises(ConflictError):
            await memory.create_session(session_id="one")
        if Capability.MESSAGE_METADATA in store.capabilities:
            metadata = METADATA["one of each"]
            await memory.add_message("single", "tool", "x", metadata, create=True)
            await memory.add_messages("several", [{"role": "tool", "content": "x", "metadata": metadata}], create=True)
            for session in ("single", "several"):
                (row,) = await other.get_history(session)
                assert same(row["metadata"], metadata), f"{session}: {row['metadata']}"

    @clause(
        "FM-CRE-002",
        promise="With `create`, an add to a session that exists appends to it and changes nothing else.",
        impact="The second message of a conversation erases its title, its settings or its first message.",
        needs=OWNED | Capability.TITLES | Capability.SESSION_METADATA,
    )
    async def test_create_leaves_a_session_as_it_is(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        await memory.create_session("title", {"k": 1.0}, session_id="s", user_id="ann")
        before, _ = await state_of(memory, "s")
        await memory.add_message("s", "user", "1", create=True)
        await other.add_message("s", "user", "2", create=True, user_id="ann")
        await memory.add_messages("s", numbered(3, 4), create=True, user_id="ann")
        await other.add_message("s", "user", "5", user_id="ann")
        await memory.add_messages("s", numbered(6), user_id="ann")
        after, history = await state_of(memory, "s")
        new = {"message_count": 6, "updated_at": after["updated_at"], "revision": after["revision"]}
        assert after == {**before, **new}
        assert contents(history) == list("123456")
        assert await memory.count_sessions() == 1

    @clause(
        "FM-CRE-003",
        promise="An add whose `user_id` is not the owner of the session raises `ConflictError` and stores nothing, "
        "with or without `create`; owners are compared exactly.",
        impact="A user writes into another user's conversation by guessing its id.",
        needs=OWNED,
    )
    async def test_another_owner_is_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        await memory.create_session(session_id="plain")
        await memory.create_session(session_id="created", user_id="ann")
        await memory.add_message("added", "user", "text", create=True, user_id="ann")
        sessions = ("plain", "created", "added")
        before = [await state_of(memory, session) for session in sessions]

        async def refuse(session: str, owner: str) -> None:
            for create in (True, False):
                with pytest.raises(ConflictError):
                    await other.add_message(session, "user", "x", create=create, user_id=owner)
                with pytest.raises(ConflictError):
                    await other.add_messages(session, numbered(1, 2), create=create, user_id=owner)

        owners = ("bob", "Ann", "ann ", " ann", "an", "annn", "%", "a_n", "\uff41nn", "None", "*")
        await together(refuse(session, owner) for session in sessions for owner in owners)
        await refuse("plain", "ann")
        assert [await state_of(memory, session) for session in sessions] == before
        for first, second in (("caf\u00e9", "cafe\u0301"), ("1", "01"), ("a", "A")):
            await memory.add_message(first, "user", "text", create=True, user_id=first)
            await refuse(first, second)
            await memory.add_message(first, "user", "text", create=True, user_id=first)

    @clause(
        "FM-CRE-004",
        promise="An add that fails creates no session: an invalid message, or a batch with a conflict.",
        impact="Empty conversations fill the list of a user.",
        needs=BATCHES | Capability.IDEMPOTENT_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_failed_add_creates_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        wrong: list[Any] = [
            *(
                {"role": "", "content": "c"},
                {"role": "r", "content": "\x00"},
                {"role": "r", "content": 7},
                {"role": "r"},
            ),
            *({"role": "r", "content": "c", "metadata": {"k": float("nan")}}, {"role": "r", "content": "c", "id": "m"}),
            {"role": "r", "content": "c", "message_id": ""},
        ]
        twice: list[Any] = [{"role": "r", "content": text, "message_id": "m"} for text in ("one", "other")]
        for message in wrong:
            with pytest.raises(InvalidInputError):
                await memory.add_messages("s", [*numbered(0), message], create=True)
        for batch in (twice, [*numbered(0), *twice, *numbered(1)]):
            with pytest.raises(ConflictError):
                await memory.add_messages("s", batch, create=True)
        for role, content in (("", "c"), ("r", "\ud800")):
            with pytest.raises(InvalidInputError):
                await memory.add_message("s", role, content, create=True)
        assert await memory.get_session("s") is None
        assert await memory.count_sessions() == 0
        for create in (False, True):
            with pytest.raises(InvalidInputError):
                await memory.add_messages("s", wrong, create=create)
        with pytest.raises(SessionNotFoundError):
            await memory.add_message("s", "user", "text")
        await memory.add_messages("s", [*numbered(0), twice[0]], create=True)
        assert contents(await memory.get_history("s")) == ["0", "one"]

    @clause(
        "FM-CRE-006",
        promise="An empty batch with `create` returns `[]` and creates nothing.",
        impact="A turn without messages leaves an empty conversation in the list.",
        needs=OWNED,
    )
    async def test_an_empty_batch_creates_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        empties: list[Any] = [[], (), iter(())]
        for empty in empties:
            assert await memory.add_messages("s", empty, create=True, user_id="ann") == []
        assert await memory.get_session("s") is None
        assert await memory.get_sessions() == []
        with pytest.raises(SessionNotFoundError):
            await memory.add_messages("s", [], user_id="ann")
        await memory.create_session(session_id="s", user_id="ann")
        before = await state_of(memory, "s")
        for owner in ("", "ann"):
            assert await memory.add_messages("s", [], create=True, user_id=owner) == []
        for create in (False, True):
            with pytest.raises(ConflictError):
                await memory.add_messages("s", [], create=create, user_id="bob")
        assert await state_of(memory, "s") == before

    @clause(
        "FM-CRE-007",
        promise="With `create`, an id that no session can have raises `InvalidInputError` that names it; so do an "
        "invalid owner and a `create` that is not a `bool`. Without `create`, the session is not found, as always.",
        impact="A message is stored under an id that no call finds again.",
        needs=OWNED,
    )
    async def test_invalid_creations_are_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await memory.create_session(session_id="s")
        before = await state_of(memory, "s")

        async def refuse(kind: type[Exception], name: str, session: Any, given: Any) -> None:
            calls = (
                memory.add_message(session, "user", "x", **given),
                *(memory.add_messages(session, batch, **given) for batch in (numbered(1), [])),
            )
            for call in calls:
                (answer,) = await gather_outcomes(call)
                assert isinstance(answer, InvalidInputError), f"{session!r:.40}, {given!r:.60} raised {answer!r}"
                assert isinstance(answer, kind), f"{session!r:.40}, {given!r:.60} raised {answer!r}"
                assert name in str(answer), f"{session!r:.40}, {given!r:.60} raised {answer!r}"

        unstorable = ("", "\x00", "a\x00", "\ud800", "x" * (store.max_id_length + 1))
        await together(refuse(ValueError, "session_id", key, {"create": True}) for key in unstorable)
        await together(refuse(TypeError, "session_id", key, {"create": True}) for key in (*NOT_TEXTS, None))
        for key in ("s", "nowhere"):
            for owner in ("\x00", "ann\x00", "\ud800", "x" * 256):
                for create in (True, False):
                    await refuse(ValueError, "user_id", key, {"create": create, "user_id": owner})
            await together(refuse(TypeError, "user_id", key, {"create": True, "user_id": one}) for one in NOT_TEXTS)
            wrong: list[Any] = [0, 1, "yes", "", None, [], object()]
            await together(refuse(TypeError, "create", key, {"create": one}) for one in wrong)
        for key in (*unstorable, "nowhere"):
            for given in ({}, {"user_id": "ann"}, {"create": False}):
                options: Any = given
                with pytest.raises(SessionNotFoundError):
                    await memory.add_message(key, "user", "x", **options)
                with pytest.raises(SessionNotFoundError):
                    await memory.add_messages(key, numbered(1), **options)
        assert await memory.count_sessions() == 1
        assert await state_of(memory, "s") == before

    @clause(
        "FM-CRE-009",
        promise="An add with `create` can be retried with its `message_id`: it is stored once. If the session was "
        "deleted meanwhile, it is created anew.",
        impact="A retry after a timeout doubles the first message, or is refused because its session exists.",
        needs=OWNED | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_a_creation_can_be_retried(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        batch: list[Any] = [{"role": "user", "content": str(at), "message_id": f"m{at}"} for at in range(3)]
        for owner in ("ann", "bob"):
            first = None
            for handle in (memory, memory, other):
                given: Any = {"create": True, "user_id": owner}
                assert await handle.add_message("s", "user", "0", message_id="m0", **given) == "m0"
                assert await handle.add_messages("s", batch, **given) == ["m0", "m1", "m2"]
                first = first or await state_of(other, "s")
                assert await state_of(other, "s") == first
            record, history = await state_of(other, "s")
            assert (record["user_id"], record["message_count"]) == (owner, 3)
            assert contents(history) == ["0", "1", "2"]
            with pytest.raises(ConflictError):
                await memory.add_message("s", "user", "another", message_id="m0", create=True)
            assert await state_of(memory, "s") == (record, history)
            await other.delete_session("s")

    @clause(
        "FM-CRE-010",
        promise="An add with `create` makes a session under any valid id, and a long batch is created with it.",
        impact="Ids of another system are cut, changed or taken for one another.",
        needs=BATCHES,
    )
    async def test_sessions_are_created_under_any_id(self, store: StoreUnderTest) -> None:
        memory = store.open()
        longest = "\u20ac" * store.max_id_length
        names = [*dict.fromkeys((*LOOKALIKES, *TWIN_IDS, longest, longest[:-1])), "; DROP TABLE sessions"]
        names = [name for name in names if len(name) <= store.max_id_length]
        await together(memory.add_message(name, "user", name, create=True) for name in names)
        histories = await together(map(memory.get_history, names))
        assert [contents(history) for history in histories] == [[name] for name in names]
        assert {row["id"] for row in await memory.get_sessions(None)} == set(names)
        await memory.add_messages("many", numbered(*range(MANY)), create=True)
        record, history = await state_of(memory, "many")
        assert record["message_count"] == MANY
        assert contents(history) == [str(number) for number in range(MANY)]
