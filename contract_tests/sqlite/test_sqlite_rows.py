"""Tests how the SQLite backend reads rows: corrupt ones are named, NULL metadata is empty, errors keep their cause."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from original_application import read_rows
from raw_sqlite import execute_in_file

from flux_memory import ConversationMemory
from flux_memory.errors import ConflictError, FluxMemoryError


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metadata", "{"),
        ("metadata", b'{"a": "\xff"}'),
        ("title", b"\xff"),
        ("user_id", b"\xff"),
        ("created_at", "never"),
        ("updated_at", "0000-00-00T00:00:00.000000+00:00"),
    ],
)
async def test_a_corrupt_session_is_named_and_hides_nothing_else(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """A listing with that session names it; its messages, other sessions and every other access work."""
    healthy = await memory.create_session(session_id="healthy", metadata={"a": 1}, user_id="ann")
    await memory.add_message("one", "user", "kept")
    execute_in_file(path, f"UPDATE sessions SET {column} = CAST(? AS TEXT) WHERE id = 'one'", value)
    for look in (memory.get_session("one"), memory.get_sessions()):
        with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
            await look
    assert [message["content"] for message in await memory.get_history("one")] == ["kept"]
    assert [session["id"] for session in await memory.get_sessions(metadata={"a": 1})] == [healthy]
    assert [session["id"] for session in await memory.get_sessions(user_id="ann")] == [healthy]
    assert await memory.count_sessions() == 3
    await memory.delete_session("one")
    assert len(await memory.get_sessions()) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("?", "garbage"),
        ("?", b"\xff"),
        ("CAST(? AS TEXT)", b"\xff"),
        ("?", b"2026-02-05T12:00:00.000000+00:00"),
    ],
)
async def test_a_corrupt_time_is_not_passed_on_to_new_messages(
    memory: ConversationMemory, path: Path, sql: str, value: str | bytes
) -> None:
    """An add to a session with an unreadable time fails and names it, before it stores an unreadable message."""
    execute_in_file(path, f"UPDATE sessions SET updated_at = {sql} WHERE id = 'one'", value)
    with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
        await memory.add_message("one", "user", "x")
    assert read_rows(path, "SELECT count(*) FROM messages") == [(0,)]
    await memory.add_message("two", "user", "x")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("column", "value"), [("metadata", "{"), ("metadata", b"\xff"), ("content", b"\xff"), ("role", b"\xff")]
)
async def test_a_retry_of_a_message_that_became_corrupt_is_an_error_that_names_it(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """The message cannot be compared, and no exception of the driver or the parser escapes."""
    await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    execute_in_file(path, f"UPDATE messages SET {column} = CAST(? AS TEXT) WHERE id = 'm'", value)
    with pytest.raises(FluxMemoryError, match="message 'm' cannot be read"):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    assert read_rows(path, "SELECT count(*) FROM messages") == [(1,)]


@pytest.mark.asyncio
async def test_metadata_that_is_null_counts_as_empty(memory: ConversationMemory, path: Path) -> None:
    """The original's column allows NULL, and other programs may write it."""
    execute_in_file(path, "UPDATE sessions SET metadata = NULL WHERE id = 'one'")
    session = await memory.get_session("one")
    assert session is not None
    assert session["metadata"] == {}
    assert await memory.get_sessions(metadata={"a": 1}) == []
    await memory.add_message("one", "user", "x", message_id="m")
    execute_in_file(path, "UPDATE messages SET metadata = NULL WHERE id = 'm'")
    assert await memory.add_message("one", "user", "x", message_id="m") == "m"
    with pytest.raises(ConflictError):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")


@pytest.mark.asyncio
async def test_an_error_keeps_its_cause_and_names_the_file(memory: ConversationMemory, path: Path) -> None:
    """A dropped table raises an error of the library that names the path and keeps the driver's error as its cause."""
    execute_in_file(path, "DROP TABLE messages")
    with pytest.raises(FluxMemoryError, match="no such table: messages") as caught:
        await memory.get_history("one")
    assert str(path) in str(caught.value)
    assert "sqlite3.OperationalError" in "".join(traceback.format_exception(caught.value))
