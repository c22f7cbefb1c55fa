"""Counts the commands that one server of a cluster sends to another for a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import pytest
from cluster_stores import COORDINATOR, in_schema

from flux_memory import PostgresConversationMemory

HELLO: Final = {"role": "user", "content": "Hello"}
CALLS: Final[dict[str, Callable[[PostgresConversationMemory], Awaitable[Any]]]] = {
    "create_session": lambda memory: memory.create_session("Two", {"a": 1}, session_id="two"),
    "add_message": lambda memory: memory.add_message("one", "user", "Hello"),
    "add_messages": lambda memory: memory.add_messages("one", [HELLO, HELLO, HELLO]),
    "update_session": lambda memory: memory.update_session("one", title="One", messages=[HELLO]),
    "update_session_title": lambda memory: memory.update_session_title("one", "First"),
    "pop_message": lambda memory: memory.pop_message("one"),
    "get_history": lambda memory: memory.get_history("one"),
    "get_history before": lambda memory: memory.get_history("one", before="first"),
    "get_message": lambda memory: memory.get_message("one", "first"),
    "get_session": lambda memory: memory.get_session("one"),
    "delete_session": lambda memory: memory.delete_session("one"),
}
"""The calls on one session."""


@pytest.mark.asyncio
# The driver warns of the listener when the connection returns to the pool, which removes it.
@pytest.mark.filterwarnings("ignore::asyncpg.InterfaceWarning")
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_on_one_session_is_one_remote_command(emptied: str, name: str) -> None:
    """More commands would cost round trips, and a commit in two phases would need every worker."""
    sent: list[str] = []

    async def record(connection: Any) -> None:
        connection.add_log_listener(lambda _, message: sent.append(message.message))

    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn) as memory:
        await memory.create_session(session_id="one")
        await memory.add_message("one", "user", "Hello", message_id="first")
    logged = f"{dsn}&citus.log_remote_commands=on&client_min_messages=log"
    async with asyncpg.create_pool(logged, min_size=1, max_size=1, setup=record) as pool:
        memory = PostgresConversationMemory(pool=pool)
        await memory.count_sessions()
        # The first call opens the connection between the servers.
        await memory.get_session("one")
        sent.clear()
        await CALLS[name](memory)
        await memory.close()
    issued = [text for text in sent if text.startswith("issuing")]
    assert len(issued) == 1, issued
