"""Clauses on the current state: it has every message, nothing of a deleted session, and each handle answers from it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from flux_memory import ConflictError, Memory, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import same
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents

NEEDED: Final = (
    Capability.BATCH
    | Capability.MESSAGE_IDS
    | Capability.IDEMPOTENT_IDS
    | Capability.CURSOR
    | Capability.SESSIONS
    | Capability.SESSION_IDS
    | Capability.TITLES
)
EVERYTHING: Final = (
    NEEDED | Capability.SESSION_METADATA | Capability.METADATA_FILTER | Capability.USER_SCOPE | Capability.CLEAR_ALL
)

QUESTIONS: Final[dict[str, Callable[[Memory], Awaitable[Any]]]] = {
    "get_session": lambda memory: memory.get_session("s"),
    "get_session of a new id": lambda memory: memory.get_session("new"),
    "get_history": lambda memory: memory.get_history("s"),
    "get_history of a new id": lambda memory: memory.get_history("new"),
    "get_history with before": lambda memory: memory.get_history("s", 2, before="m1"),
    "get_history with an unknown before": lambda memory: memory.get_history("s", before="m3"),
    "get_sessions": lambda memory: memory.get_sessions(),
    "get_sessions of a user": lambda memory: memory.get_sessions(user_id="u"),
    "get_sessions by metadata": lambda memory: memory.get_sessions(metadata={"k": 1}),
    "count_sessions": lambda memory: memory.count_sessions(),
}
"""The reads that a handle may be tempted to answer from a cache."""

_NEWEST: Final[Any] = {
    **dict.fromkeys(("id", "user_id", "title", "revision"), ""),
    **dict.fromkeys(("created_at", "updated_at"), "9999-12-31T23:59:59.999999+00:00"),
    "metadata": {},
    "message_count": 0,
}
"""A record that each list has before its first session."""
MORE_QUESTIONS: Final[dict[str, tuple[Capability, Callable[[Memory], Awaitable[Any]]]]] = {
    "get_history with after": (Capability.FORWARD_CURSOR, lambda memory: memory.get_history("s", 2, after="m0")),
    "get_message": (Capability.MESSAGE_LOOKUP, lambda memory: memory.get_message("s", "m1")),
    "a page of get_sessions": (Capability.LIST_CURSOR, lambda memory: memory.get_sessions(before=_NEWEST)),
    "a short list": (Capability.LIST_CURSOR, lambda memory: memory.get_sessions(with_metadata=False)),
    "count_sessions of a user": (Capability.COUNT_FILTER, lambda memory: memory.count_sessions(user_id="u")),
    "count_sessions by metadata": (Capability.COUNT_FILTER, lambda memory: memory.count_sessions(metadata={"k": 1})),
}
"""The reads that a memory may have beside those, with what they need."""

CHANGES: Final[dict[str, Callable[[Memory], Awaitable[Any]]]] = {
    "create_session": lambda memory: memory.create_session("t", {"k": 1}, session_id="s", user_id="u"),
    "add_messages": lambda memory: memory.add_messages("s", [_message("m0"), _message("m1")]),
    "add_message": lambda memory: memory.add_message("s", "user", "m2", message_id="m2"),
    "update_session_title": lambda memory: memory.update_session_title("s", "renamed"),
    "create_session of a second one": lambda memory: memory.create_session(
        "t", {"k": 1}, session_id="new", user_id="u"
    ),
    "add_message to the second one": lambda memory: memory.add_message("new", "user", "m3", message_id="m3"),
    "delete_session": lambda memory: memory.delete_session("s"),
    "create_session of a deleted one": lambda memory: memory.create_session(session_id="s"),
    "add_messages to the new one": lambda memory: memory.add_messages("s", [_message("m1"), _message("m3")]),
    "clear_all": lambda memory: memory.clear_all(),
}
"""The calls that change an answer, in an order in which each succeeds."""

WRITES: Final[tuple[Callable[[Memory], Awaitable[Any]], ...]] = (
    lambda memory: memory.update_session_title("s", "t"),
    lambda memory: memory.add_message("s", "user", "x", message_id="x"),
    lambda memory: memory.add_messages("s", [_message("y")]),
)
"""The writes that need an existing session."""


class CurrentStateContract(Binding):
    """The promises of answers and writes after a change."""

    @clause(
        "FM-SES-014",
        promise="A session that is created under the id of a deleted or cleared one has nothing of it: no title, "
        "metadata, owner, time, message, count or cursor.",
        impact="A deleted conversation, or its owner, comes back with a new one.",
        needs=EVERYTHING | Capability.TIMESTAMPS,
    )
    async def test_a_recreated_session_is_new(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for remove in (CHANGES["delete_session"], CHANGES["clear_all"]):
            for change in list(CHANGES.values())[:4]:
                await change(memory)
            await remove(memory)
            await memory.create_session(session_id="s")
            found = await memory.get_session("s")
            assert found is not None
            assert (found["title"], found["user_id"], found["metadata"]) == ("", "", {})
            assert (found["message_count"], found["updated_at"]) == (0, found["created_at"])
            assert await memory.get_sessions() == [found]
            assert await memory.get_sessions(user_id="u") == []
            assert await memory.get_sessions(metadata={"k": 1}) == []
            assert await memory.get_history("s") == []
            await memory.add_message("s", "user", "m2", message_id="m2")
            assert contents(await memory.get_history("s")) == ["m2"]
            assert await memory.get_history("s", before="m1") == []
            found = await memory.get_session("s")
            assert found is not None
            assert found["message_count"] == 1
            await memory.delete_session("s")

    @clause(
        "FM-SES-015",
        promise="Each change is visible to every handle in every read, also to a handle that was given another answer "
        "before.",
        impact="A worker shows a deleted conversation, or an old title, until it is restarted.",
        needs=EVERYTHING | Capability.SEVERAL_HANDLES,
    )
    async def test_no_answer_is_out_of_date(self, store: StoreUnderTest) -> None:
        handles, claimed = [store.open(), store.open()], store.capabilities
        for memory in handles:
            await _answers(memory, claimed)
        for at, (name, change) in enumerate(CHANGES.items()):
            await change(handles[at % 2])
            # A handle that never asked before has no answer to remember.
            async with store.open() as unbiased:
                expected, *found = await asyncio.gather(*(_answers(each, claimed) for each in (unbiased, *handles)))
            for answers, whose in zip(found, ("first", "second"), strict=True):
                for question, answer in answers.items():
                    assert same(answer, expected[question]), f"{question} of the {whose} handle, after {name}"
        assert not any(expected.values()), "clear_all left something"

    @clause(
        "FM-SES-016",
        promise="Each write acts on the current state, also through a handle that has seen another: sessions and "
        "messages that other handles created, deleted or created anew.",
        impact="A worker adds to a conversation that is gone, or rejects one that exists.",
        needs=NEEDED | Capability.SEVERAL_HANDLES,
    )
    async def test_writes_act_on_the_current_state(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        # The second handle learns that the session is missing, then that it exists, then that it is gone.
        for write in WRITES:
            with pytest.raises(SessionNotFoundError):
                await write(other)
        await memory.create_session(session_id="s")
        await memory.add_message("s", "user", "m", message_id="m")
        with pytest.raises(ConflictError):
            await other.create_session(session_id="s")
        await other.add_message("s", "user", "m", message_id="m")
        with pytest.raises(ConflictError):
            await other.add_message("s", "user", "another", message_id="m")
        for write in WRITES:
            await write(other)
        assert contents(await other.get_history("s")) == ["m", "x", "y"]
        await memory.update_session_title("s", "renamed")
        await other.add_message("s", "user", "z")
        found = await memory.get_session("s")
        assert found is not None
        assert (found["message_count"], found["title"]) == (4, "renamed")
        await memory.delete_session("s")
        for write in WRITES:
            with pytest.raises(SessionNotFoundError):
                await write(other)
        await other.delete_session("s")
        await other.create_session(session_id="s")
        await memory.delete_session("s")
        await memory.create_session(session_id="s")
        for write in WRITES:
            await write(other)
        # Known to the second handle from the session's first life.
        await other.add_message("s", "user", "m", message_id="m")
        for handle in (memory, other):
            assert contents(await handle.get_history("s")) == ["x", "y", "m"]
            found = await handle.get_session("s")
            assert found is not None
            assert (found["message_count"], found["title"]) == (3, "t")

    @clause(
        "FM-SES-017",
        promise="A message of any role and text counts and makes its session active; it changes nothing else of the "
        "session.",
        impact="A conversation that ends with an answer, or with an empty message, looks unchanged.",
        needs=Capability.SESSIONS | Capability.TIMESTAMPS,
    )
    async def test_every_message_counts(self, store: StoreUnderTest) -> None:
        memory = store.open()
        session = await memory.create_session()
        created = await memory.get_session(session)
        assert created is not None
        said = [("user", "text"), ("assistant", "text"), ("system", ""), ("tool", "{}"), ("assistant", ""), ("x", " ")]
        for count, (role, content) in enumerate(said, 1):
            await memory.add_message(session, role, content)
            (newest,) = await memory.get_history(session, 1)
            found = await memory.get_session(session)
            assert await memory.get_sessions() == [found]
            assert found is not None
            new = {"message_count": count, "updated_at": newest["created_at"], "revision": found["revision"]}
            assert found == {**created, **new}

    @clause(
        "FM-SES-018",
        promise="A handle sees what others store after any call of its own: one that was refused, found nothing or "
        "filtered a list.",
        impact="After one rejected change a worker shows old conversations until it writes again.",
        needs=NEEDED | Capability.SEVERAL_HANDLES,
    )
    async def test_no_call_stops_the_clock(self, store: StoreUnderTest) -> None:
        memory, other = store.open(), store.open()
        await memory.create_session("t", session_id="s")
        await memory.add_message("s", "user", "m", message_id="m")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "a message of the same id": lambda: memory.add_message("s", "user", "another", message_id="m"),
            "a batch with such a message": lambda: memory.add_messages(
                "s", [_message("b"), _message("m") | {"role": "r"}]
            ),
            "a session of the same id": lambda: memory.create_session(session_id="s"),
            "an add to no session": lambda: memory.add_message("none", "user", "text"),
            "a title of no session": lambda: memory.update_session_title("none", "text"),
            "a page before no message": lambda: memory.get_history("s", before="none"),
            "an invalid limit": lambda: memory.get_history("s", -1),
        }
        optional: dict[Capability, Callable[[], Awaitable[Any]]] = {
            Capability.METADATA_FILTER: lambda: memory.get_sessions(metadata={"k": [{"l": 1}]}),
            Capability.USER_SCOPE: lambda: memory.get_sessions(user_id="u"),
            Capability.COUNT_FILTER | Capability.USER_SCOPE: lambda: memory.count_sessions(user_id="u"),
            Capability.SESSION_UPDATES | Capability.REVISIONS: lambda: memory.update_session(
                "s", expected_revision="none", title="late"
            ),
            Capability.SESSION_UPDATES | Capability.TRUNCATE: lambda: memory.update_session("s", truncate_from="none"),
            Capability.REVISIONS: lambda: memory.delete_session("s", expected_revision="none"),
            Capability.POP: lambda: memory.pop_message("none"),
            Capability.FORK: lambda: memory.fork_session("s", through="none"),
            Capability.RETENTION | Capability.USER_SCOPE: lambda: memory.delete_sessions(user_id="u"),
            Capability.MESSAGE_LOOKUP: lambda: memory.get_message("s", "none"),
        }
        calls |= {needed.words: call for needed, call in optional.items() if needed in store.capabilities}
        said = ["m"]
        for name, call in calls.items():
            await asyncio.gather(call(), return_exceptions=True)
            assert contents(await memory.get_history("s")) == said, f"after {name}"
            await other.add_message("s", "user", name)
            said.append(name)
            history, record, rows = await asyncio.gather(
                memory.get_history("s"), memory.get_session("s"), memory.get_sessions()
            )
            assert contents(history) == said, f"{name}: the history is out of date"
            assert record is not None
            assert record["message_count"] == len(said), f"{name}: the record is out of date"
            assert rows == [record], f"{name}: the list is out of date"


def _message(message_id: str) -> Any:
    return {"role": "user", "content": message_id, "message_id": message_id}


async def _answers(memory: Memory, claimed: Capability) -> dict[str, Any]:
    asked = QUESTIONS | {name: ask for name, (needed, ask) in MORE_QUESTIONS.items() if needed in claimed}
    return dict(zip(asked, await asyncio.gather(*(ask(memory) for ask in asked.values())), strict=True))
