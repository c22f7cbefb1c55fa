"""Clauses on metadata in batches, beside the fields of the records, and of sessions beside that of messages."""

from __future__ import annotations

from typing import Any

from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import FLOATS, INTEGERS, LARGE_METADATA, METADATA, random_doubles, same
from flux_memory.testkit.contract.lookalikes import NOTATIONS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest

NUMBERS: dict[str, dict[str, Any]] = {
    "floats": {"f": list(FLOATS)},
    "integers": {"i": list(INTEGERS)},
    "random floats": {"f": random_doubles(50)},
}
"""Numbers that codecs change, as metadata."""


class SeparateMetadataContract(Binding):
    """The promises on metadata that other data must not affect."""

    @clause(
        "FM-MET-018",
        promise="Metadata that is stored by a batch is returned equal by type and value, at every depth.",
        impact="The same message has different metadata, depending on the call that stored it.",
        needs=Capability.BATCH | Capability.MESSAGE_METADATA,
    )
    async def test_metadata_of_batches_round_trips(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        cases = {**METADATA, **NOTATIONS, **NUMBERS, **LARGE_METADATA}
        await memory.add_messages(
            session, [{"role": "user", "content": name, "metadata": metadata} for name, metadata in cases.items()]
        )
        history = await memory.get_history(session)
        for (name, metadata), message in zip(cases.items(), history, strict=True):
            assert message["content"] == name
            assert same(message["metadata"], metadata), f"metadata changed: {name}"

    @clause(
        "FM-MET-019",
        promise="Metadata in a codec's own notation, with operators, or with the names of a record's fields, is plain "
        "data: it is returned as given, and the record keeps its values.",
        impact="A document's metadata replaces a message's text or a session's owner, or disappears.",
        needs=Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.TITLES
        | Capability.USER_SCOPE,
    )
    async def test_metadata_is_not_interpreted(self, store: StoreUnderTest) -> None:
        memory = store.open()
        fields = dict.fromkeys(("id", "role", "content", "title", "user_id", "metadata"), "of the metadata")

        async def come_back(name: str, metadata: dict[str, Any]) -> None:
            session = await memory.create_session("t", metadata, user_id=name)
            message_id = await memory.add_message(session, "user", "text", metadata)
            found = await memory.get_session(session)
            (listed,) = await memory.get_sessions(user_id=name)
            (message,) = await memory.get_history(session)
            assert found is not None
            assert found == listed
            assert (listed["id"], listed["title"], listed["user_id"]) == (session, "t", name)
            assert (message["role"], message["content"]) == ("user", "text")
            assert message["id"] == message_id or Capability.MESSAGE_IDS not in store.capabilities
            for row in (found, listed, message):
                assert same(row["metadata"], metadata), f"metadata changed: {name}"

        await together(come_back(*case) for case in {**NOTATIONS, "all fields": fields}.items())

    @clause(
        "FM-MET-020",
        promise="The metadata of a session and of each of its messages are separate: adds leave the session's as it "
        "is, and a filter looks at the session's only.",
        impact="A citation of one answer becomes a setting of the whole conversation.",
        needs=Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_metadata_of_messages_stays_with_them(self, store: StoreUnderTest) -> None:
        memory = store.open()
        given: list[dict[str, Any]] = [{"k": 1, "of": "first"}, {}, {"k": 2.5, "l": [1]}]
        plain, session = await memory.create_session(), await memory.create_session(metadata={"k": 9, "s": [True]})
        for metadata in given:
            await memory.add_message(plain, "user", "text", metadata)
            await memory.add_message(session, "user", "text", metadata)
        for owner, own in ((plain, {}), (session, {"k": 9, "s": [True]})):
            found = await memory.get_session(owner)
            assert found is not None
            assert same(found["metadata"], own)
            assert same([row["metadata"] for row in await memory.get_history(owner)], given)
        for wanted, expected in (({"k": 1}, []), ({"of": "first"}, []), ({"l": []}, []), ({"k": 9}, [session])):
            assert [row["id"] for row in await memory.get_sessions(metadata=wanted)] == expected
