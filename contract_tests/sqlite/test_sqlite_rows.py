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
        ("revision", b"\xff"),
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
    table, key = ("session_details", "session_id") if column in {"metadata", "title"} else ("sessions", "id")
    execute_in_file(path, f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {key} = 'one'", value)
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
    """The original's column of messages allows NULL, and other programs may write it."""
    await memory.add_message("one", "user", "x", message_id="m")
    execute_in_file(path, "UPDATE messages SET metadata = NULL WHERE id = 'm'")
    assert await memory.add_message("one", "user", "x", message_id="m") == "m"
    with pytest.raises(ConflictError):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")


@pytest.mark.asyncio
async def test_a_session_without_details_has_no_title_and_no_metadata(memory: ConversationMemory, path: Path) -> None:
    """Another program may insert a session alone; every method reads it, and a change stores what it lacks."""
    when = "2026-02-05T12:00:00.000000+00:00"
    execute_in_file(path, "INSERT INTO sessions (id, created_at, updated_at) VALUES ('bare', ?, ?)", when, when)
    session = await memory.get_session("bare")
    assert session is not None
    assert (session["title"], session["metadata"]) == ("", {})
    assert session["revision"]
    assert session in await memory.get_sessions()
    assert [each["id"] for each in await memory.get_sessions(metadata={})] == ["two", "one", "bare"]
    assert await memory.count_sessions(metadata={}) == 3
    copy = await memory.fork_session("bare", title="copy")
    await memory.update_session("bare", merge_metadata={"a": 1})
    await memory.update_session_title("bare", "titled")
    titles = {each["id"]: (each["title"], each["metadata"]) for each in await memory.get_sessions()}
    assert titles == {"bare": ("titled", {"a": 1}), copy: ("copy", {}), "one": ("", {}), "two": ("", {})}


@pytest.mark.asyncio
async def test_details_that_a_deleted_session_left_are_not_those_of_a_new_one(
    memory: ConversationMemory, path: Path
) -> None:
    """Another program may delete a session without foreign keys; the title and the metadata do not come back."""
    execute_in_file(
        path, "INSERT INTO session_details (session_id, title, metadata) VALUES ('new', 'old', '{\"a\":1}')"
    )
    await memory.add_message("new", "user", "x", create=True)
    session = await memory.get_session("new")
    assert session is not None
    assert (session["title"], session["metadata"]) == ("", {})
    assert await memory.count_sessions(metadata={"a": 1}) == 0


@pytest.mark.asyncio
async def test_an_error_keeps_its_cause_and_names_the_file(memory: ConversationMemory, path: Path) -> None:
    """A dropped table raises an error of the library that names the path and keeps the driver's error as its cause."""
    execute_in_file(path, "DROP TABLE messages")
    with pytest.raises(FluxMemoryError, match="no such table: messages") as caught:
        await memory.get_history("one")
    assert str(path) in str(caught.value)
    assert "sqlite3.OperationalError" in "".join(traceback.format_exception(caught.value))
