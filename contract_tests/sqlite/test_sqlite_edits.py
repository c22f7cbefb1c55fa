"""Tests changes of sessions on SQLite: deletions in batches, and corrupt rows that a change meets."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from original_application import read_rows
from raw_sqlite import execute_in_file, run_on_worker

from flux_memory import BackendUnavailableError, ConversationMemory, FluxMemoryError, Memory, deadline

OWNED: Final = 1_000
"""Sessions of one user: several batches."""
WHEN: Final = "2026-01-01T00:00:00.{:06d}+00:00"
FAR: Final = datetime(2027, 1, 1, tzinfo=UTC)

Call = Callable[[Memory], Awaitable[object]]


@pytest_asyncio.fixture
async def crowded(memory: ConversationMemory, path: Path) -> AsyncIterator[ConversationMemory]:
    """A memory with the sessions `one` and `two`, and many of the user `ann`."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "INSERT INTO sessions (id, user_id, created_at, updated_at) VALUES (?, 'ann', ?, ?)",
            ((f"ann-{n:06}", WHEN.format(n), WHEN.format(n)) for n in range(OWNED)),
        )
    yield memory


@pytest.mark.asyncio
async def test_other_calls_proceed_between_the_batches_of_a_deletion(crowded: ConversationMemory) -> None:
    """A write that was called during a deletion is stored before the deletion ends."""
    deletion = asyncio.create_task(crowded.delete_sessions(user_id="ann"))
    counts = [OWNED]
    while not deletion.done():
        await crowded.add_message("one", "user", "x")
        counts.append(await crowded.count_sessions(user_id="ann"))
    assert await deletion == OWNED
    assert any(0 < count < OWNED for count in counts)
    assert await crowded.count_sessions() == 2


@pytest.mark.asyncio
async def test_another_process_writes_between_the_batches_of_a_deletion(
    crowded: ConversationMemory, path: Path
) -> None:
    """The lock is free between two batches, for long enough that a waiting connection gets it."""
    deletion = asyncio.create_task(crowded.delete_sessions(user_id="ann"))

    def write() -> int:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as other:
            other.execute("BEGIN IMMEDIATE")
            left: int = other.execute("SELECT count(*) FROM sessions WHERE user_id = 'ann'").fetchone()[0]
            other.execute("COMMIT")
            return left

    while await crowded.count_sessions(user_id="ann") == OWNED:
        pass
    assert await asyncio.to_thread(write) > 0
    assert await deletion == OWNED


@pytest.mark.asyncio
async def test_a_deadline_ends_a_deletion_between_batches(crowded: ConversationMemory) -> None:
    """The error says how many sessions were deleted; the next call deletes the others."""
    with deadline(0.001), pytest.raises(BackendUnavailableError, match="raise timeout="):
        await crowded.delete_sessions(user_id="ann")
    left = await crowded.count_sessions(user_id="ann")
    assert left > 0
    assert await crowded.delete_sessions(user_id="ann") == left


@pytest.mark.asyncio
async def test_a_cancelled_deletion_ends_between_batches(crowded: ConversationMemory) -> None:
    """A batch is deleted whole or not at all, and no further one begins."""
    deletion = asyncio.create_task(crowded.delete_sessions(user_id="ann"))
    while await crowded.count_sessions(user_id="ann") == OWNED:
        pass
    deletion.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deletion
    left = await crowded.count_sessions(user_id="ann")
    assert left > 0
    await crowded.add_message("one", "user", "x")
    assert await crowded.count_sessions(user_id="ann") == left


@pytest.mark.asyncio
async def test_a_session_with_a_corrupt_time_is_not_taken_for_inactive(memory: ConversationMemory, path: Path) -> None:
    """The text `0` sorts before every time; the session stays, and the error names it."""
    execute_in_file(path, "UPDATE sessions SET updated_at = '0' WHERE id = 'one'")
    with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
        await memory.delete_sessions(inactive_since=FAR)
    assert await memory.count_sessions() == 2
    assert await memory.delete_sessions(user_id="") == 2


CORRUPT: Final[dict[str, tuple[str, Call]]] = {
    "session_details SET metadata = '{'": (
        "session 'one' cannot be read",
        lambda memory: memory.update_session("one", merge_metadata={"a": 1}),
    ),
    "session_details SET metadata = CAST(x'ff' AS TEXT)": (
        "session 'one' cannot be read",
        lambda memory: memory.update_session("one", title="new", truncate_all=True),
    ),
    "session_details SET title = CAST(x'ff' AS TEXT)": (
        "session 'one' cannot be read",
        lambda memory: memory.update_session("one", truncate_all=True),
    ),
    "sessions SET updated_at = 'never'": (
        "session 'one' cannot be read",
        lambda memory: memory.update_session("one", truncate_from="m2"),
    ),
    "sessions SET updated_at = 'later'": ("session 'one' cannot be read", lambda memory: memory.pop_message("one")),
    "sessions SET updated_at = ''": (
        "session 'one' cannot be read",
        lambda memory: memory.update_session_title("one", "new"),
    ),
    "sessions SET updated_at = x'00'": ("session 'one' cannot be read", lambda memory: memory.fork_session("one")),
    "messages SET content = CAST(x'ff' AS TEXT)": (
        "message 'm2' of session 'one' cannot be read",
        lambda memory: memory.pop_message("one"),
    ),
    "messages SET metadata = '['": (
        "message 'm1' cannot be read",
        lambda memory: memory.update_session(
            "one",
            truncate_from="m2",
            messages=[{"role": "user", "content": "x", "metadata": {"a": 1}, "message_id": "m1"}],
        ),
    ),
}
"""How a row becomes corrupt; the error of a call that meets it, and the call."""


def read_everything(path: Path) -> list[list[tuple[Any, ...]]]:
    """Return the rows of the tables as bytes, which may be no text."""
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        tables = ("sessions", "session_details", "messages", "session_metadata")
        return [db.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


@pytest.mark.asyncio
@pytest.mark.parametrize("change", CORRUPT)
async def test_a_corrupt_row_is_named_before_anything_changes(
    memory: ConversationMemory, path: Path, change: str
) -> None:
    """No change stores a part of itself and then fails, and none hides what is corrupt."""
    says, call = CORRUPT[change]
    for id_ in ("m1", "m2"):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id=id_)
    execute_in_file(path, f"UPDATE {change}")
    before = read_everything(path)
    with pytest.raises(FluxMemoryError, match=says):
        await call(memory)
    assert read_everything(path) == before


@pytest.mark.asyncio
async def test_a_listing_without_metadata_does_not_read_it(memory: ConversationMemory, path: Path) -> None:
    """Metadata that cannot be read is not in the way."""
    execute_in_file(path, "UPDATE session_details SET metadata = CAST(x'ff' AS TEXT) WHERE session_id = 'one'")
    found = await memory.get_sessions(with_metadata=False)
    assert [(each["id"], each["metadata"]) for each in found] == [("two", {}), ("one", {})]


@pytest.mark.asyncio
async def test_an_add_leaves_the_details_alone(memory: ConversationMemory, path: Path) -> None:
    """The cost of an add does not depend on the metadata: no statement of it reads or writes their table."""
    await memory.update_session("one", merge_metadata={"a": "x" * 100_000})
    seen: list[str] = []
    await run_on_worker(memory, lambda db: db.set_trace_callback(seen.append))
    await memory.add_message("one", "user", "x")
    await memory.add_message("one", "user", "x", message_id="m")
    await memory.pop_message("one")
    assert any("messages" in statement for statement in seen)
    assert not [statement for statement in seen if "session_details" in statement or "session_metadata" in statement]
    assert read_rows(path, "SELECT count(*) FROM messages") == [(1,)]


@pytest.mark.asyncio
async def test_every_change_gives_a_revision_that_no_process_gave_before(
    memory: ConversationMemory, path: Path
) -> None:
    """Also a row that another program inserts has a revision of its own."""
    execute_in_file(path, "INSERT INTO sessions (id, created_at, updated_at) VALUES ('three', 'x', 'x')")
    execute_in_file(path, "INSERT INTO sessions (id, created_at, updated_at) VALUES ('four', 'x', 'x')")

    def read() -> list[Any]:
        return [revision for (revision,) in read_rows(path, "SELECT revision FROM sessions")]

    seen = read()
    for call in (
        lambda: memory.add_message("one", "user", "x"),
        lambda: memory.add_message("one", "user", "x", message_id="m"),
        lambda: memory.pop_message("one"),
        lambda: memory.update_session_title("one", ""),
        lambda: memory.update_session("one", title=""),
        lambda: memory.fork_session("one"),
        lambda: memory.delete_session("one"),
        lambda: memory.create_session(session_id="one"),
    ):
        await call()
        seen += [revision for revision in read() if revision not in seen] or ["nothing new"]
    # A deletion alone gives none.
    assert seen.count("nothing new") == 1
    assert len(seen) == len(set(seen)) == 4 + 8
    assert all(seen)
