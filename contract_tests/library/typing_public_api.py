"""A caller's code for the type checkers; it is checked, never run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

from flux_memory import (
    ConversationMemory,
    FluxMemoryError,
    Memory,
    Message,
    NewMessage,
    PoolStats,
    PostgresConversationMemory,
    Session,
    Settings,
    create_memory,
)


async def use(memory: Memory) -> None:
    session = await memory.create_session("Trip to Seoul", {"lang": "ko"}, user_id="ann")
    assert_type(session, str)
    assert_type(await memory.add_message(session, "user", "Hello", message_id="m-1"), str)
    batch: list[NewMessage] = [{"role": "user", "content": "one"}, {"role": "user", "content": "two", "metadata": {}}]
    assert_type(await memory.add_messages(session, batch), list[str])
    history = await memory.get_history(session, limit=20, before="m-1")
    assert_type(history, list[Message])
    assert_type(history[0]["metadata"], dict[str, Any])
    assert_type(await memory.get_sessions(limit=None, offset=10, user_id="ann", metadata={"lang": "ko"}), list[Session])
    page = await memory.get_sessions(before=(await memory.get_sessions(1))[-1], with_metadata=False)
    assert_type(page[0]["revision"], str)
    assert_type(await memory.get_session(session), Session | None)
    assert_type(await memory.count_sessions(user_id="ann", metadata={"lang": "ko"}), int)
    await memory.update_session_title(session, "Trip to Busan")
    await change(memory, session)
    await memory.delete_session(session, expected_revision="r")
    assert_type(await memory.delete_sessions(user_id="ann", inactive_since=datetime.now(UTC)), int)
    await memory.clear_all()


async def change(memory: Memory, session: str) -> None:
    assert_type(await memory.add_message("new", "user", "Hello", create=True, user_id="ann"), str)
    assert_type(await memory.add_messages("new", [], create=True, user_id="ann"), list[str])
    assert_type(await memory.get_history(session, after="m-1"), list[Message])
    assert_type(await memory.get_message(session, "m-1"), Message | None)
    assert_type(await memory.pop_message(session), Message | None)
    assert_type(await memory.fork_session(session, through="m-1", new_session_id="copy", title="Copy"), str)
    changed = await memory.update_session(
        session,
        expected_revision="r",
        title="new",
        merge_metadata={"lang": "en", "tags": None},
        remove_metadata=["draft"],
        truncate_from="m-1",
        messages=[{"role": "user", "content": "again"}],
    )
    assert_type(changed, Session)


async def open_each(path: Path) -> None:
    async with ConversationMemory(path, timeout=5) as memory:
        assert_type(memory, ConversationMemory)
        await use(memory)
    async with PostgresConversationMemory("postgresql://localhost/chat", min_size=1, max_size=4) as postgres:
        await use(postgres)
    async with create_memory(Settings(database_backend="sqlite")) as chosen:
        assert_type(chosen, ConversationMemory | PostgresConversationMemory)
        assert_type(await chosen.ping(), float)
        assert_type(chosen.pool_stats(), PoolStats)
        try:
            await use(chosen)
        except FluxMemoryError as error:
            print(error)
    every: list[Memory] = [ConversationMemory(), PostgresConversationMemory()]
    for one in every:
        await one.close()
