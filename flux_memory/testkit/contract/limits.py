"""Clauses on the shared limits, and on lookups of ids that cannot exist."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from flux_memory import (
    MAX_FILTER_ELEMENTS,
    MAX_FILTER_VALUES,
    MAX_METADATA_BYTES,
    MAX_USER_ID_LENGTH,
    InvalidInputError,
    Memory,
    SessionNotFoundError,
)
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import NOT_TEXTS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, gather_outcomes

NOWHERE: Final = ("", "unknown", "x" * 10_000, "nul\x00", "\ud800", "' OR '1'='1", "%")
"""Ids of no session and no message; some are not even valid, as are ids that are too long."""

READS: Final[dict[str, Callable[[Memory, str, Any], Awaitable[Any]]]] = {
    "session_id of get_session": lambda memory, _, key: memory.get_session(key),
    "session_id of get_history": lambda memory, _, key: memory.get_history(key),
    "before of get_history": lambda memory, session, key: memory.get_history(session, before=key),
    "user_id of get_sessions": lambda memory, _, key: memory.get_sessions(user_id=key),
    "session_id of delete_session": lambda memory, _, key: memory.delete_session(key),
}
WRITES: Final[dict[str, Callable[[Memory, Any], Awaitable[Any]]]] = {
    "session_id of add_message": lambda memory, key: memory.add_message(key, "user", "text"),
    "session_id of add_messages": lambda memory, key: memory.add_messages(key, [{"role": "r", "content": "c"}]),
    "session_id of update_session_title": lambda memory, key: memory.update_session_title(key, "title"),
}

_FLAT: Final = {f"key {number}": number for number in range(MAX_FILTER_VALUES)}
LARGEST_FILTERS: Final[dict[str, dict[str, Any]]] = {
    "flat": _FLAT,
    "an object and its members": {"a": dict(list(_FLAT.items())[1:])},
    "an array of scalars": {"a": list(range(MAX_FILTER_ELEMENTS))},
    "two arrays": {"a": ["x"] * (MAX_FILTER_ELEMENTS // 2), "b": {"c": ["x"] * (MAX_FILTER_ELEMENTS // 2)}},
    "an array of objects": {"a": [{"b": number} for number in range(MAX_FILTER_ELEMENTS // 2)]},
    "arrays in an array": {"a": [[number] for number in range(MAX_FILTER_ELEMENTS // 2)]},
    "both limits": dict(list(_FLAT.items())[MAX_FILTER_ELEMENTS + 1 :]) | {"a": list(range(MAX_FILTER_ELEMENTS))},
}
"""Filters that are as large as they may be."""
TOO_LARGE_FILTERS: Final[dict[str, dict[str, Any]]] = {
    "flat": _FLAT | {"more": None},
    "an object and its members": {"a": _FLAT},
    "an array of scalars": {"a": list(range(MAX_FILTER_ELEMENTS + 1))},
    "a tuple": {"a": ("x",) * (MAX_FILTER_ELEMENTS + 1)},
    "two arrays": {"a": ["x"] * (MAX_FILTER_ELEMENTS // 2), "b": {"c": ["x"] * (MAX_FILTER_ELEMENTS // 2 + 1)}},
    "an array of objects": {"a": [{"b": number} for number in range(MAX_FILTER_ELEMENTS // 2 + 1)]},
    "an object in an array": {"a": [{str(number): number for number in range(MAX_FILTER_ELEMENTS)}]},
    "arrays in an array": {"a": [[number] for number in range(MAX_FILTER_ELEMENTS // 2 + 1)]},
    "empty objects": {"a": [{}] * (MAX_FILTER_ELEMENTS + 1)},
    "as many as can be stored": {"a": list(range(100_000))},
}
"""Filters that are larger: each is JSON that can be stored as metadata."""


class LimitsContract(Binding):
    """The promises at the limits of ids and sizes."""

    @clause(
        "FM-LIM-001",
        promise="A caller's id has 1 to 255 characters of any size in bytes, or fewer if the binding says so; other "
        "lengths are rejected.",
        impact="One engine truncates ids, and two sessions become one.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS,
    )
    async def test_ids_have_1_to_255_characters(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for character in ("x", "\u20ac", "\U0001f44d"):
            longest = character * store.max_id_length
            session = await memory.create_session(session_id=longest)
            message = await memory.add_message(session, "user", "", message_id=longest)
            assert (session, message) == (longest, longest)
            assert [row["id"] for row in await memory.get_history(longest)] == [longest]
        for wrong in ("", "x" * (store.max_id_length + 1), "\u20ac" * (store.max_id_length + 1), "x" * 100_000):
            with pytest.raises(InvalidInputError, match="session_id"):
                await memory.create_session(session_id=wrong)
            with pytest.raises(InvalidInputError, match="message_id"):
                await memory.add_message(longest, "user", "", message_id=wrong)
            with pytest.raises(InvalidInputError, match=r"messages\[0\]\.message_id"):
                await memory.add_messages(longest, [{"role": "r", "content": "", "message_id": wrong}])
        assert await memory.count_sessions() == 3

    @clause(
        "FM-LIM-002",
        promise="A user id has at most 255 characters; a longer one is rejected.",
        impact="PostgreSQL cannot index a longer id: the write fails there and nowhere else.",
        needs=Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_user_ids_have_at_most_255_characters(self, store: StoreUnderTest) -> None:
        memory = store.open()
        longest = "\U0001f44d" * MAX_USER_ID_LENGTH
        session = await memory.create_session(user_id=longest)
        assert [row["id"] for row in await memory.get_sessions(user_id=longest)] == [session]
        with pytest.raises(InvalidInputError, match="user_id"):
            await memory.create_session(user_id=longest + "x")
        assert await memory.count_sessions() == 1

    @clause(
        "FM-LIM-003",
        promise="Long text is returned complete: content of 17 MiB, a role and a title of more than a megabyte; or as "
        "much as the binding says.",
        impact="Long answers are cut off at the end.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_long_content_is_not_cut(self, store: StoreUnderTest) -> None:
        memory = store.open()
        line = "0123456789abcdef\u20ac\n"
        long = line * min(60_000, store.max_content_bytes // len(line.encode()))
        session = await memory.create_session(long)
        created = await memory.get_session(session)
        await memory.update_session_title(session, "short")
        await memory.update_session_title(session, long[1:])
        updated = await memory.get_session(session)
        (listed,) = await memory.get_sessions()
        times = store.max_content_bytes // len(long.encode())
        if times > 17 and not store.includes("content of more than 17 MiB"):
            times = 17
        longest = long * times
        await memory.add_message(session, long, longest)
        (message,) = await memory.get_history(session)
        assert created is not None
        assert updated is not None
        found = {
            "title of a new session": (created["title"], long),
            "changed title": (updated["title"], long[1:]),
            "listed title": (listed["title"], long[1:]),
            "role": (message["role"], long),
            "content": (message["content"], longest),
        }
        for name, (returned, given) in found.items():
            assert len(returned) == len(given), f"{name}: cut"
            # Compared outside the assert: pytest would spend minutes on showing the difference.
            same = returned == given
            assert same, f"{name}: changed"

    @clause(
        "FM-LIM-004",
        promise="Content over the byte limit is rejected, never truncated.",
        impact="Each engine fails, or truncates the text, at a different size.",
        needs=Capability.BATCH,
    )
    async def test_content_over_the_limit_is_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        # Below the limit in characters, above it in bytes.
        too_much = "\u20ac" * (store.max_content_bytes // 3 + 1)
        with pytest.raises(InvalidInputError, match="content"):
            await memory.add_message(session, "user", too_much)
        with pytest.raises(InvalidInputError, match=r"messages\[0\]\.content"):
            await memory.add_messages(session, [{"role": "r", "content": too_much}])
        with pytest.raises(InvalidInputError, match="title"):
            await memory.update_session_title(session, too_much)
        assert await memory.get_history(session) == []

    @clause(
        "FM-LIM-005",
        promise="Metadata over the byte limit is rejected, never truncated.",
        impact="Each engine fails at a different size.",
        needs=Capability.SESSIONS,
    )
    async def test_metadata_over_the_limit_is_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        too_much = {"k": "\u20ac" * (MAX_METADATA_BYTES // 3)}
        with pytest.raises(InvalidInputError, match="metadata"):
            await memory.create_session(metadata=too_much)
        assert await memory.count_sessions() == 0

    @clause(
        "FM-LIM-006",
        promise="Reading or deleting with an id that does not exist, or is not valid, finds nothing: `None`, `[]`, no "
        "error.",
        impact="A mistyped link shows an internal error instead of an empty page.",
        needs=Capability.CURSOR | Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_lookups_of_nothing_find_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(user_id="ann")
        await memory.add_message(session, "user", "text")

        keys = (*NOWHERE, "x" * (store.max_id_length + 1))

        async def find(name: str, key: str) -> None:
            if (name, key) != ("user_id of get_sessions", ""):
                assert not await READS[name](memory, session, key), f"{name}={key!r:.50} found something"

        await together(find(name, key) for key in keys for name in READS)
        assert await together(map(memory.get_session, keys)) == [None] * len(keys)
        assert await memory.count_sessions() == 1
        assert len(await memory.get_history(session)) == 1

    @clause(
        "FM-LIM-007",
        promise="Writing to a session id that does not exist, or is not valid, raises `SessionNotFoundError`.",
        impact="Messages are lost, or the driver's error reaches the application.",
        needs=Capability.BATCH | Capability.SESSIONS | Capability.TITLES,
    )
    async def test_writes_to_nowhere_are_not_found(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def refuse(key: str) -> None:
            for call in WRITES.values():
                with pytest.raises(SessionNotFoundError):
                    await call(memory, key)
            # Invalid arguments are reported first, for any id.
            with pytest.raises(InvalidInputError, match="role"):
                await memory.add_message(key, "", "text")
            with pytest.raises(InvalidInputError, match=r"messages\[0\]"):
                await memory.add_messages(key, [{"role": "", "content": "text"}])
            with pytest.raises(InvalidInputError, match="title"):
                await memory.update_session_title(key, "\x00")

        await together(map(refuse, (*NOWHERE, "x" * (store.max_id_length + 1))))
        assert await memory.get_sessions() == []

    @clause(
        "FM-LIM-008",
        promise="Looking up an id that is not a `str` is a type error that names the argument.",
        impact="A bug in the caller looks like an empty conversation.",
        needs=Capability.BATCH | Capability.CURSOR | Capability.SESSIONS | Capability.USER_SCOPE | Capability.TITLES,
    )
    async def test_lookups_take_text_only(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()

        async def refuse(value: Any) -> None:
            for name, read in READS.items():
                with pytest.raises(InvalidInputError) as caught:
                    await read(memory, session, value)
                assert isinstance(caught.value, TypeError), f"{name}={value!r} raised {caught.value!r}"
                assert name.split()[0] in str(caught.value)
            for name, write in WRITES.items():
                with pytest.raises(InvalidInputError) as caught:
                    await write(memory, value)
                assert isinstance(caught.value, TypeError), f"{name}={value!r} raised {caught.value!r}"

        await together(map(refuse, NOT_TEXTS))
        with pytest.raises(TypeError):
            await memory.get_session(None)  # type: ignore[arg-type]  # that is the point

    @clause(
        "FM-LIM-009",
        promise="A metadata filter has at most 100 values at any depth, and at most 16 of them within arrays; a larger "
        "one is rejected.",
        impact="One request with a long filter occupies the store for minutes, and other users' calls fail.",
        needs=Capability.SESSIONS | Capability.SESSION_METADATA | Capability.METADATA_FILTER,
    )
    async def test_filters_are_short(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for name, metadata in LARGEST_FILTERS.items():
            session = await memory.create_session(metadata=metadata)
            found = [row["id"] for row in await memory.get_sessions(metadata=metadata)]
            assert found == [session], f"the filter did not find its session: {name}"
            await memory.delete_session(session)
        await together(memory.create_session(metadata=metadata) for metadata in TOO_LARGE_FILTERS.values())
        answers = await gather_outcomes(
            *(memory.get_sessions(metadata=metadata) for metadata in TOO_LARGE_FILTERS.values())
        )
        for name, answer in zip(TOO_LARGE_FILTERS, answers, strict=True):
            assert isinstance(answer, InvalidInputError), f"the filter was accepted: {name}"
            assert "metadata" in str(answer)
        assert await memory.count_sessions() == len(TOO_LARGE_FILTERS)

    @clause(
        "FM-LIM-020",
        promise="Content of exactly the largest size is stored and returned complete: 64 MiB, or fewer bytes if the "
        "binding says so.",
        impact="A message that the limit allows is lost: the store refuses or cuts it.",
    )
    async def test_the_largest_content_is_stored(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        largest = "x" * store.max_content_bytes
        await memory.add_message(session, "user", largest)
        (message,) = await memory.get_history(session)
        assert len(message["content"]) == len(largest)
        # Compared outside the assert: pytest would spend minutes on showing the difference.
        same = message["content"] == largest
        assert same, "the content was changed"

    @clause(
        "FM-LIM-021",
        promise="Content, a role or a title with one byte more is rejected, and nothing is stored.",
        impact="A store that accepts less than its binding states cuts the text, or fails after the write.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_one_byte_more_is_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session("title")
        await memory.add_message(session, "user", "text")
        before = await memory.get_sessions(), await memory.get_history(session)
        # Characters of three bytes, once: their number is found by encoding them.
        too_large, of_ascii = _text_of(store.max_content_bytes + 1), "x" * (store.max_content_bytes + 1)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "content": lambda: memory.add_message(session, "user", too_large),
            "role": lambda: memory.add_message(session, of_ascii, "text"),
            "title of create_session": lambda: memory.create_session(of_ascii),
            "title of update_session_title": lambda: memory.update_session_title(session, of_ascii),
        }
        for name, call in calls.items():
            (answer,) = await gather_outcomes(call())
            assert isinstance(answer, InvalidInputError), f"{name} of {store.max_content_bytes + 1} bytes was accepted"
            assert name.split()[0] in str(answer)
        assert (await memory.get_sessions(), await memory.get_history(session)) == before


def _text_of(size: int) -> str:
    """Return a text of this size in bytes, which has fewer characters."""
    return "x" * (size % 3) + "\u20ac" * (size // 3)
