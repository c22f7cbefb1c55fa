"""The calls of one conversation, each with the call that it is measured against, on both engines."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg

from flux_memory import ConversationMemory, Memory, NewMessage, PostgresConversationMemory
from flux_memory.backends.postgres.queries import SELECT_HISTORY
from flux_memory.records.building import build_messages
from flux_memory.sync import SyncMemory
from harness import samples
from harness.alternation import MeasuredWork, Pair

FORKED_MESSAGES: Final = 1_000
METADATA_BYTES: Final = 1_000_000
OTHER_SESSIONS: Final = 200
OTHER_MESSAGES: Final = 10
"""Messages of each other session: with few sessions, the server's statistics are not those of an application."""
FORKS: Final = 8
"""Forks of a round; each stores all the messages again."""

LONG: Final = "long"
COPY_SESSION: Final = """
INSERT INTO sessions (id, user_id, created_at, updated_at, message_count, revision)
SELECT {copy}, user_id, created_at, updated_at, message_count, {revision} FROM sessions WHERE id = {original}
"""
COPY_DETAILS: Final = """
INSERT INTO session_details (session_id, title, metadata)
SELECT {copy}, title, metadata FROM session_details WHERE session_id = {original}
"""
COPY_MESSAGES: Final = """
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT {copy}, id, seq, role, content, metadata, created_at FROM messages WHERE session_id = {original}
"""
ON_POSTGRES: Final = {"copy": "$1", "revision": "gen_random_uuid()", "original": "$2"}
ON_SQLITE: Final = {"copy": "?1", "revision": "lower(hex(randomblob(16)))", "original": "?2"}
COPY_BY_POSTGRES: Final = f"WITH session AS ({COPY_SESSION}), details AS ({COPY_DETAILS}) {COPY_MESSAGES}".format(
    **ON_POSTGRES
)
COPY_BY_SQLITE: Final = tuple(each.format(**ON_SQLITE) for each in (COPY_SESSION, COPY_DETAILS, COPY_MESSAGES))


def _new(sample: samples.Sample) -> NewMessage:
    return {"role": sample.role, "content": sample.content, "metadata": sample.metadata}


def _adding(memory: Memory, session: str, sample: samples.Sample) -> MeasuredWork:
    return lambda: memory.add_message(session, *sample)


def _updating(memory: Memory, session: str, revision: str, sample: samples.Sample) -> MeasuredWork:
    """Return a call that appends to a session if it is as the last call left it."""

    async def update() -> None:
        nonlocal revision
        changed = await memory.update_session(session, expected_revision=revision, messages=[_new(sample)])
        revision = changed["revision"]

    return update


async def _fill(memory: Memory, pool: Sequence[samples.Sample]) -> None:
    await memory.create_session(session_id=LONG)
    for at in range(0, FORKED_MESSAGES, 200):
        await memory.add_messages(LONG, [_new(each) for each in pool[at : at + 200]])
    for number in range(OTHER_SESSIONS):
        await memory.add_messages(f"other {number}", [_new(each) for each in pool[:OTHER_MESSAGES]], create=True)
    for name, metadata in {
        "plain": {},
        "large": {"text": "x" * METADATA_BYTES},
        "popped": {},
        "updated": {},
    }.items():
        await memory.create_session(session_id=name, metadata=metadata)


async def _shared_pairs(memory: Memory, stack: AsyncExitStack, other: Memory) -> list[Pair]:
    """Return the pairs that are the same on both engines."""
    pool = samples.samples("pairs", FORKED_MESSAGES)
    await _fill(memory, pool)
    updated = await memory.get_session("updated")
    assert updated is not None
    blocking = SyncMemory(other)
    stack.callback(blocking.__exit__, None, None, None)

    async def block() -> None:
        blocking.get_session("plain")

    sample = pool[0]
    add = _adding(memory, "plain", sample)
    return [
        Pair(
            "update_session with expected_revision and a message / add_message",
            _updating(memory, "updated", updated["revision"], sample),
            add,
            at_most=1.3,
        ),
        Pair("pop_message / add_message", lambda: memory.pop_message("popped"), _adding(memory, "popped", sample)),
        Pair("add_message, 1 MB of metadata / without", _adding(memory, "large", sample), add, at_most=1.2),
        Pair("get_session, sync / async", block, lambda: memory.get_session("plain"), at_most_us=150),
    ]


async def open_postgres(stack: AsyncExitStack, dsn: str) -> tuple[list[Pair], dict[str, MeasuredWork]]:
    """Return the pairs on PostgreSQL, and the parts of a read: the call, the driver's share, and building records."""
    memory = await stack.enter_async_context(PostgresConversationMemory(dsn, min_size=2, max_size=2))
    pairs = await _shared_pairs(memory, stack, PostgresConversationMemory(dsn, min_size=1, max_size=1))
    connection = await asyncpg.connect(dsn)
    stack.push_async_callback(connection.close)
    # Autovacuum would do the same within a minute.
    await connection.execute("ANALYZE")
    copying, reading = [await connection.prepare(sql) for sql in (COPY_BY_POSTGRES, SELECT_HISTORY)]
    rows = await reading.fetch(LONG, samples.HISTORY_LIMIT)

    async def build() -> None:
        build_messages(LONG, rows)

    sync_read = next(pair for pair in pairs if pair.at_most_us is not None)
    pairs.append(_fork_pair(memory, lambda: copying.fetch(str(uuid4()), LONG)))
    return pairs, {
        "get_history(50)": lambda: memory.get_history(LONG, samples.HISTORY_LIMIT),
        "its statement, asyncpg alone": lambda: reading.fetch(LONG, samples.HISTORY_LIMIT),
        "its records, built from rows": build,
        "get_session": lambda: memory.get_session("plain"),
        "get_session, sync": sync_read.work,
    }


async def open_sqlite(stack: AsyncExitStack, directory: Path) -> tuple[list[Pair], dict[str, MeasuredWork]]:
    """Return the pairs on SQLite."""
    path, other = directory / "pairs.db", directory / "copies.db"
    memory = await stack.enter_async_context(ConversationMemory(path))
    pairs = await _shared_pairs(memory, stack, ConversationMemory(path))
    # A file for each: another connection to the file would empty the page cache of the first.
    async with ConversationMemory(other) as filling:
        await _fill(filling, samples.samples("pairs", FORKED_MESSAGES))
    db = stack.enter_context(closing(sqlite3.connect(other, isolation_level=None)))
    db.executescript("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON")

    async def copy() -> None:
        values: tuple[Any, ...] = (str(uuid4()), LONG)
        db.execute("BEGIN IMMEDIATE")
        for sql in COPY_BY_SQLITE:
            # SQLite wants exactly the parameters that a statement names; each names both.
            db.execute(sql, values)
        db.execute("COMMIT")

    return [*pairs, _fork_pair(memory, copy)], {}


def _fork_pair(memory: Memory, copy: MeasuredWork) -> Pair:
    name = f"fork_session of {FORKED_MESSAGES:,} messages / INSERT ... SELECT"
    return Pair(name, lambda: memory.fork_session(LONG), copy, at_most=1.2, calls=FORKS)
