"""Clauses on the metadata of updates: what merging and removing change, at the top level and nowhere else."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flux_memory import MAX_METADATA_BYTES, ConflictError, InvalidInputError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import FLOATS, INTEGERS, METADATA, same
from flux_memory.testkit.contract.lookalikes import NOTATIONS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle
from flux_memory.testkit.contract.updates import UPDATES, state_of

MERGES: Final = UPDATES | Capability.SESSION_METADATA

KINDS: Final[dict[str, Any]] = {
    "null": None,
    "true": True,
    "one": 1,
    "float one": 1.0,
    "text": "1",
    "empty": "",
    "list": [1, 1.0, None],
    "object": {"x": {"y": None}, "z": 1},
    "no object": {},
    "no list": [],
    "large": 10**40,
    "exact": 2**63,
}
"""A value of each kind."""
KEYS: Final = (
    "a",
    "A",
    "a ",
    "a.b",
    "a[0]",
    "$.a",
    "$",
    "",
    "0",
    '"a"',
    "a'b",
    "{a,b}",
    "é",
    "e\u0301",
    "\u2028",
    "null",
)
"""Keys that a path, a pattern or a collation reads as another one."""
WRITERS: Final = 12
LARGE: Final = MAX_METADATA_BYTES * 3 // 5
"""Characters of a value that the metadata can hold once, and not twice."""


class MergesContract(Binding):
    """The promises on the metadata that an update merges or removes."""

    @clause(
        "FM-UPD-020",
        promise="A merge sets the given keys at the top level: each value replaces the stored one as a whole, and the "
        "other keys keep theirs.",
        impact="Settings that an application has replaced stay in force, or others are lost.",
        needs=MERGES,
    )
    async def test_a_merge_replaces_whole_values(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        old: dict[str, Any] = {"o": {"x": 1, "deep": {"y": 2}}, "l": [1, 2, 3], "t": "old", "kept": {"k": [1.0, None]}}
        session = await memory.create_session(metadata=old)
        merged: list[dict[str, Any]] = [
            *({"o": {"z": None}}, {"o": {}}, {"l": [9]}, {"l": []}, {"t": {"now": "an object"}}, {"o": 1, "n": {}}),
        ]
        for given in merged:
            returned = await memory.update_session(session, merge_metadata=given)
            old |= given
            assert same(returned["metadata"], old), f"after {given}"
            assert same((await state_of(other, session))[0]["metadata"], old), f"after {given}"

    @clause(
        "FM-UPD-021",
        promise="`None` is a value: merging it stores it, and stored ones stay, at every depth.",
        impact="An application cannot tell a user who declined from one who was never asked.",
        needs=MERGES,
    )
    async def test_none_is_merged_as_a_value(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(metadata={"a": 1, "stays": None, "o": {"n": None}})
        merged: dict[str, Any] = {"a": None, "new": None, "p": {"n": None, "l": [None, {"n": None}]}}
        expected = {"stays": None, "o": {"n": None}, **merged}
        for given in (merged, {"a": None}, {}):
            returned = await memory.update_session(session, merge_metadata=given)
            assert same(returned["metadata"], expected), f"after {given}"
        assert same((await state_of(memory, session))[0]["metadata"], expected)

    @clause(
        "FM-UPD-022",
        promise='Merged values, and those that stay, keep their type and value: 1, 1.0 and "1" differ, and numbers of '
        "any size are exact.",
        impact="An id in the metadata has other digits after an unrelated change.",
        needs=MERGES,
    )
    async def test_merged_values_round_trip(self, store: StoreUnderTest) -> None:
        memory = store.open()
        numbers = {"i": list(INTEGERS), "f": list(FLOATS), **{f"i{at}": value for at, value in enumerate(INTEGERS)}}
        cases = {**METADATA, **NOTATIONS, "numbers": numbers, "kinds": KINDS}

        async def check(name: str, metadata: dict[str, Any]) -> None:
            merged = await memory.create_session(metadata={"first": 1.0})
            stays = await memory.create_session(metadata=metadata)
            await memory.update_session(merged, merge_metadata=metadata)
            await memory.update_session(stays, merge_metadata={"first": 1.0})
            for session in (merged, stays):
                found, _ = await state_of(memory, session)
                assert same(found["metadata"], {"first": 1.0, **metadata}), f"metadata changed: {name}"

        await together(check(*case) for case in cases.items())
        for first, second in zip(KINDS.values(), [*list(KINDS.values())[1:], None], strict=True):
            session = await memory.create_session(metadata={"k": first})
            returned = await memory.update_session(session, merge_metadata={"k": second})
            assert same(returned["metadata"], {"k": second}), f"{second!r} over {first!r}"

    @clause(
        "FM-UPD-023",
        promise="Removing a key removes exactly that key at the top level; a missing one is not an error.",
        impact="Removing one setting removes those with similar names, or a part of another.",
        needs=MERGES,
    )
    async def test_removed_keys_are_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        whole: dict[str, Any] = {key: {"a": 1, "b": 2, "": 3} for key in KEYS}

        async def check(key: str) -> None:
            session = await memory.create_session(metadata=whole)
            returned = await memory.update_session(session, remove_metadata=[key])
            expected = {name: value for name, value in whole.items() if name != key}
            assert same(returned["metadata"], expected), f"removed: {key!r}"
            await memory.update_session(session, merge_metadata={key: None})
            assert same((await state_of(memory, session))[0]["metadata"], {**expected, key: None})

        await together(map(check, KEYS))
        session = await memory.create_session(metadata=whole)
        missing = ("b", "b.a", "a.a", "$.a.b", "[0]", "*", "%", "1", "-1", "a\x00", "\ud800", "\x00", "x" * 5_000, "É")
        for given in (
            missing,
            list(missing),
            {"b", "*"},
            iter(missing),
            (key for key in missing),
            dict.fromkeys("b").keys(),
        ):
            returned = await memory.update_session(session, remove_metadata=given)
            assert same(returned["metadata"], whole), f"removed: {given!r}"
        returned = await memory.update_session(session, remove_metadata=(*KEYS, *KEYS, "b"))
        assert returned["metadata"] == {}

    @clause(
        "FM-UPD-024",
        promise="An update that removes and merges the same key leaves the merged value.",
        impact="A setting that is replaced is gone.",
        needs=MERGES,
    )
    async def test_removed_and_merged(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(metadata={"a": {"x": 1}, "b": 1, "c": [1]})
        given: dict[str, Any] = {"a": {"y": None}, "n": 1.0, "b": None}
        returned = await memory.update_session(session, remove_metadata=["a", "c", "n", "none"], merge_metadata=given)
        assert same(returned["metadata"], given)
        assert same((await state_of(memory, session))[0]["metadata"], given)

    @clause(
        "FM-UPD-025",
        promise="A filter finds a session by its metadata as updates have left it, and not by what it was before.",
        impact="A list shows conversations by their old labels, and misses them by the new ones.",
        needs=MERGES | Capability.METADATA_FILTER,
    )
    async def test_filters_follow_updates(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(metadata={"k": "old", "o": {"x": 1}, "l": [1, 2], "stays": True})
        await memory.create_session(metadata={"k": "another"})

        async def found(*filters: dict[str, Any]) -> list[bool]:
            return [session in [row["id"] for row in await memory.get_sessions(metadata=part)] for part in filters]

        assert await found({"k": "old"}, {"o": {"x": 1}}, {"l": [2]}, {"stays": True}) == [True] * 4
        await memory.update_session(session, merge_metadata={"k": "new", "o": {"y": None}, "l": [3]})
        assert await found({"k": "new"}, {"o": {"y": None}}, {"l": [3]}, {"stays": True}) == [True] * 4
        assert await found({"k": "old"}, {"o": {"x": 1}}, {"l": [2]}) == [False] * 3
        await memory.update_session(session, remove_metadata=["k", "o"], merge_metadata={"l": 2.0})
        assert await found({"k": "new"}, {"o": {}}, {"l": [3]}, {"l": []}) == [False] * 4
        assert await found({"l": 2}, {"stays": True}, {}) == [True] * 3

    @clause(
        "FM-UPD-026",
        promise="An update whose merged metadata would be too large raises `InvalidInputError` and changes nothing.",
        impact="A session grows until no call can read it.",
        needs=MERGES | Capability.TITLES | Capability.REVISIONS,
    )
    async def test_merged_metadata_has_a_bound(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("old", {"a": "x" * LARGE, "small": 1})
        before, _ = await state_of(memory, session)
        with pytest.raises(InvalidInputError, match="metadata"):
            await memory.update_session(
                session, title="new", merge_metadata={"b": "x" * LARGE}, remove_metadata=["small"]
            )
        with pytest.raises(ConflictError):
            await memory.update_session(session, merge_metadata={"b": "x" * LARGE}, expected_revision="none")
        # Compared outside the assert: pytest would show megabytes.
        unchanged = (await state_of(memory, session))[0] == before
        assert unchanged, "a refused update changed the session"

    @clause(
        "FM-UPD-028",
        promise="Metadata that an update removes or replaces does not count for the bound on what is merged.",
        impact="A correct change of a session with large metadata is refused.",
        needs=MERGES,
        thorough=True,
    )
    async def test_replaced_metadata_does_not_count(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("", {"a": "x" * LARGE, "small": 1})
        await memory.update_session(session, merge_metadata={"a": "y" * LARGE})
        returned = await memory.update_session(session, merge_metadata={"b": "z" * LARGE}, remove_metadata=["a"])
        exact = returned["metadata"] == {"small": 1, "b": "z" * LARGE}
        assert exact, "the large value is not stored as given"

    @clause(
        "FM-UPD-027",
        promise="Concurrent updates of different keys are all kept, and so are concurrent titles and adds.",
        impact="Two services that keep their settings with a conversation erase each other's.",
        needs=MERGES | Capability.TITLES,
    )
    async def test_concurrent_merges_are_all_kept(self, store: StoreUnderTest) -> None:
        memory = store.open()
        handles = (memory, another_handle(store, memory))
        gone = {f"old {number}": number for number in range(WRITERS)}
        session = await memory.create_session(metadata={**gone, "stays": [1.0]})

        async def work(number: int) -> None:
            handle = handles[number % 2]
            await handle.update_session(session, merge_metadata={str(number): number})
            await handle.add_message(session, "user", str(number))
            await handle.update_session(session, remove_metadata=[f"old {number}"], merge_metadata={"last": number})
            await handle.update_session(session, title=str(number))

        await together(map(work, range(WRITERS)))
        found, history = await state_of(memory, session)
        numbers = {str(number): number for number in range(WRITERS)}
        assert found["metadata"] == {**numbers, "stays": [1.0], "last": found["metadata"].get("last")}
        assert found["metadata"]["last"] in range(WRITERS)
        assert found["title"] in numbers
        assert found["message_count"] == len(history) == WRITERS
