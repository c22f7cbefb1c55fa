"""Clauses on metadata: JSON that is returned equal by type and value, and never shared with a caller."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flux_memory import MAX_METADATA_DEPTH, InvalidInputError, Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import (
    FLOATS,
    INTEGERS,
    LARGE_METADATA,
    METADATA,
    NOT_JSON,
    NOT_OBJECTS,
    NUL_TEXTS,
    SURROGATE_TEXTS,
    UNUSUAL_MAPPINGS,
    buried,
    nested,
    random_doubles,
    same,
)
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest


class MetadataContract(Binding):
    """The promises on metadata of sessions and messages."""

    @clause(
        "FM-MET-001",
        promise="A message's metadata is returned equal by type and value, at every depth.",
        impact="Citations, token counts and flags change their type or value.",
        needs=Capability.MESSAGE_METADATA,
    )
    async def test_message_metadata_round_trips(self, store: StoreUnderTest) -> None:
        await _round_trips(store.open(), METADATA)

    @clause(
        "FM-MET-002",
        promise="A session's metadata is returned equal by type and value, by `get_session` and `get_sessions`.",
        impact="A session's settings change their type or value.",
        needs=Capability.SESSIONS | Capability.SESSION_METADATA,
    )
    async def test_session_metadata_round_trips(self, store: StoreUnderTest) -> None:
        numbers: dict[str, dict[str, Any]] = {"floats": {"f": list(FLOATS)}, "integers": {"i": list(INTEGERS)}}
        await _sessions_round_trip(store.open(), {**METADATA, **numbers})

    @clause(
        "FM-MET-003",
        promise="A float stays a float and keeps its value, including floats of 1e16 and above.",
        impact="Scores and costs become integers, as in `jsonb`.",
        needs=Capability.MESSAGE_METADATA,
    )
    async def test_floats_stay_floats(self, store: StoreUnderTest) -> None:
        cases = {"chosen": {"f": list(FLOATS)}, "random": {"f": random_doubles(600)}}
        await _round_trips(store.open(), cases)

    @clause(
        "FM-MET-004",
        promise="An integer stays an integer, exact to 4,300 digits; a longer one is rejected.",
        impact="The last digits of large ids change.",
        needs=Capability.BATCH | Capability.MESSAGE_METADATA | Capability.SESSIONS,
    )
    async def test_integers_are_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _round_trips(memory, {"integers": {"i": list(INTEGERS)}})
        await _refused(memory, {"a": 10**4300}, {"a": -(10**4300)})

    @clause(
        "FM-MET-005",
        promise="-0.0 is returned as 0.0.",
        impact="The same conversation compares unequal on two engines.",
        needs=Capability.MESSAGE_METADATA | Capability.SESSIONS | Capability.SESSION_METADATA,
    )
    async def test_negative_zero_becomes_zero(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(metadata={"z": -0.0})
        await memory.add_message(session, "user", "", {"z": [-0.0, {"y": -0.0}]})
        (message,) = await memory.get_history(session)
        found = await memory.get_session(session)
        assert found is not None
        assert same(found["metadata"], {"z": 0.0})
        assert same(message["metadata"], {"z": [0.0, {"y": 0.0}]})

    @clause(
        "FM-MET-006",
        promise="Tuples are returned as lists; mappings and subclasses of `str`, `int` and `float` as the plain types.",
        impact="An application gets back types that it cannot serialise.",
        needs=Capability.MESSAGE_METADATA | Capability.SESSIONS | Capability.SESSION_METADATA,
    )
    async def test_unusual_types_come_back_plain(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def come_back(name: str, given: Any, expected: dict[str, Any]) -> None:
            session = await memory.create_session(metadata=given)
            await memory.add_message(session, "user", "", given)
            found = await memory.get_session(session)
            (message,) = await memory.get_history(session)
            assert found is not None
            assert same(found["metadata"], expected), f"session: {name}"
            assert same(message["metadata"], expected), f"message: {name}"

        await together(come_back(name, *given) for name, given in UNUSUAL_MAPPINGS.items())

    @clause(
        "FM-MET-007",
        promise="`None` and missing metadata are both stored as `{}`.",
        impact="Every reader has to handle both `None` and `{}`.",
        needs=Capability.BATCH | Capability.SESSIONS,
    )
    async def test_none_is_an_empty_object(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(metadata=None)
        await memory.add_message(session, "user", "")
        await memory.add_message(session, "user", "", None)
        await memory.add_messages(
            session, [{"role": "r", "content": ""}, {"role": "r", "content": "", "metadata": None}]
        )
        found = await memory.get_session(session)
        assert found is not None
        rows = [found["metadata"], *(message["metadata"] for message in await memory.get_history(session))]
        assert all(same(metadata, {}) for metadata in rows), rows

    @clause(
        "FM-MET-008",
        promise="Metadata that is not a mapping is a type error: lists, strings, numbers, `False`.",
        impact="A list is stored where every reader expects an object.",
        needs=Capability.BATCH
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_only_objects_are_metadata(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _refused(memory, *NOT_OBJECTS, kind=TypeError)

    @clause(
        "FM-MET-009",
        promise="A key that is not a `str` is rejected, at any depth.",
        impact="The keys 1 and '1' become one, and a value is lost.",
        needs=Capability.BATCH | Capability.SESSIONS,
    )
    async def test_keys_are_text(self, store: StoreUnderTest) -> None:
        memory = store.open()
        keys: tuple[Any, ...] = (1, 1.5, True, None, b"k", (1, 2), 10**5_000)
        await _refused(memory, *(metadata for key in keys for metadata in ({key: 1, "k": 2}, *buried({key: 1}))))

    @clause(
        "FM-MET-010",
        promise="NaN and the infinities are rejected, at any depth.",
        impact="They become null, or text that no JSON reader accepts.",
        needs=Capability.BATCH | Capability.SESSIONS,
    )
    async def test_only_finite_numbers(self, store: StoreUnderTest) -> None:
        memory = store.open()
        values = (float("nan"), float("inf"), float("-inf"))
        await _refused(memory, *(metadata for value in values for metadata in buried(value)))

    @clause(
        "FM-MET-011",
        promise="A NUL in a key or a value is rejected, at any depth; the error names its offset.",
        impact="SQLite stores it and PostgreSQL fails, so the data cannot be migrated.",
        needs=Capability.BATCH
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_nul_in_metadata_is_refused(self, store: StoreUnderTest) -> None:
        await _refuses_texts(store.open(), NUL_TEXTS)

    @clause(
        "FM-MET-012",
        promise="A lone surrogate in a key or a value is rejected, at any depth; the error names its offset.",
        impact="Half an emoji creates a row that can be written but not read.",
        needs=Capability.BATCH
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_lone_surrogates_in_metadata_are_refused(self, store: StoreUnderTest) -> None:
        await _refuses_texts(store.open(), SURROGATE_TEXTS)

    @clause(
        "FM-MET-013",
        promise="Values that JSON does not have (bytes, sets, dates, objects) are type errors, at any depth.",
        impact="Values are stored as their `repr`.",
        needs=Capability.BATCH
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_only_json_types(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _refused(memory, *(metadata for value in NOT_JSON for metadata in buried(value)), kind=TypeError)

    @clause(
        "FM-MET-014",
        promise="Metadata may be nested 100 levels deep; deeper metadata is rejected.",
        impact="Deep metadata can be written, but overflows the reader's stack.",
        needs=Capability.BATCH | Capability.MESSAGE_METADATA | Capability.SESSIONS,
    )
    async def test_nesting_of_one_hundred(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _round_trips(memory, {"deepest": nested(MAX_METADATA_DEPTH)})
        endless: dict[str, Any] = {}
        endless["self"] = endless
        await _refused(memory, nested(MAX_METADATA_DEPTH + 1), nested(5_000), endless)

    @clause(
        "FM-MET-015",
        promise="The caller's metadata is not modified.",
        impact="A dict that an application still uses changes unexpectedly.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.MESSAGE_METADATA
        | Capability.SESSIONS
        | Capability.SESSION_METADATA
        | Capability.METADATA_FILTER,
    )
    async def test_the_argument_is_not_changed(self, store: StoreUnderTest) -> None:
        memory = store.open()
        given: dict[str, Any] = {"t": (1, -0.0), "l": [{"a": 1.0}], "b": 2, "a": None}
        original = copy.deepcopy(given)
        session = await memory.create_session(metadata=given)
        message_id = await memory.add_message(session, "user", "", given)
        await memory.add_messages(session, [{"role": "r", "content": "", "metadata": given}])
        await memory.add_message(session, "user", "", given, message_id=message_id)
        await memory.get_sessions(metadata=given)
        assert repr(given) == repr(original)

    @clause(
        "FM-MET-016",
        promise="Each read returns a new object: changing it, or the argument, does not change stored data.",
        impact="One caller's edit appears in another caller's history.",
        needs=Capability.MESSAGE_METADATA | Capability.SESSIONS | Capability.SESSION_METADATA,
    )
    async def test_nothing_is_aliased(self, store: StoreUnderTest) -> None:
        memory = store.open()
        given: dict[str, Any] = {"l": [1], "o": {"a": 1}}
        session = await memory.create_session(metadata=given)
        await memory.add_message(session, "user", "kept", given)
        given["l"].append(2)
        given["o"]["a"] = 2
        for _ in range(2):
            (message,) = await memory.get_history(session)
            (listed,) = await memory.get_sessions()
            found = await memory.get_session(session)
            assert found is not None
            for row in (message, listed, found):
                assert same(row["metadata"], {"l": [1], "o": {"a": 1}}), row
                row["metadata"]["l"].append("edited")
                row["metadata"]["o"]["a"] = "edited"
            message["content"] = listed["title"] = found["title"] = "edited"
        assert [row["content"] for row in await memory.get_history(session)] == ["kept"]
        assert [row["title"] for row in await memory.get_sessions()] == [""]

    @clause(
        "FM-MET-017",
        promise="Large metadata of messages and sessions is returned complete: megabytes, thousands of keys and "
        "elements, long texts and keys.",
        impact="Retrieved documents stored with an answer are lost.",
        needs=Capability.MESSAGE_METADATA,
    )
    async def test_large_metadata_round_trips(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _round_trips(memory, LARGE_METADATA)
        if Capability.SESSIONS | Capability.SESSION_METADATA in store.capabilities:
            await _sessions_round_trip(memory, LARGE_METADATA)


async def _round_trips(memory: Memory, cases: dict[str, dict[str, Any]]) -> None:
    session = await memory.create_session()
    await together(memory.add_message(session, "user", name, metadata) for name, metadata in cases.items())
    stored = {message["content"]: message["metadata"] for message in await memory.get_history(session)}
    for name, metadata in cases.items():
        assert same(stored[name], metadata), f"metadata changed: {name}"


async def _sessions_round_trip(memory: Memory, cases: dict[str, dict[str, Any]]) -> None:
    ids = await together(memory.create_session(metadata=metadata) for metadata in cases.values())
    found = await together(map(memory.get_session, ids))
    listed = {row["id"]: row for row in await memory.get_sessions(None)}
    for (name, metadata), session, row in zip(cases.items(), ids, found, strict=True):
        assert row is not None
        assert same(row["metadata"], metadata), f"get_session changed: {name}"
        assert same(listed[session]["metadata"], metadata), f"get_sessions changed: {name}"


async def _refused(
    memory: Memory, *values: Any, kind: type[Exception] = InvalidInputError, offset: int | None = None
) -> None:
    """Pass each metadata to every method that takes metadata, and assert that the error names what is wrong."""

    async def refuse(call: Awaitable[Any]) -> None:
        with pytest.raises(InvalidInputError) as caught:
            await call
        assert isinstance(caught.value, kind), f"{caught.value!r} is not a {kind.__name__}"
        assert "metadata" in str(caught.value), f"{caught.value!r} does not name the argument"
        words = str(caught.value).replace(",", " ").replace(";", " ").split()
        assert offset is None or str(offset) in words, f"{caught.value!r} does not name the offset {offset}"

    calls: tuple[Callable[[Any], Awaitable[Any]], ...] = (
        lambda metadata: memory.create_session("", metadata),
        lambda metadata: memory.add_message("session", "user", "", metadata),
        lambda metadata: memory.add_messages("session", [{"role": "user", "content": "", "metadata": metadata}]),
        lambda metadata: memory.get_sessions(metadata=metadata),
    )
    await together(refuse(call(metadata)) for metadata in values for call in calls)


async def _refuses_texts(memory: Memory, texts: dict[str, int]) -> None:
    for text, offset in texts.items():
        await _refused(memory, {text: 1}, *buried(text), *buried({text: 1}), offset=offset)
