"""Clauses on `get_message`: one message of one session, the same record as in its history."""

from __future__ import annotations

import pytest

from flux_memory import InvalidInputError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import METADATA, NAMES, NOT_TEXTS, TEXTS, same
from flux_memory.testkit.contract.limits import NOWHERE
from flux_memory.testkit.contract.lookalikes import TWIN_IDS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle


class LookUpsContract(Binding):
    """The promises of `get_message`."""

    @clause(
        "FM-GET-001",
        promise="`get_message` returns the record that the history shows, for any text and metadata.",
        impact="A link to a message shows another text, other metadata or another time than the conversation does.",
        needs=Capability.MESSAGE_LOOKUP | Capability.BATCH | Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA,
    )
    async def test_a_look_up_is_the_record(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        texts, metadata = list(TEXTS.values()), list(METADATA.values())
        await memory.add_messages(
            session,
            [
                {"role": text or "user", "content": text, "metadata": metadata[at % len(metadata)]}
                for at, text in enumerate(texts)
            ],
        )
        history = await memory.get_history(session)
        assert len(history) == len(texts)
        for row, found in zip(
            history, await together(memory.get_message(session, row["id"]) for row in history), strict=True
        ):
            assert same(found, row), f"{found!r:.200} instead of {row!r:.200}"

    @clause(
        "FM-GET-002",
        promise="`get_message` finds only messages of its session, and only by their exact id.",
        impact="A user reads another user's message, by guessing its id.",
        needs=Capability.MESSAGE_LOOKUP | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_look_ups_stay_in_the_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        mine, other = await memory.create_session(), await memory.create_session()
        ids = list(dict.fromkeys(one for one in (*NAMES.values(), *TWIN_IDS) if 1 <= len(one) <= store.max_id_length))
        await together(memory.add_message(mine, "user", f"mine {one}", message_id=one) for one in ids[::2])
        await together(memory.add_message(other, "user", f"other {one}", message_id=one) for one in ids[1::2])

        async def check(at: int, one: str) -> None:
            here, there = (mine, other) if at % 2 == 0 else (other, mine)
            found = await memory.get_message(here, one)
            assert found is not None, f"{one!r} was not found"
            assert (found["id"], found["content"]) == (one, f"{'other' if at % 2 else 'mine'} {one}")
            assert await memory.get_message(there, one) is None, f"{one!r} was found in another session"

        await together(check(at, one) for at, one in enumerate(ids))
        await memory.add_message(other, "user", "the same id", message_id=ids[0])
        found = await memory.get_message(mine, ids[0])
        assert found is not None
        assert found["content"] == f"mine {ids[0]}"

    @clause(
        "FM-GET-003",
        promise="`get_message` returns `None` for a session or a message that does not exist or is not valid; an id "
        "that is not a `str` is a type error that names the argument.",
        impact="A link to a removed message shows an internal error.",
        needs=Capability.MESSAGE_LOOKUP | Capability.MESSAGE_IDS,
    )
    async def test_look_ups_of_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        known = await memory.add_message(session, "user", "text")
        for key in (*NOWHERE, session, "x" * (store.max_id_length + 1)):
            assert await memory.get_message(session, key) is None, f"message {key!r:.50} was found"
            assert key == session or await memory.get_message(key, known) is None, f"found in session {key!r:.50}"
        for wrong in (None, *NOT_TEXTS):
            for name, keys in {"session_id": (wrong, known), "message_id": (session, wrong)}.items():
                with pytest.raises(InvalidInputError, match=name) as caught:
                    await memory.get_message(*keys)
                assert isinstance(caught.value, TypeError), f"{name}={wrong!r} raised {caught.value!r}"

    @clause(
        "FM-GET-004",
        promise="`get_message` sees each change that was acknowledged before it, through any handle.",
        impact="A page shows a message that was removed, or misses one that was just written.",
        needs=Capability.MESSAGE_LOOKUP | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS,
    )
    async def test_look_ups_are_current(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await memory.create_session()
        for number in range(3):
            content = f"text {number}"
            assert await memory.get_message(session, "m") is None
            await other.add_message(session, "user", content, message_id="m")
            found = await memory.get_message(session, "m")
            assert found is not None
            assert found["content"] == content
            if Capability.POP in store.capabilities:
                await other.pop_message(session)
            else:
                await other.delete_session(session)
                session = await other.create_session()
        assert await memory.get_message(session, "m") is None
