"""Clauses on text: it is returned byte for byte, or rejected if it cannot be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from flux_memory import InvalidInputError, Memory
from flux_memory.testkit.capabilities import NOTHING, Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import (
    LOOKALIKES,
    METADATA,
    NAMES,
    NOT_TEXTS,
    NUL_TEXTS,
    SURROGATE_TEXTS,
    TEXTS,
    Colour,
    Shout,
    same,
)
from flux_memory.testkit.contract.lookalikes import SPEAKERS, TWIN_IDS
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest

CallWithText = Callable[[Memory, str, Any], Awaitable[Any]]

WITH_TEXT: Final[dict[str, CallWithText]] = {
    "title": lambda memory, _, text: memory.create_session(text),
    "session_id": lambda memory, _, text: memory.create_session(session_id=text),
    "user_id": lambda memory, _, text: memory.create_session(user_id=text),
    "role": lambda memory, session, text: memory.add_message(session, text, "content"),
    "content": lambda memory, session, text: memory.add_message(session, "user", text),
    "message_id": lambda memory, session, text: memory.add_message(session, "user", "content", message_id=text),
    "messages[0].role": lambda memory, session, text: memory.add_messages(session, [{"role": text, "content": "c"}]),
    "messages[0].content": lambda memory, session, text: memory.add_messages(session, [{"role": "r", "content": text}]),
    "messages[1].message_id": lambda memory, session, text: memory.add_messages(
        session, [{"role": "r", "content": "c"}, {"role": "r", "content": "c", "message_id": text}]
    ),
}
"""The calls that store text, by the argument that an error must name. They take a session id and the text."""

NEEDS: Final = {
    "title": Capability.TITLES,
    "session_id": Capability.SESSION_IDS,
    "user_id": Capability.USER_SCOPE,
    "message_id": Capability.IDEMPOTENT_IDS,
    "messages[0].role": Capability.BATCH,
    "messages[0].content": Capability.BATCH,
    "messages[1].message_id": Capability.BATCH | Capability.IDEMPOTENT_IDS,
}
"""The capabilities that a call of `WITH_TEXT` needs."""


async def set_title(memory: Memory, session: str, text: Any) -> None:
    """Set a session's title; not in `WITH_TEXT`, because its argument is named `title` as well."""
    await memory.update_session_title(session, text)


class TextContract(Binding):
    """The promises on `title`, `role`, `content`, `user_id` and ids."""

    @clause(
        "FM-TXT-001",
        promise="A message's content is returned byte for byte: emoji, NFC and NFD, CRLF, BOM, spaces, SQL, empty.",
        impact="The words of a user or a model change silently, and so does the prompt built from them.",
    )
    async def test_content_is_byte_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await together(memory.add_message(session, name, text) for name, text in TEXTS.items())
        if Capability.BATCH in store.capabilities:
            await memory.add_messages(session, [{"role": name, "content": text} for name, text in TEXTS.items()])
        history = await memory.get_history(session)
        assert len(history) == len(TEXTS) * (2 if Capability.BATCH in store.capabilities else 1)
        for message in history:
            assert message["content"] == TEXTS[message["role"]], f"content changed: {message['role']}"

    @clause(
        "FM-TXT-002",
        promise="A title is returned byte for byte, whether `create_session`, `update_session_title`, an update or a "
        "fork set it.",
        impact="Users see a different title from the one they typed.",
        needs=Capability.SESSIONS | Capability.TITLES,
    )
    async def test_title_is_byte_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()

        async def come_back(name: str, text: str) -> None:
            created, renamed = await memory.create_session(text), await memory.create_session("before")
            await memory.update_session_title(renamed, text)
            titled = {"create_session": created, "update_session_title": renamed}
            if Capability.SESSION_UPDATES in store.capabilities:
                titled["update_session"] = await memory.create_session("before")
                await memory.update_session(titled["update_session"], title=text)
            if Capability.FORK in store.capabilities:
                titled["fork_session"] = await memory.fork_session(created, title=text)
            for call, session in titled.items():
                found = await memory.get_session(session)
                assert found is not None
                assert found["title"] == text, f"title changed by {call}: {name}"

        await together(come_back(name, text) for name, text in TEXTS.items())
        listed = [row["title"] for row in await memory.get_sessions(None)]
        assert {*listed} == {*TEXTS.values()}, "title changed by get_sessions"
        assert len({listed.count(text) for text in TEXTS.values()}) == 1, "title changed by get_sessions"

    @clause(
        "FM-TXT-003",
        promise="A role is returned byte for byte, neither corrected nor translated; any text except the empty text is "
        "a role, and a message of any role keeps its place.",
        impact="Messages change their speaker, an application's own roles are lost, or system prompts move.",
        needs=Capability.BATCH,
    )
    async def test_role_is_byte_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        roles = [text for text in (*TEXTS.values(), *SPEAKERS) if text]
        await memory.add_messages(session, [{"role": role, "content": ""} for role in roles])
        await together(memory.add_message(session, role, "") for role in roles)
        stored = [message["role"] for message in await memory.get_history(session)]
        assert stored[: len(roles)] == roles
        assert sorted(stored[len(roles) :]) == sorted(roles)

    @clause(
        "FM-TXT-004",
        promise="A user id is returned byte for byte and selects only that user's sessions.",
        impact="One user sees another user's conversations.",
        needs=Capability.SESSIONS | Capability.USER_SCOPE,
    )
    async def test_user_id_is_byte_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        users = list(dict.fromkeys([*NAMES.values(), *LOOKALIKES, *TWIN_IDS, ""]))
        sessions = await together(memory.create_session(user_id=user) for user in users)
        listings = await together(memory.get_sessions(user_id=user) for user in users)
        for user, session, found in zip(users, sessions, listings, strict=True):
            assert [(row["id"], row["user_id"]) for row in found] == [(session, user)]

    @clause(
        "FM-TXT-005",
        promise="Session ids are compared byte for byte: no case folding, normalisation, trimming or patterns.",
        impact="Two conversations become one, or one is found under another's id.",
        needs=Capability.SESSIONS | Capability.SESSION_IDS | Capability.TITLES,
    )
    async def test_session_ids_are_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        ids = [each for each in dict.fromkeys([*NAMES.values(), *LOOKALIKES]) if len(each) <= store.max_id_length]
        assert await together(memory.create_session(session, session_id=session) for session in ids) == ids
        for session, found in zip(ids, await together(map(memory.get_session, ids)), strict=True):
            assert found is not None
            assert (found["id"], found["title"]) == (session, session)

    @clause(
        "FM-TXT-006",
        promise="Message ids are compared byte for byte, by retries and by `before`.",
        impact="A message is mistaken for a retry of another and dropped.",
        needs=Capability.MESSAGE_IDS | Capability.IDEMPOTENT_IDS | Capability.CURSOR,
    )
    async def test_message_ids_are_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = [each for each in dict.fromkeys([*NAMES.values(), *LOOKALIKES]) if len(each) <= store.max_id_length]
        made = await together(memory.add_message(session, "user", each, message_id=each) for each in ids)
        assert made == ids
        stored = [message["id"] for message in await memory.get_history(session)]
        assert sorted(stored) == sorted(ids)
        pages = await together(memory.get_history(session, 1, before=message_id) for message_id in stored)
        for at, page in enumerate(pages):
            assert [message["id"] for message in page] == stored[max(at - 1, 0) : at]

    @clause(
        "FM-TXT-007",
        promise="A `str` subclass is stored as the text it holds and returned as plain `str`.",
        impact="Enum members and marked-up strings are stored as their display text, or returned as types the reader "
        "does not expect.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.USER_SCOPE
        | Capability.TITLES,
    )
    async def test_subclasses_come_back_plain(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session(Shout("t"), session_id=Shout("s"), user_id=Colour.RED)
        ids = [
            await memory.add_message(Shout("s"), Shout("r"), Shout("c"), message_id=Shout("m")),
            *await memory.add_messages(
                session, [{"role": Colour.RED, "content": Shout("c"), "message_id": Shout("n")}]
            ),
        ]
        found = await memory.get_session(Shout("s"))
        assert found is not None
        first, second = await memory.get_history(session)
        seen = [session, *ids, *(found[key] for key in ("id", "title", "user_id"))]
        seen += [row[key] for row in (first, second) for key in ("id", "role", "content")]
        assert seen == ["s", "m", "n", "s", "t", "red", "m", "r", "c", "n", "red", "c"]
        assert {type(text) for text in seen} == {str}
        assert [row["id"] for row in await memory.get_sessions(user_id=Shout("red"))] == ["s"]
        if Capability.CURSOR in store.capabilities:
            assert await memory.get_history(Shout("s"), before=Shout("n")) == [first]
        await memory.update_session_title(Shout("s"), Shout("renamed"))
        found = await memory.get_session("s")
        assert found is not None
        assert (found["title"], type(found["title"])) == ("renamed", str)
        await memory.delete_session(Shout("s"))
        assert await memory.get_session("s") is None

    @clause(
        "FM-TXT-008",
        promise="Text with a NUL is rejected; the error names the argument and the offset.",
        impact="One engine truncates the text at the NUL, another fails in the driver.",
    )
    async def test_nul_is_refused(self, store: StoreUnderTest) -> None:
        await _refuses_texts(store, NUL_TEXTS)

    @clause(
        "FM-TXT-009",
        promise="Text with a lone surrogate is rejected; the error names the argument and the offset.",
        impact="Half an emoji fails in the driver, or can be written but never read.",
    )
    async def test_lone_surrogates_are_refused(self, store: StoreUnderTest) -> None:
        await _refuses_texts(store, SURROGATE_TEXTS)

    @clause(
        "FM-TXT-010",
        promise="A value that is not a `str` is a type error that names the argument; nothing is converted.",
        impact="`1` becomes '1' on one engine and an error on the other.",
    )
    async def test_other_types_are_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()

        async def refuse(argument: str, call: CallWithText, value: Any) -> None:
            with pytest.raises(InvalidInputError) as caught:
                await call(memory, session, value)
            assert isinstance(caught.value, TypeError), f"{argument}={value!r} raised {caught.value!r}"
            assert argument in str(caught.value), f"{caught.value!r} does not name {argument}"

        async def refuse_none(call: CallWithText) -> None:
            with pytest.raises(TypeError):
                await call(memory, session, None)

        calls = _calls_with_text(store)
        await together(refuse(argument, call, value) for argument, call in calls for value in NOT_TEXTS)
        required = {"role", "content", "title", "user_id"}
        await together(refuse_none(call) for argument, call in calls if argument in required)

    @clause(
        "FM-TXT-011",
        promise="An empty role is rejected.",
        impact="Messages without a speaker reach the model, which rejects the whole conversation.",
    )
    async def test_empty_role_is_refused(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        for argument, call in _calls_with_text(store):
            if argument in {"role", "messages[0].role"}:
                with pytest.raises(InvalidInputError) as caught:
                    await call(memory, session, "")
                assert argument in str(caught.value)
        assert await memory.get_history(session) == []

    @clause(
        "FM-TXT-012",
        promise="Invalid input is rejected before anything is written: nothing is stored, and no time changes.",
        impact="An error leaves half a message, or a session that looks active.",
        needs=Capability.SESSIONS,
    )
    async def test_refused_input_leaves_nothing(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        await memory.add_message(session, "user", "kept")
        before = await memory.get_sessions(), await memory.get_history(session)

        async def refuse(call: CallWithText, value: Any) -> None:
            with pytest.raises(InvalidInputError):
                await call(memory, session, value)

        values = ("nul\x00", "\ud800", 7)
        await together(refuse(call, value) for _, call in _calls_with_text(store) for value in values)
        assert (await memory.get_sessions(), await memory.get_history(session)) == before

    @clause(
        "FM-TXT-030",
        promise="The store holds the role and the content byte for byte as they were given, also for another client.",
        impact="The backend hides that it changed the words: a restart, a backup or another program shows others.",
        needs=Capability.MESSAGE_IDS | Capability.DURABLE,
    )
    async def test_stored_text_is_byte_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        given = {name: {"role": text or "user", "content": text} for name, text in TEXTS.items()}
        ids = await together(memory.add_message(session, text or "user", text) for text in TEXTS.values())
        for message_id, (name, message) in zip(ids, given.items(), strict=True):
            await _compare_stored(store, session, message_id, message, f"add_message, {name}")
        if Capability.BATCH in store.capabilities:
            made = await memory.add_messages(session, list(given.values()))  # type: ignore[arg-type]  # typed dicts
            for message_id, (name, message) in zip(made, given.items(), strict=True):
                await _compare_stored(store, session, message_id, message, f"add_messages, {name}")

    @clause(
        "FM-TXT-031",
        promise="The store holds a message's metadata as it was given, by type and value, as another client reads it.",
        impact="The backend hides that it changed citations or flags: another program reads others.",
        needs=Capability.MESSAGE_IDS | Capability.MESSAGE_METADATA | Capability.DURABLE,
    )
    async def test_stored_metadata_is_exact(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        ids = await together(memory.add_message(session, "user", "text", metadata) for metadata in METADATA.values())
        for (name, metadata), message_id in zip(METADATA.items(), ids, strict=True):
            await _compare_stored(store, session, message_id, {"metadata": metadata}, name)


async def _compare_stored(
    store: StoreUnderTest, session: str, message_id: str, given: dict[str, Any], name: str
) -> None:
    stored = await store.read_raw(session, message_id, needed=next(key for key in given if key != "role"))
    for key in given.keys() & stored.keys():
        equal = same(stored[key], given[key])
        assert equal, f"the store holds another {key} ({name}): {stored[key]!r:.100}, not {given[key]!r:.100}"


async def _refuses_texts(store: StoreUnderTest, texts: dict[str, int]) -> None:
    memory = store.open()
    session = await memory.create_session()

    async def refuse(argument: str, call: CallWithText, text: str, offset: int) -> None:
        with pytest.raises(InvalidInputError) as caught:
            await call(memory, session, text)
        words = str(caught.value).replace(",", " ").replace(";", " ").split()
        assert argument in str(caught.value), f"{caught.value!r} does not name {argument}"
        assert str(offset) in words, f"{caught.value!r} does not name the offset {offset}"

    calls = _calls_with_text(store)
    await together(refuse(*call, *text) for call in calls for text in texts.items())


def _calls_with_text(store: StoreUnderTest) -> list[tuple[str, CallWithText]]:
    """Return the calls that the backend claims to support."""
    calls = [*WITH_TEXT.items(), ("title", set_title)]
    return [(argument, call) for argument, call in calls if NEEDS.get(argument, NOTHING) in store.capabilities]
