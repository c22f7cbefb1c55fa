"""Tests errors of a server that has lost a connection of its own: the write may be stored, and runs again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from fault_outcomes import measure_call
from fault_report import Fault
from postgres_proxy import PostgresProxy
from raw_postgres import execute, fetch_rows

from flux_memory import BackendUnavailableError, Memory, OutcomeUnknownError, PostgresConversationMemory, deadline

CODES: Final = ("08000", "08001", "08003", "08004", "08006", "08007")
WRITES: Final[dict[str, Callable[[Memory], Awaitable[object]]]] = {
    "create_session": lambda memory: memory.create_session("title"),
    "create_session with an id": lambda memory: memory.create_session("title", session_id="new"),
    "add_message": lambda memory: memory.add_message("s", "user", "x"),
    "add_message that creates": lambda memory: memory.add_message("new", "user", "x", create=True),
    "add_messages": lambda memory: memory.add_messages("s", [{"role": "user", "content": f"{n}"} for n in range(3)]),
    "update_session": lambda memory: memory.update_session("s", title="new"),
    "update_session_title": lambda memory: memory.update_session_title("s", "new"),
    "fork_session": lambda memory: memory.fork_session("s"),
    "delete_session": lambda memory: memory.delete_session("s"),
}
MESSAGES: Final = {"add_message": 1, "add_message that creates": 1, "add_messages": 3}
SESSIONS: Final = {
    **dict.fromkeys(("create_session", "create_session with an id", "add_message that creates", "fork_session"), 2),
    "delete_session": 0,
}
VIOLATION: Final = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('attempts') < 3 THEN
        RAISE EXCEPTION 'duplicate key value violates unique constraint' USING ERRCODE = 'XX000';
    END IF;
    RETURN new;
END
$$
"""


@pytest.mark.asyncio
@pytest.mark.fault("server reports a lost worker after COMMIT", backend="postgres")
@pytest.mark.parametrize("name", WRITES)
async def test_a_write_whose_worker_was_lost_is_done_once(
    proxy: PostgresProxy, flux_empty_database: str, fault: Fault, name: str
) -> None:
    """The first attempt took effect and the server reported a loss; the second finds that."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        for _ in fault.rounds(1, 20):
            await memory.clear_all()
            await memory.create_session(session_id="s")
            # The statement is prepared, so that the next execution is that of the write.
            proxy.report_loss_of("execute", "08006")
            took, error = await measure_call(WRITES[name](memory), 5)
            assert error is None
            assert len(await memory.get_sessions()) == SESSIONS.get(name, 1)
            assert len(await fetch_rows(flux_empty_database, "SELECT FROM messages")) == MESSAGES.get(name, 0)
            fault.add(acknowledged=1, call=took, outage=took)


@pytest.mark.asyncio
@pytest.mark.fault("server reports lost workers again and again", backend="postgres")
@pytest.mark.parametrize("code", CODES)
async def test_an_outcome_that_stays_unknown_is_said_to_be(proxy: PostgresProxy, fault: Fault, code: str) -> None:
    """A deletion that took effect is not said to have done nothing; a read that fails is not said to be unknown."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1, max_size=1) as memory:
        await memory.create_session(session_id="s")
        proxy.report_loss_of("execute", code, times=1000)
        with pytest.raises(OutcomeUnknownError), deadline(0.5):
            await memory.delete_session("s")
        proxy.report_loss_of("execute", code, times=1000)
        with pytest.raises(BackendUnavailableError) as caught, deadline(0.5):
            await memory.get_session("s")
        assert not isinstance(caught.value, OutcomeUnknownError)
        proxy.report_loss_of("execute", code, times=1)
        assert await memory.get_session("s") is None
        fault.add(acknowledged=1)


@pytest.mark.asyncio
@pytest.mark.fault("server reports a lost worker after a pop", backend="postgres")
async def test_a_pop_whose_worker_was_lost_is_not_repeated(proxy: PostgresProxy, fault: Fault) -> None:
    """The message was removed with the lost answer: a second attempt removes no other."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        await memory.create_session(session_id="s")
        await memory.add_messages("s", [{"role": "user", "content": f"{n}"} for n in range(3)])
        proxy.report_loss_of("execute", "08006")
        with pytest.raises(OutcomeUnknownError):
            await memory.pop_message("s")
        assert [message["content"] for message in await memory.get_history("s")] == ["0", "1"]
        fault.add(acknowledged=1)


@pytest.mark.asyncio
@pytest.mark.fault("protocol violation over a living connection", backend="postgres")
async def test_a_protocol_violation_is_not_a_lost_connection(proxy: PostgresProxy, fault: Fault) -> None:
    """It would be the same at each attempt, so the call ends at once."""
    async with PostgresConversationMemory(proxy.dsn, min_size=1) as memory:
        await memory.create_session(session_id="s")
        proxy.report_loss_of("execute", "08P01", times=1000)
        took, error = await measure_call(memory.get_session("s"), 10)
        assert isinstance(error, BackendUnavailableError)
        assert took < 5
        fault.add(call=took)


@pytest.mark.asyncio
@pytest.mark.fault("unique violation reported as an internal error", backend="postgres")
async def test_an_internal_error_is_tried_again(flux_empty_database: str, fault: Fault) -> None:
    """Of two concurrent retries the second may get XX000 from a sharded server, and finds the message at once."""
    async with PostgresConversationMemory(flux_empty_database, min_size=1) as memory:
        await memory.create_session(session_id="s")
        await execute(
            flux_empty_database,
            "CREATE SEQUENCE attempts",
            VIOLATION,
            "CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        await memory.add_message("s", "user", "x", message_id="m")
        assert [message["id"] for message in await memory.get_history("s")] == ["m"]
        fault.add(acknowledged=1)
