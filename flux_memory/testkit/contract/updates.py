"""Clauses on `update_session`: its parts, their order, and that all of them take effect or none."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Final

import pytest

from flux_memory import (
    ConflictError,
    InvalidInputError,
    Memory,
    MemoryClosedError,
    Message,
    Session,
    SessionNotFoundError,
)
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.batches import NOT_BATCHES, NOT_MESSAGES
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import NOT_OBJECTS, NOT_TEXTS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.sessions import SESSION_KEYS
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents, gather_outcomes

UPDATES: Final = Capability.SESSION_UPDATES | Capability.SESSIONS
"""What a clause on updates needs at least."""
EVERY_PART: Final = (
    UPDATES
    | (Capability.TITLES | Capability.SESSION_METADATA | Capability.REVISIONS)
    | (Capability.BATCH | Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS)
)
"""What the clauses on all parts need. Of a memory without `TRUNCATE` they make no call that truncates."""

PARTS: Final[dict[str, dict[str, Any]]] = {
    "title": {"title": "new"},
    "merge": {"merge_metadata": {"a": 2, "n": None}},
    "remove": {"remove_metadata": ["b"]},
    "truncate": {"truncate_from": "m1"},
    "truncate all": {"truncate_all": True},
    "append": {"messages": [{"role": "tool", "content": "added", "message_id": "new"}]},
}
"""Each part of an update of the session that `fill` creates."""
CUTS: Final = ("truncate", "truncate all")
"""The parts that only a memory with `TRUNCATE` has."""

UPDATES_SEEN: Final = 12
"""Updates beside which readers look at the session."""


class UpdatesContract(Binding):
    """The promises of changes of a session and its messages in one step."""

    @clause(
        "FM-UPD-001",
        promise="An update changes the given parts and nothing else, and returns the session as it is then.",
        impact="A new title loses the metadata, or the caller continues with a record that the store does not have.",
        needs=EVERY_PART,
    )
    async def test_an_update_changes_its_parts_only(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        expected: dict[str, dict[str, Any]] = {
            "title": {"title": "new"},
            "merge": {"metadata": {"a": 2, "b": [1.0], "n": None}},
            "remove": {"metadata": {"a": {"x": 1}}},
            "truncate": {"message_count": 1},
            "truncate all": {"message_count": 0},
            "append": {"message_count": 4},
        }
        said = {"truncate": ["0"], "truncate all": [], "append": ["0", "1", "2", "added"]}
        parts = parts_of(store)

        async def check(name: str) -> None:
            session = await fill(memory)
            before, history = await state_of(memory, session)
            returned: Any = await memory.update_session(session, **parts[name])
            assert type(returned) is dict
            assert set(returned) == SESSION_KEYS
            new = {key: returned[key] for key in ("updated_at", "revision")}
            assert returned == {**before, **expected[name], **new}
            after, kept = await state_of(other, session)
            assert after == returned
            assert contents(kept) == said.get(name, ["0", "1", "2"])
            assert kept[: len(history)] == history[: len(kept)]

        await together(map(check, parts))
        # An empty title is a title, and not a missing one.
        assert (await memory.update_session(await fill(memory), title=""))["title"] == ""

    @clause(
        "FM-UPD-002",
        promise="The parts apply in this order: truncate, set the title, remove and merge metadata, append.",
        impact="An edited answer is removed together with the answer that it replaces.",
        needs=EVERY_PART,
    )
    async def test_the_order_of_the_parts(self, store: StoreUnderTest) -> None:
        memory = store.open()
        cuts: list[tuple[dict[str, Any], str, list[str]]] = [({}, "new", ["0", "1", "2"])]
        if Capability.TRUNCATE in store.capabilities:
            cuts += [({"truncate_from": "m1"}, "m1", ["0"]), ({"truncate_all": True}, "m1", [])]
        for cut, key, kept in cuts:
            session = await fill(memory)
            new: Any = {"role": "user", "content": "1, edited", "message_id": key}
            parts: Any = {**cut, "messages": [new, {"role": "tool", "content": "next"}]}
            returned = await memory.update_session(
                session, title="t", merge_metadata={"b": 3, "c": {}}, remove_metadata=("a", "b"), **parts
            )
            assert (returned["title"], returned["metadata"]) == ("t", {"b": 3, "c": {}})
            assert returned["message_count"] == len(kept) + 2
            record, history = await state_of(memory, session)
            assert record == returned
            assert contents(history) == [*kept, "1, edited", "next"]
            assert history[-2]["id"] == key
            # Without the order, a message that is stored already would be a retry, or the edited one a conflict.
            with pytest.raises(ConflictError):
                await memory.update_session(session, messages=[{"role": "user", "content": "1", "message_id": key}])

    @clause(
        "FM-UPD-003",
        promise="If a part of an update fails, nothing of the update takes effect, whichever parts it has.",
        impact="A conversation is truncated, and the new answer is not stored.",
        needs=EVERY_PART,
    )
    async def test_an_update_is_all_or_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await fill(memory)
        before = await state_of(memory, session)
        failing: dict[str, dict[str, Any]] = {
            "revision": {"expected_revision": "none"},
            "truncate": {"truncate_from": "unknown"},
            "append": {"messages": [*_messages("x", "y"), {"role": "r", "content": "c", "message_id": "m0"}]},
            "append twice": {"messages": [*_messages("x"), {"role": "r", "content": "c", "message_id": "x"}]},
        }
        every = parts_of(store)
        if Capability.TRUNCATE not in store.capabilities:
            del failing["truncate"]

        async def refuse(name: str, parts: tuple[str, ...]) -> None:
            given = {key: value for part in parts for key, value in every[part].items()}
            with pytest.raises(ConflictError):
                await memory.update_session(session, **{**given, **failing[name]})

        for name in failing:
            # A failing append replaces the sound one; "m0" stays, unless all messages are removed first.
            sound = [part for part in every if not (part == "truncate all" and name in {"truncate", "append"})]
            pairs = [pair for pair in itertools.combinations(sound, 2) if pair != CUTS]
            await together(refuse(name, parts) for parts in [*((part,) for part in sound), *pairs])
            assert await state_of(other, session) == before, name

    @clause(
        "FM-UPD-004",
        promise="An update of a session that does not exist raises `SessionNotFoundError` and creates nothing.",
        impact="A change of a deleted conversation is acknowledged, or brings half of it back.",
        needs=EVERY_PART | Capability.SESSION_IDS,
    )
    async def test_an_update_of_no_session(self, store: StoreUnderTest) -> None:
        memory = store.open()
        parts = [*parts_of(store).values(), {"title": "t", "expected_revision": "none"}]
        if Capability.TRUNCATE in store.capabilities:
            parts.append({"truncate_from": "m1", "expected_revision": "none"})

        async def refuse(key: str) -> None:
            for given in parts:
                with pytest.raises(SessionNotFoundError):
                    await memory.update_session(key, **given)

        await together(map(refuse, ("nowhere", "", "\x00", "\ud800", "x" * 1_000)))
        session = await fill(memory)
        await memory.delete_session(session)
        await refuse(session)
        assert await memory.get_sessions() == []
        await memory.create_session(session_id="nowhere")
        assert await memory.get_history("nowhere") == []

    @clause(
        "FM-UPD-005",
        promise="An update without a part, with both truncations or with an invalid argument raises "
        "`InvalidInputError` before the store is asked, also for a session that does not exist.",
        impact="A mistake in the caller changes half of a conversation, or is taken for a change by another client.",
        needs=EVERY_PART,
    )
    async def test_invalid_updates_are_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await fill(memory)
        before = await state_of(memory, session)
        empty: list[dict[str, Any]] = [
            *({}, {"expected_revision": before[0]["revision"]}, {"expected_revision": "none"}),
            *({"remove_metadata": ()}, {"messages": []}, {"messages": iter(()), "remove_metadata": []}),
            {"title": None, "merge_metadata": None, "truncate_from": None, "truncate_all": False},
        ]
        if Capability.TRUNCATE in store.capabilities:
            empty += [{"truncate_from": each, "truncate_all": True} for each in ("m1", "unknown")]
        values: list[tuple[str, Any]] = [
            *(("title", text) for text in ("\x00", "a\ud800")),
            *(("merge_metadata", value) for value in ({"k": float("nan")}, {"k": "\x00"}, {"\ud800": 1})),
            ("messages", [{"role": "", "content": "c"}]),
            ("messages", [{"role": "r", "content": "c", "message_id": ""}]),
            ("messages", [{"role": "r", "content": "c", "other": 1}]),
        ]
        types: list[tuple[str, Any]] = [
            *((name, value) for name in ("title", "expected_revision") for value in NOT_TEXTS),
            *(("merge_metadata", value) for value in (*NOT_OBJECTS, {1: 1}, {"k": {1}})),
            *(("remove_metadata", value) for value in ("a", "", b"a", {"a": 1}, 1, None, object(), [None], ["a", 1])),
            *(("messages", value) for value in NOT_BATCHES),
            *(("messages", [value]) for value in NOT_MESSAGES),
        ]
        if Capability.TRUNCATE in store.capabilities:
            types += [("truncate_from", value) for value in NOT_TEXTS]
            types += [("truncate_all", value) for value in (0, 1, "yes", None, [True])]

        async def refuse(key: str, given: dict[str, Any], kind: type[Exception], name: str) -> None:
            (answer,) = await gather_outcomes(memory.update_session(key, **given))
            assert isinstance(answer, InvalidInputError), f"{given} raised {answer!r}"
            assert isinstance(answer, kind), f"{given} raised {answer!r}"
            assert name in str(answer), f"{given} raised {answer!r}"

        for key in (session, "nowhere"):
            await together(refuse(key, given, ValueError, "") for given in empty)
            await together(refuse(key, {"title": "t", name: value}, ValueError, name) for name, value in values)
            await together(refuse(key, {"title": "t", name: value}, TypeError, name) for name, value in types)
        await together(refuse(key, {"title": "t"}, TypeError, "session_id") for key in NOT_TEXTS)
        assert await state_of(memory, session) == before

    @clause(
        "FM-UPD-006",
        promise="After `close()`, an update raises `MemoryClosedError`, also with invalid arguments.",
        impact="A service that shuts down reports a wrong argument, or changes a conversation.",
        needs=UPDATES | Capability.TITLES | Capability.SEVERAL_HANDLES,
    )
    async def test_an_update_after_close(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session()
        before = await state_of(other, session)
        await memory.close()
        wrong: list[dict[str, Any]] = [{"title": "t"}, {}, {"title": 1}, {"truncate_all": 1}, {"messages": 1}]
        for given in wrong:
            with pytest.raises(MemoryClosedError):
                await memory.update_session(session, **given)
        assert await state_of(other, session) == before

    @clause(
        "FM-UPD-007",
        promise="Readers see an update as a whole: the title, the metadata and the number of messages of a record "
        "belong together, and a history has all of the new messages or none.",
        impact="A model is asked with the settings of one version of a conversation and the messages of another.",
        needs=EVERY_PART | Capability.SEVERAL_HANDLES,
    )
    async def test_no_reader_sees_half_an_update(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        session = await memory.create_session("0", {"n": 0})
        done = asyncio.Event()
        cuts = Capability.TRUNCATE in store.capabilities
        # Each update adds so many messages, to none if it can remove those before.
        counts = [number % 5 if cuts else sum(at % 5 for at in range(number + 1)) for number in range(UPDATES_SEEN + 1)]

        async def read(look: Callable[[], Any], check: Callable[[Any], bool]) -> None:
            while not done.is_set():
                # Let the writer run even if the backend never suspends.
                await asyncio.sleep(0)
                seen = await look()
                assert check(seen), f"a reader saw {seen}"

        def is_whole(row: Session) -> bool:
            number = int(row["title"])
            return row["metadata"] == {"n": number} and row["message_count"] == counts[number]

        def is_one_version(said: list[str]) -> bool:
            return _is_one_version(said) if cuts else len(said) in counts

        reads = [
            read(lambda: other.get_session(session), is_whole),
            read(other.get_sessions, lambda rows: len(rows) == 1 and is_whole(rows[0])),
            read(lambda: other.get_history(session), lambda rows: is_one_version(contents(rows))),
        ]
        reading = asyncio.gather(*reads)
        try:
            for number in range(1, UPDATES_SEEN + 1):
                batch = _messages(*(f"{number} {at}" for at in range(number % 5)))
                given: Any = {"title": str(number), "merge_metadata": {"n": number}, "messages": batch}
                await memory.update_session(session, **given, truncate_all=cuts)
                if reading.done():
                    break
        finally:
            done.set()
            await reading

    @clause(
        "FM-UPD-008",
        promise="An update of one session leaves every other session as it is, also one with the same message ids.",
        impact="Truncating one user's conversation removes another user's messages.",
        needs=EVERY_PART,
    )
    async def test_an_update_leaves_other_sessions(self, store: StoreUnderTest) -> None:
        memory = store.open()
        others = [await fill(memory), await fill(memory)]
        before = [await state_of(memory, other) for other in others]
        for parts in parts_of(store).values():
            await memory.update_session(await fill(memory), **parts)
            assert [await state_of(memory, other) for other in others] == before, parts


def parts_of(store: StoreUnderTest) -> dict[str, dict[str, Any]]:
    """Return each part of an update that the memory claims."""
    cuts = Capability.TRUNCATE in store.capabilities
    return {name: part for name, part in PARTS.items() if cuts or name not in CUTS}


async def fill(memory: Memory) -> str:
    """Create a session with a title, metadata and three messages, `m0` to `m2`, and return its id."""
    session = await memory.create_session("old", {"a": {"x": 1}, "b": [1.0]})
    batch: Any = [{"role": "user", "content": str(at), "message_id": f"m{at}"} for at in range(3)]
    await memory.add_messages(session, batch)
    return session


async def state_of(memory: Memory, session: str) -> tuple[Session, list[Message]]:
    """Return the record of a session, which has to exist, and its history."""
    record, history = await memory.get_session(session), await memory.get_history(session)
    assert record is not None
    return record, history


def _messages(*ids: str) -> list[Any]:
    return [{"role": "user", "content": message_id, "message_id": message_id} for message_id in ids]


def _is_one_version(said: list[str]) -> bool:
    """Return whether these are the messages of one update, all of them."""
    numbers = {int(text.split()[0]) for text in said}
    return len(numbers) <= 1 and all(len(said) == number % 5 for number in numbers)
