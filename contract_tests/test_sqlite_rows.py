"""What the SQLite backend does with rows: order whatever the clock says, retries, corrupt rows that are named."""

from __future__ import annotations

import sqlite3
import traceback
from pathlib import Path

import pytest
from original_application import rows
from raw_sqlite import change

from flux_memory import ConversationMemory, NewMessage
from flux_memory.errors import (
    ConflictError,
    FluxMemoryError,
)


@pytest.mark.asyncio
async def test_order_when_the_clock_steps_back(memory: ConversationMemory, path: Path) -> None:
    """A clock set back changes neither the order nor lets `created_at` or `updated_at` decrease."""
    future = "2999-01-01T00:00:00.000000+00:00"
    await memory.add_message("one", "user", "before")
    change(path, "UPDATE sessions SET updated_at = ? WHERE id = 'one'", future)
    await memory.add_message("one", "user", "after")
    await memory.add_messages("one", [{"role": "user", "content": "later"}, {"role": "user", "content": "last"}])
    await memory.update_session_title("one", "renamed")
    messages = await memory.get_history("one")
    assert [message["content"] for message in messages] == ["before", "after", "later", "last"]
    assert [message["created_at"] for message in messages[1:]] == [future] * 3
    session = await memory.get_session("one")
    assert session is not None
    assert session["updated_at"] == future
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(1,), (2,), (3,), (4,)]
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        change(path, "UPDATE messages SET seq = 1 WHERE seq = 2")


CORRUPT_MESSAGES = [
    ("metadata", '{"half": '),
    ("metadata", "[1]"),
    ("metadata", b'{"a": "\xff"}'),
    ("content", b"\xff\xfe"),
    ("role", b"\xc3"),
    ("created_at", "2026-99-99T00:00:00.000000+00:00"),
    ("created_at", "yesterday"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("column", "value"), CORRUPT_MESSAGES)
async def test_a_corrupt_message_is_named_and_hides_nothing_else(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """Bad JSON, bad UTF-8, an impossible time: the error names the row, the rest of the store can be read."""
    await memory.add_message("one", "user", "good")
    await memory.add_message("one", "user", "bad", message_id="broken")
    newest = await memory.add_message("one", "user", "newest")
    await memory.add_message("two", "user", "elsewhere")
    change(path, f"UPDATE messages SET {column} = CAST(? AS TEXT) WHERE id = 'broken'", value)
    with pytest.raises(FluxMemoryError, match="message 'broken' of session 'one' cannot be read"):
        await memory.get_history("one")
    assert [message["id"] for message in await memory.get_history("one", 1)] == [newest]
    assert [message["content"] for message in await memory.get_history("one", before="broken")] == ["good"]
    assert [message["content"] for message in await memory.get_history("two")] == ["elsewhere"]
    assert {session["id"] for session in await memory.get_sessions()} == {"one", "two"}
    await memory.add_message("one", "user", "still works")


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
    """A listing that meets it names it; others, its own messages and every other way to a session work."""
    healthy = await memory.create_session(session_id="healthy", metadata={"a": 1}, user_id="ann")
    await memory.add_message("one", "user", "kept")
    change(path, f"UPDATE sessions SET {column} = CAST(? AS TEXT) WHERE id = 'one'", value)
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
    """An add to a session whose time cannot be read fails and names it; it acknowledges nothing unreadable."""
    change(path, f"UPDATE sessions SET updated_at = {sql} WHERE id = 'one'", value)
    with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
        await memory.add_message("one", "user", "x")
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
    await memory.add_message("two", "user", "x")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("column", "value"), [("metadata", "{"), ("metadata", b"\xff"), ("content", b"\xff"), ("role", b"\xff")]
)
async def test_a_retry_of_a_message_that_became_corrupt_is_an_error_that_names_it(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """It cannot be told whether it is the same; a driver's or a parser's exception does not escape."""
    await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    change(path, f"UPDATE messages SET {column} = CAST(? AS TEXT) WHERE id = 'm'", value)
    with pytest.raises(FluxMemoryError, match="message 'm' cannot be read"):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    assert rows(path, "SELECT count(*) FROM messages") == [(1,)]


@pytest.mark.asyncio
async def test_metadata_that_is_null_counts_as_empty(memory: ConversationMemory, path: Path) -> None:
    """The original's column allows NULL, and somebody may write it by hand."""
    change(path, "UPDATE sessions SET metadata = NULL WHERE id = 'one'")
    session = await memory.get_session("one")
    assert session is not None
    assert session["metadata"] == {}
    assert await memory.get_sessions(metadata={"a": 1}) == []
    await memory.add_message("one", "user", "x", message_id="m")
    change(path, "UPDATE messages SET metadata = NULL WHERE id = 'm'")
    assert await memory.add_message("one", "user", "x", message_id="m") == "m"
    with pytest.raises(ConflictError):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")


@pytest.mark.asyncio
async def test_a_retry_changes_nothing(memory: ConversationMemory) -> None:
    """The same id with the same content is stored once, alone or in a batch; `updated_at` stays."""
    message: NewMessage = {"role": "user", "content": "x", "metadata": {"n": 1}, "message_id": "m"}
    other: NewMessage = {"role": "user", "content": "y", "message_id": "m"}
    assert await memory.add_message("one", "user", "x", {"n": 1}, message_id="m") == "m"
    before = await memory.get_session("one")
    assert await memory.add_message("one", "user", "x", {"n": 1.0}, message_id="m") == "m"
    assert await memory.add_messages("one", [message, message]) == ["m", "m"]
    assert await memory.get_session("one") == before
    with pytest.raises(ConflictError):
        await memory.add_messages("one", [{"role": "user", "content": "new"}, other])
    assert await memory.get_session("one") == before


@pytest.mark.asyncio
@pytest.mark.parametrize("id_", ["unknown", "x" * 1000, "a\x00b", "\ud800"])
async def test_a_look_up_that_can_match_nothing_finds_nothing(memory: ConversationMemory, id_: str) -> None:
    """An id that cannot be stored is nowhere; removing it is no error."""
    assert await memory.get_session(id_) is None
    assert await memory.get_history(id_) == []
    assert await memory.get_history("one", before=id_) == []
    assert await memory.get_sessions(user_id=id_) == []
    await memory.delete_session(id_)
    assert await memory.count_sessions() == 2
    await memory.clear_all()
    assert await memory.count_sessions() == 0


@pytest.mark.asyncio
async def test_an_error_keeps_its_cause_and_names_the_file(memory: ConversationMemory, path: Path) -> None:
    """A table dropped by hand: our error on top, the driver's below, the path in the message."""
    change(path, "DROP TABLE messages")
    with pytest.raises(FluxMemoryError, match="no such table: messages") as caught:
        await memory.get_history("one")
    assert str(path) in str(caught.value)
    assert "sqlite3.OperationalError" in "".join(traceback.format_exception(caught.value))
