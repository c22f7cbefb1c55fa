"""Adds to many sessions at once: what they share, and what one of them cannot spoil."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import pytest
from cluster_stores import COORDINATOR, WORKER, in_schema
from raw_postgres import connect, fetch_rows

from flux_memory import ConflictError, PostgresConversationMemory, SessionNotFoundError

SESSIONS = [f"session {number}" for number in range(40)]
SELECT_MOVES = """
SELECT shardid, there.nodename, there.nodeport, other.nodename, other.nodeport
FROM pg_dist_shard
JOIN pg_dist_placement USING (shardid)
JOIN pg_dist_node AS there USING (groupid)
JOIN pg_dist_node AS other ON other.groupid NOT IN (0, there.groupid)
WHERE logicalrelid = 'sessions'::regclass
ORDER BY shardid
"""
MOVE = "SELECT citus_move_shard_placement($1, $2, $3, $4, $5, 'block_writes')"


async def make_sessions(memory: PostgresConversationMemory, user_id: str = "") -> None:
    """Create the sessions, each with a message."""
    await asyncio.gather(
        *(memory.add_message(each, "user", "0", message_id="0", create=True, user_id=user_id) for each in SESSIONS)
    )


@pytest.mark.asyncio
# The driver warns of the listener when the connection returns to the pool, which removes it.
@pytest.mark.filterwarnings("ignore::asyncpg.InterfaceWarning")
@pytest.mark.parametrize("server", [COORDINATOR, WORKER])
async def test_adds_to_many_sessions_share_commands_and_commits(emptied: str, server: str) -> None:
    """A command and a commit for each session would cost most of an add; one for several servers, two phases."""
    sent: list[str] = []

    async def record(connection: Any) -> None:
        connection.add_log_listener(lambda _, message: sent.append(message.message))

    logged = f"{in_schema(server, emptied)}&citus.log_remote_commands=on&client_min_messages=log"
    async with asyncpg.create_pool(logged, min_size=4, max_size=4, setup=record) as pool:
        memory = PostgresConversationMemory(pool=pool)
        await make_sessions(memory)
        for number in range(1, 4):
            sent.clear()
            await asyncio.gather(*(memory.add_message(each, "user", str(number)) for each in SESSIONS))
        await memory.close()
    issued = [text for text in sent if text.startswith("issuing")]
    assert 0 < len(issued) <= len(SESSIONS) / 4, issued
    assert all("add_" in text for text in issued), issued
    async with PostgresConversationMemory(in_schema(server, emptied)) as memory:
        for each in SESSIONS:
            assert [message["content"] for message in await memory.get_history(each)] == ["0", "1", "2", "3"]


@pytest.mark.asyncio
async def test_a_bad_add_fails_alone(emptied: str) -> None:
    """Adds that share a statement have errors of their own, and a retry finds its message stored."""
    async with PostgresConversationMemory(in_schema(COORDINATOR, emptied)) as memory:
        await make_sessions(memory, "ann")
        outcomes = await asyncio.gather(
            *(memory.add_message(each, "user", "1", message_id="1") for each in SESSIONS),
            memory.add_message(SESSIONS[0], "user", "another text", message_id="0"),
            memory.add_message(SESSIONS[1], "user", "0", message_id="0"),
            memory.add_message("none", "user", "1"),
            memory.add_message(SESSIONS[2], "user", "2", create=True, user_id="bob"),
            memory.add_message(SESSIONS[3], "user", "2", create=True, user_id="ann"),
            memory.add_messages(SESSIONS[4], []),
            memory.add_messages("none", []),
            memory.add_message("x" * 300, "user", "1"),
            memory.add_message("new", "user", "1", create=True, user_id="ann"),
            return_exceptions=True,
        )
        stored, others = outcomes[: len(SESSIONS)], outcomes[len(SESSIONS) :]
        assert stored == ["1"] * len(SESSIONS)
        expected = (ConflictError, str, SessionNotFoundError, ConflictError, str, list)
        assert [isinstance(one, kind) for one, kind in zip(others, expected, strict=False)] == [True] * 6, others
        assert isinstance(others[6], SessionNotFoundError)
        assert isinstance(others[7], SessionNotFoundError)
        assert isinstance(others[8], str)
        counts = {each: [message["content"] for message in await memory.get_history(each)] for each in SESSIONS}
        assert counts == {each: ["0", "1", "2"][: 3 if each == SESSIONS[3] else 2] for each in SESSIONS}
        for each in SESSIONS:
            session = await memory.get_session(each)
            assert session is not None
            assert session["message_count"] == len(counts[each])


@pytest.mark.asyncio
async def test_a_locked_session_delays_its_own_adds_only(emptied: str) -> None:
    """Adds to other sessions end while another client holds the row of one."""
    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn) as memory, connect(dsn) as connection:
        await make_sessions(memory)
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM sessions WHERE id = $1 FOR UPDATE", SESSIONS[0])
            adding = [
                asyncio.create_task(memory.add_message(each, "user", str(number)))
                for number in range(1, 4)
                for each in SESSIONS
            ]
            await asyncio.gather(*(task for number, task in enumerate(adding) if number % len(SESSIONS)))
            assert not any(task.done() for task in adding[:: len(SESSIONS)])
        await asyncio.gather(*adding)
        for each in SESSIONS:
            assert [message["content"] for message in await memory.get_history(each)] == ["0", "1", "2", "3"]


@pytest.mark.asyncio
async def test_calls_are_answered_while_shards_move(emptied: str) -> None:
    """The handle learns of a move when a shared statement meets it, and no add is lost or stored twice."""
    dsn = in_schema(COORDINATOR, emptied)
    async with PostgresConversationMemory(dsn) as memory, connect(dsn) as connection:
        await make_sessions(memory)
        ended, added = asyncio.Event(), Counter(SESSIONS)

        async def keep_adding(session_id: str) -> None:
            while not ended.is_set():
                number = added[session_id]
                await memory.add_message(session_id, "user", str(number), message_id=str(number))
                added[session_id] += 1

        async with asyncio.TaskGroup() as group:
            for each in SESSIONS:
                group.create_task(keep_adding(each))
            moves = (await fetch_rows(dsn, SELECT_MOVES))[:2]
            assert len(moves) == 2
            for shard, name, port, new_name, new_port in moves:
                await connection.execute(MOVE, shard, name, port, new_name, new_port)
                await connection.execute(MOVE, shard, new_name, new_port, name, port)
            ended.set()
        for each in SESSIONS:
            history = [message["id"] for message in await memory.get_history(each)]
            assert history == [str(number) for number in range(added[each])]
