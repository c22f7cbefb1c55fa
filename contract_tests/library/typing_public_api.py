"""A caller's code for the type checkers; it is checked, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

from flux_memory import (
    ConversationMemory,
    FluxMemoryError,
    Memory,
    Message,
    NewMessage,
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
    assert_type(await memory.get_session(session), Session | None)
    assert_type(await memory.count_sessions(), int)
    await memory.update_session_title(session, "Trip to Busan")
    await memory.delete_session(session)
    await memory.clear_all()


async def open_each(path: Path) -> None:
    async with ConversationMemory(path, timeout=5) as memory:
        assert_type(memory, ConversationMemory)
        await use(memory)
    async with PostgresConversationMemory("postgresql://localhost/chat", min_size=1, max_size=4) as postgres:
        await use(postgres)
    async with create_memory(Settings(database_backend="sqlite")) as chosen:
        assert_type(chosen, Memory)
        try:
            await use(chosen)
        except FluxMemoryError as error:
            print(error)
    every: list[Memory] = [ConversationMemory(), PostgresConversationMemory()]
    for one in every:
        await one.close()
