"""Clauses on batches: all or nothing, in order, with errors that name the message."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import Any, Final

import pytest

from flux_memory import ConflictError, InvalidInputError, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import same
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import MANY, StoreUnderTest, add_numbered, contents

NOT_BATCHES: Final[tuple[Any, ...]] = (
    None,
    "text",
    b"bytes",
    bytearray(b"x"),
    {"role": "r", "content": "c"},
    {},
    7,
    True,
    object(),
)
NOT_MESSAGES: Final[tuple[Any, ...]] = (None, "text", b"x", 7, ["role", "content"], [("role", "r")], object())


def numbered(*numbers: int) -> list[Any]:
    """Return a message for each number."""
    return [{"role": "user", "content": str(number)} for number in numbers]


class BatchesContract(Binding):
    """The promises of `add_messages`."""

    @clause(
        "FM-BAT-001",
        promise="A batch is stored in the given order, and the ids are returned in that order.",
        impact="A question and its answer, stored together, swap places.",
        needs=Capability.BATCH,
    )
    async def test_a_batch_keeps_its_order(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, [0])
        ids = await memory.add_messages(session, numbered(*range(1, 40)))
        await add_numbered(memory, session, [40])
        history = await memory.get_history(session)
        assert contents(history) == [str(number) for number in range(41)]
        assert type(ids) is list
        assert [row["id"] for row in history[1:-1]] == ids

    @clause(
        "FM-BAT-002",
        promise="A message in a batch may have metadata and a `message_id`; `None` means the same as leaving them out.",
        impact="Messages that are added in a batch lose their metadata or their ids.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.MESSAGE_IDS,
    )
    async def test_a_batch_has_metadata_and_ids(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        batch: list[Any] = [
            MappingProxyType({"role": "a", "content": "x", "metadata": {"k": 1.0}, "message_id": "m"}),
            {"role": "b", "content": "y", "metadata": None, "message_id": None},
        ]
        ids = await memory.add_messages(session, batch)
        rows = await memory.get_history(session)
        assert [(row["role"], row["content"], row["metadata"]) for row in rows] == [
            ("a", "x", {"k": 1.0}),
            ("b", "y", {}),
        ]
        assert [row["id"] for row in rows] == ids
        assert ids[0] == "m"

    @clause(
        "FM-BAT-003",
        promise="A batch with one invalid message is rejected as a whole; the error names the message and the key.",
        impact="Half a batch is stored, and a retry stores that half twice.",
        needs=Capability.BATCH | Capability.MESSAGE_METADATA | Capability.SESSIONS,
    )
    async def test_a_bad_message_refuses_the_batch(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        before = await memory.get_sessions()
        bad: list[tuple[Any, str]] = [
            ({"role": "", "content": "c"}, r"messages\[2\]\.role"),
            ({"role": "r", "content": "\x00"}, r"messages\[2\]\.content"),
            ({"role": "r", "content": 7}, r"messages\[2\]\.content"),
            ({"role": "r", "content": "c", "metadata": {"k": float("nan")}}, r"messages\[2\]\.metadata"),
            ({"role": "r", "content": "c", "message_id": ""}, r"messages\[2\]\.message_id"),
            ({"role": "r"}, r"messages\[2\].*content"),
            ({"content": "c"}, r"messages\[2\].*role"),
            ({"role": "r", "content": "c", "id": "m"}, r"messages\[2\].*id"),
            ({"role": "r", "content": "c", "metdata": {}}, r"messages\[2\].*metdata"),
        ]

        async def refuse(message: Any, place: str) -> None:
            with pytest.raises(InvalidInputError, match=place):
                await memory.add_messages(session, [*numbered(0, 1), message, *numbered(3)])

        await together(refuse(*case) for case in bad)
        assert await memory.get_history(session) == []
        assert await memory.get_sessions() == before

    @clause(
        "FM-BAT-004",
        promise="A batch with one conflict is rejected as a whole, wherever the conflict is in the batch.",
        impact="Half a batch is stored, and the caller cannot find out which half.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.SESSIONS,
    )
    async def test_a_conflict_refuses_the_batch(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "stored", message_id="m")
        before = await memory.get_sessions(), await memory.get_history(session)
        conflict: Any = {"role": "user", "content": "another", "message_id": "m"}
        for at in range(4):
            batch = numbered(1, 2, 3)
            batch.insert(at, conflict)
            with pytest.raises(ConflictError):
                await memory.add_messages(session, batch)
        assert (await memory.get_sessions(), await memory.get_history(session)) == before
        with pytest.raises(ConflictError):
            await memory.add_messages(session, [*numbered(*range(MANY)), conflict])
        assert (await memory.get_sessions(), await memory.get_history(session)) == before
        await memory.add_messages(session, numbered(1, 2))
        assert contents(await memory.get_history(session)) == ["stored", "1", "2"]

    @clause(
        "FM-BAT-005",
        promise="A batch for a session that does not exist raises `SessionNotFoundError`, even if the batch is empty.",
        impact="A batch is lost without an error.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.SESSION_IDS,
    )
    async def test_a_batch_for_nowhere(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for batch in ([], numbered(1, 2)):
            with pytest.raises(SessionNotFoundError):
                await memory.add_messages("nowhere", batch)
        await memory.create_session(session_id="nowhere")
        assert await memory.get_history("nowhere") == []

    @clause(
        "FM-BAT-006",
        promise="An empty batch returns `[]` and changes nothing.",
        impact="A call that adds nothing moves a conversation to the top of the list.",
        needs=Capability.BATCH | Capability.SESSIONS,
    )
    async def test_an_empty_batch_changes_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await add_numbered(memory, session, range(2))
        before = await memory.get_sessions(), await memory.get_history(session)
        empties: list[Any] = [[], (), iter(())]
        for empty in empties:
            assert await memory.add_messages(session, empty) == []
        assert (await memory.get_sessions(), await memory.get_history(session)) == before

    @clause(
        "FM-BAT-007",
        promise="A batch is any iterable of mappings; text, bytes, a single mapping and other types are type errors.",
        impact="A single message passed instead of a list is iterated key by key.",
        needs=Capability.BATCH | Capability.IDEMPOTENT_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_batch_is_an_iterable_of_mappings(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()

        async def refuse(batch: Any, place: str) -> None:
            with pytest.raises(InvalidInputError, match=place) as caught:
                await memory.add_messages(session, batch)
            assert isinstance(caught.value, TypeError), f"{batch!r} raised {caught.value!r}"

        await together(refuse(batch, "messages") for batch in NOT_BATCHES)
        await together(refuse([*numbered(0), message], r"messages\[1\]") for message in NOT_MESSAGES)
        assert await memory.get_history(session) == []
        await memory.add_messages(session, tuple(numbered(0)))
        await memory.add_messages(session, (message for message in numbered(1, 2)))
        assert contents(await memory.get_history(session)) == ["0", "1", "2"]

    @clause(
        "FM-BAT-008",
        promise="A retried batch is stored once: messages that are already stored are skipped, missing ones are added.",
        impact="A retried batch duplicates its messages, or fails forever.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SEVERAL_HANDLES,
    )
    async def test_a_retried_batch_is_stored_once(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        batch: list[Any] = [{**message, "message_id": f"m{message['content']}"} for message in numbered(0, 1, 2)]
        for handle in (memory, memory, other):
            assert await handle.add_messages(session, batch) == ["m0", "m1", "m2"]
        longer: list[Any] = [*batch, {"role": "user", "content": "3", "message_id": "m3"}]
        assert await memory.add_messages(session, longer) == ["m0", "m1", "m2", "m3"]
        assert contents(await memory.get_history(session)) == ["0", "1", "2", "3"]
        new: list[Any] = [{"role": "user", "content": name, "message_id": name} for name in ("m4", "m5")]
        mixed = [longer[3], new[0], longer[0], new[1], longer[2]]
        assert await memory.add_messages(session, mixed) == ["m3", "m4", "m0", "m5", "m2"]
        assert contents(await memory.get_history(session)) == ["0", "1", "2", "3", "m4", "m5"]
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == 6

    @clause(
        "FM-BAT-009",
        promise="If an id occurs twice in a batch, it is stored once if the contents agree; otherwise `ConflictError` "
        "is raised and nothing is stored.",
        impact="One of two messages in a batch is dropped without an error.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SESSIONS,
    )
    async def test_one_id_twice_in_a_batch(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        one: Any = {"role": "user", "content": "one", "message_id": "m"}
        other = {**one, "content": "other"}
        for batch in ([one, other], [*numbered(0), one, *numbered(1), other]):
            with pytest.raises(ConflictError):
                await memory.add_messages(session, batch)
        assert await memory.get_history(session) == []
        ids = await memory.add_messages(session, [one, *numbered(1), one])
        assert (ids[0], ids[2]) == ("m", "m")
        history = await memory.get_history(session)
        assert contents(history) == ["one", "1"]
        assert [row["id"] for row in history] == ids[:2]
        found = await memory.get_session(session)
        assert found is not None
        assert found["message_count"] == 2

    @clause(
        "FM-BAT-010",
        promise="Batches from concurrent writers are not interleaved, and no reader sees half a batch.",
        impact="An answer lands between another question and its answer.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.SEVERAL_HANDLES,
    )
    async def test_batches_stay_together(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        done = asyncio.Event()
        seen: list[int] = []

        async def read() -> None:
            while not done.is_set():
                # Let the writers run even if the backend never suspends.
                await asyncio.sleep(0)
                seen.append(len(await other.get_history(session)))
                found = await other.get_session(session)
                assert found is not None
                seen.append(found["message_count"])

        reading = asyncio.ensure_future(read())
        writers = [(memory, other)[writer % 2].add_messages(session, numbered(*[writer] * 5)) for writer in range(8)]
        await asyncio.gather(*writers)
        done.set()
        await reading
        said = contents(await memory.get_history(session))
        assert all(len(set(said[at : at + 5])) == 1 for at in range(0, 40, 5)), said
        assert all(count % 5 == 0 for count in seen), f"a reader saw {[count for count in seen if count % 5]}"

    @clause(
        "FM-BAT-012",
        promise="A rejected batch leaves nothing behind: its messages are stored when they are sent again without the "
        "mistake, under the same ids.",
        impact="A corrected batch is taken for a retry, and its messages are never stored.",
        needs=Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.SESSION_IDS,
    )
    async def test_a_corrected_batch_is_stored(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "stored", message_id="m")
        mistakes: list[tuple[type[Exception], Any]] = [
            (ConflictError, {"role": "user", "content": "another", "message_id": "m"}),
            (InvalidInputError, {"role": "", "content": "no role"}),
        ]
        said = ["stored"]
        for number, (error, mistake) in enumerate(mistakes):
            batch: list[Any] = [
                {"role": "user", "content": f"{number} {at}", "message_id": f"{number} {at}"} for at in range(3)
            ]
            with pytest.raises(error):
                await memory.add_messages(session, [*batch[:2], mistake, *batch[2:]])
            assert await memory.add_messages(session, batch) == [message["message_id"] for message in batch]
            said += [message["content"] for message in batch]
            assert contents(await memory.get_history(session)) == said
        with pytest.raises(SessionNotFoundError):
            await memory.add_messages("later", batch)
        await memory.create_session(session_id="later")
        await memory.add_messages("later", batch)
        assert contents(await memory.get_history("later")) == said[-3:]

    @clause(
        "FM-BAT-011",
        promise="Each message of a batch, also of a batch of one, has its own role, metadata and id, and takes nothing "
        "from the others.",
        impact="Messages take over the metadata or the role of others in their batch, or lose their own.",
        needs=Capability.BATCH | Capability.MESSAGE_METADATA | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_messages_of_a_batch_are_independent(self, store: StoreUnderTest) -> None:
        memory = store.open()
        options: list[dict[str, Any]] = [
            *(
                {},
                {"metadata": {"k": 1}},
                {"metadata": None},
                {"message_id": "m"},
                {"metadata": {}},
                {"message_id": None},
            ),
            *({"message_id": "n", "metadata": {"l": [1.5]}}, {"metadata": {"k": 2}}, {}),
        ]
        roles = ("user", "assistant", "system", "tool")
        batch: list[Any] = [
            {"role": roles[at % len(roles)], "content": str(at), **option} for at, option in enumerate(options)
        ]

        async def add(messages: list[Any]) -> None:
            session = await memory.create_session()
            ids = await memory.add_messages(session, messages)
            rows = await memory.get_history(session)
            assert [row["id"] for row in rows] == ids
            for row, made, message in zip(rows, ids, messages, strict=True):
                assert made == (message.get("message_id") or made)
                assert (row["role"], row["content"]) == (message["role"], message["content"])
                assert same(row["metadata"], message.get("metadata") or {}), message

        await together(map(add, (batch, batch[::-1], *([message] for message in batch))))
