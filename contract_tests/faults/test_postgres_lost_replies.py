"""Tests writes whose reply the network loses: each takes effect once, and its error is true."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from fault_outcomes import measure_call
from fault_report import Fault
from postgres_proxy import PostgresProxy
from raw_postgres import fetch_rows

from flux_memory import (
    ConflictError,
    Memory,
    OutcomeUnknownError,
    PostgresConversationMemory,
    SessionNotFoundError,
    deadline,
)

WRITES: dict[str, Callable[[Memory], Awaitable[object]]] = {
    "create_session": lambda memory: memory.create_session("title", {"a": 1}),
    "create_session with an id": lambda memory: memory.create_session("title", {"a": 1}, session_id="new"),
    "add_message": lambda memory: memory.add_message("s", "user", "x", {"a": 1}),
    "add_message with an id": lambda memory: memory.add_message("s", "user", "x", message_id="m"),
    "add_messages": lambda memory: memory.add_messages("s", [{"role": "user", "content": f"{n}"} for n in range(3)]),
    "update_session_title": lambda memory: memory.update_session_title("s", "new"),
    "delete_session": lambda memory: memory.delete_session("s"),
    "clear_all": lambda memory: memory.clear_all(),
}


@pytest.mark.asyncio
@pytest.mark.fault("reply to COMMIT lost", backend="postgres")
@pytest.mark.parametrize("name", WRITES)
async def test_a_call_with_a_lost_reply_is_done_once(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, name: str
) -> None:
    """The first attempt took effect without a reply; the second finds that, and the call takes effect once."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        for _ in fault.rounds(2, 50):
            await memory.clear_all()
            await memory.create_session(session_id="s")
            proxy.lose_reply_to("sync")
            took, error = await measure_call(WRITES[name](memory), 5)
            assert error is None
            stored = {session["id"]: session["message_count"] for session in await memory.get_sessions()}
            expected = {"add_message": 1, "add_messages": 3}.get(name.split(" ", maxsplit=1)[0], 0)
            assert stored.get("s", 0) == expected
            assert len(stored) == {"create": 2, "delete": 0, "clear": 0}.get(name.partition("_")[0], 1)
            assert len(await fetch_rows(flux_empty_database, "SELECT FROM messages")) == expected
            fault.add(acknowledged=1, call=took, outage=took)


@pytest.mark.asyncio
@pytest.mark.fault("reply to COMMIT of feedback lost", backend="postgres")
async def test_feedback_with_a_lost_reply_is_stored_once(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault
) -> None:
    """The second attempt finds the entry by its id, which was made before the first; an erasure is repeated."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        for _ in fault.rounds(2, 50):
            await memory.clear_all()
            await memory.create_session(session_id="s", user_id="ann")
            proxy.lose_reply_to("query", containing=b"COMMIT")
            took, error = await measure_call(memory.feedback.add("s", 1, comment="x", metadata={"a": 1}), 5)
            assert error is None
            assert await fetch_rows(flux_empty_database, "SELECT user_id, comment FROM feedback") == [("ann", "x")]
            await memory.feedback.add("s", 1, feedback_id="f")
            proxy.lose_reply_to("query", containing=b"COMMIT")
            with pytest.raises(ConflictError):
                await memory.feedback.add("s", -1, feedback_id="f")
            proxy.lose_reply_to("sync")
            await memory.feedback.delete("f")
            assert len(await memory.feedback.get()) == 1
            proxy.lose_reply_to("sync")
            outcome = (await measure_call(memory.delete_sessions(user_id="ann"), 5))[1]
            assert outcome is None or isinstance(outcome, OutcomeUnknownError)
            assert await fetch_rows(flux_empty_database, "SELECT FROM feedback") == []
            fault.add(acknowledged=1, call=took, outage=took)


@pytest.mark.asyncio
@pytest.mark.fault("reply to COMMIT lost, refused all the same", backend="postgres")
async def test_a_lost_reply_hides_no_refusal(proxy: PostgresProxy, fault: Fault) -> None:
    """A taken id or a missing session is an error on any network."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        await memory.create_session("theirs", session_id="s")
        await memory.add_message("s", "user", "theirs", message_id="m")
        for call, kind in (
            (lambda: memory.create_session("ours", session_id="s"), ConflictError),
            (lambda: memory.add_message("s", "user", "ours", message_id="m"), ConflictError),
            (lambda: memory.add_message("none", "user", "x"), SessionNotFoundError),
            (lambda: memory.update_session_title("none", "x"), SessionNotFoundError),
        ):
            proxy.lose_reply_to("sync")
            with pytest.raises(kind):
                await call()
        fault.add(acknowledged=2)


@pytest.mark.asyncio
@pytest.mark.fault("reply to COMMIT lost, then refused", backend="postgres")
async def test_a_lost_reply_and_no_way_to_ask(proxy: PostgresProxy, flux_empty_database: str, fault: Fault) -> None:
    """The write is stored, and the error says that it may be; a retry finds out."""
    # A second connection, opened in the round before, would be used instead.
    async with PostgresConversationMemory(proxy.dsn, min_size=1, max_size=1) as memory:
        session = await memory.create_session()
        for number in fault.rounds(2, 50):
            proxy.lose_reply_to("sync")
            proxy.refuse()
            with deadline(0.6):
                took, error = await measure_call(memory.add_message(session, "user", "x", message_id=f"m{number}"), 2)
            assert isinstance(error, OutcomeUnknownError)
            assert "whether the call took effect is not known" in str(error)
            assert len(await fetch_rows(flux_empty_database, "SELECT FROM messages")) == number + 1
            proxy.heal()
            assert await memory.add_message(session, "user", "x", message_id=f"m{number}") == f"m{number}"
            assert len(await memory.get_history(session)) == number + 1
            fault.add(acknowledged=1, call=took, outage=took)
