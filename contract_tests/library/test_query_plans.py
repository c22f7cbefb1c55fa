"""Tests the cost of reads: in large tables, the engines' plans for the library's statements touch one page of rows."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from raw_sqlite import run_on_worker

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.testkit.servers import Server

SESSIONS: Final = 50_000
MESSAGES: Final = 50_000
LONG: Final = "long"

POSTGRES_ROWS: Final = f"""
INSERT INTO sessions (id, user_id, created_at, updated_at)
SELECT
    lpad(n::text, 36, '0'), 'user-' || (n % 500),
    TIMESTAMP '2026-01-01' + n * INTERVAL '1 second', TIMESTAMP '2026-01-01' + n * INTERVAL '1 second'
FROM generate_series(1, {SESSIONS}) AS n;

INSERT INTO session_details (session_id, title, metadata)
SELECT
    lpad(n::text, 36, '0'), 'Conversation ' || n,
    jsonb_build_object('lang', CASE n % 2 WHEN 0 THEN 'en' ELSE 'ko' END, 'number', n)
FROM generate_series(1, {SESSIONS}) AS n;

INSERT INTO sessions (id, created_at, updated_at, message_count)
VALUES ('{LONG}', TIMESTAMP '2026-01-01', TIMESTAMP '2026-02-01', {MESSAGES});

INSERT INTO messages (session_id, id, seq, role, content, created_at)
SELECT '{LONG}', lpad(n::text, 36, '0'), n, 'user', 'some words', TIMESTAMP '2026-01-01' + n * INTERVAL '1 second'
FROM generate_series(1, {MESSAGES}) AS n;
"""
# Autovacuum does this after such growth; VACUUM also empties the pending list of the metadata's index.
POSTGRES_UPKEEP: Final = "VACUUM (ANALYZE) sessions, session_details, messages, feedback"
SQLITE_ROWS: Final = f"""
BEGIN;

WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {SESSIONS})
INSERT INTO sessions (id, user_id, created_at, updated_at)
SELECT
    printf('%036d', n), 'user-' || (n % 500),
    printf('2026-01-01T00:00:00.%06d+00:00', n), printf('2026-01-01T00:00:00.%06d+00:00', n)
FROM numbers;

WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {SESSIONS})
INSERT INTO session_details (session_id, title, metadata)
SELECT
    printf('%036d', n), 'Conversation ' || n,
    json_object('lang', CASE n % 2 WHEN 0 THEN 'en' ELSE 'ko' END, 'number', n)
FROM numbers;

INSERT INTO sessions (id, created_at, updated_at, message_count)
VALUES ('{LONG}', '2026-01-01T00:00:00.000000+00:00', '2026-02-01T00:00:00.000000+00:00', {MESSAGES});

WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MESSAGES})
INSERT INTO messages (session_id, id, seq, role, content, created_at)
SELECT '{LONG}', printf('%036d', n), n, 'user', 'some words', printf('2026-01-01T00:00:00.%06d+00:00', n)
FROM numbers;

COMMIT;
ANALYZE;
"""
PAGE_ROWS: Final = 50
FEW: Final = 3 * PAGE_ROWS
"""Rows that a page may touch, including those skipped on the way to it."""
STEP_INSTRUCTIONS: Final = 10
"""Virtual machine instructions of SQLite between two progress callbacks."""
ROW_INSTRUCTIONS: Final = 50
"""Virtual machine instructions that a row may cost."""
SEEN: Final = {"updated_at": "2026-01-01T06:00:00.000000+00:00", "id": f"{21_600:036d}"}
"""What a listing continues from: of a session's record, its place."""
LISTINGS: Final[dict[str, dict[str, Any]]] = {
    "all": {},
    "after one": {"before": SEEN},
    "of a user after one": {"before": SEEN, "user_id": "user-7"},
    "after one by metadata that half have": {"before": SEEN, "metadata": {"lang": "en"}},
    "of a user after one by metadata that all of his have": {
        "before": SEEN,
        "user_id": "user-7",
        "metadata": {"lang": "ko"},
    },
    "without metadata": {"with_metadata": False},
    "of a user": {"user_id": "user-7"},
    "by metadata that one session has": {"metadata": {"number": 4_321}},
    "by metadata that half have": {"metadata": {"lang": "en"}},
    "by metadata that none has": {"metadata": {"lang": "xx"}},
    "of a user by metadata that half have": {"user_id": "user-7", "metadata": {"lang": "en"}},
    "of a user by metadata that all of his have": {"user_id": "user-7", "metadata": {"lang": "ko"}},
    "of a user by metadata that none has": {"user_id": "user-7", "metadata": {"lang": "xx"}},
}
HISTORIES: Final[dict[str, dict[str, Any]]] = {
    "newest": {},
    "a page back": {"before": f"{MESSAGES // 2:036d}"},
    "a page on": {"after": f"{MESSAGES // 2:036d}"},
}
CALLS: Final = [
    *(("get_sessions", (PAGE_ROWS,), listing) for listing in LISTINGS.values()),
    *(("get_history", (LONG, PAGE_ROWS), history) for history in HISTORIES.values()),
    ("get_session", (LONG,), {}),
    ("get_message", (LONG, f"{MESSAGES // 2:036d}"), {}),
]
NAMES: Final = [
    *(f"sessions {name}" for name in LISTINGS),
    *(f"history {name}" for name in HISTORIES),
    "session",
    "message",
]


@pytest.fixture(scope="module")
def filled_postgres(flux_postgres_server: Server) -> Iterator[str]:
    """A database with many sessions and one long conversation."""

    async def fill(dsn: str) -> None:
        async with PostgresConversationMemory(dsn) as memory:
            await memory.count_sessions()
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(POSTGRES_ROWS)
            await connection.execute(POSTGRES_UPKEEP)
        finally:
            await connection.close()

    dsn = flux_postgres_server.create_database()
    asyncio.run(fill(dsn))
    yield dsn
    flux_postgres_server.drop_database(dsn)


@pytest.fixture(scope="module")
def filled_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with many sessions and one long conversation."""

    async def make(path: Path) -> None:
        async with ConversationMemory(path) as memory:
            await memory.count_sessions()

    path = tmp_path_factory.mktemp("plans") / "chat.db"
    asyncio.run(make(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(SQLITE_ROWS)
    return path


async def capture_statement(dsn: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Make a call and return the statement that reached asyncpg, with its values."""
    seen: list[Any] = []

    async def listen(connection: Any) -> None:
        connection.add_query_logger(seen.append)

    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1, init=listen) as pool,
        PostgresConversationMemory(pool=pool) as memory,
    ):
        await memory.count_sessions()
        seen.clear()
        assert await getattr(memory, method)(*arguments, **options) is not None
    # asyncpg queries the types of arrays before it sends the first one.
    return next(each for each in seen if each.args and "pg_type" not in each.query)


async def explain_generic(dsn: str, sql: str, values: tuple[object, ...]) -> dict[str, Any]:
    """Return an execution's plan once PostgreSQL may use one plan for all values: after five executions."""
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        literals = [str(value) if isinstance(value, int) else f"'{value}'" for value in values]
        execute = f"EXECUTE long_run ({', '.join(literals)})"
        await connection.execute(f"PREPARE long_run AS {sql}")
        for _ in range(6):
            await connection.execute(execute)
        (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {execute}"))
    finally:
        await connection.close()
    top: dict[str, Any] = plan["Plan"]
    return top


def walk_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's nodes from the top."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from walk_nodes(below)


def count_touched_rows(node: dict[str, Any]) -> float:
    """Return the number of rows that a node read."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


@pytest.mark.parametrize(("method", "arguments", "options"), CALLS, ids=NAMES)
@pytest.mark.asyncio(loop_scope="function")
async def test_postgres_reads_the_page_only(
    filled_postgres: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """A page costs about its own rows in tables of any size, also with a generic plan."""
    sent = await capture_statement(filled_postgres, method, arguments, options)
    plan = await explain_generic(filled_postgres, sent.query, sent.args)
    found = list(walk_nodes(plan))
    assert not [node for node in found if node["Node Type"] == "Seq Scan"], json.dumps(plan, indent=1)
    assert max(map(count_touched_rows, found)) <= FEW, json.dumps(plan, indent=1)
    if not options.get("metadata"):
        # Already in index order; a filter by metadata may sort its few matches.
        assert not [node for node in found if "Sort" in node["Node Type"]], json.dumps(plan, indent=1)


@pytest.mark.parametrize("rows", [1, 2, 64, 256])
@pytest.mark.asyncio(loop_scope="function")
async def test_postgres_adds_cost_their_rows(filled_postgres: str, rows: int) -> None:
    """Adds find their session and ids by key in tables of any size."""
    messages = [{"role": "user", "content": f"{number}"} for number in range(rows)]
    sent = await capture_statement(filled_postgres, "add_messages", (LONG, messages), {})
    connection = await asyncpg.connect(filled_postgres, statement_cache_size=0)
    try:
        async with connection.transaction():
            (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sent.query}", *sent.args))
    finally:
        await connection.close()
    assert not [node for node in walk_nodes(plan["Plan"]) if node["Node Type"] == "Seq Scan"], json.dumps(
        plan, indent=1
    )


@pytest.mark.parametrize(("method", "arguments", "options"), CALLS, ids=NAMES)
@pytest.mark.asyncio(loop_scope="function")
async def test_sqlite_reads_the_page_only(
    filled_sqlite: Path, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """A page costs about its own rows in tables of any size, with any number of matches."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += STEP_INSTRUCTIONS

    async with ConversationMemory(filled_sqlite) as memory:
        await run_on_worker(memory, lambda db: db.set_progress_handler(count, STEP_INSTRUCTIONS))
        assert await getattr(memory, method)(*arguments, **options) is not None
        assert steps <= FEW * ROW_INSTRUCTIONS


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [call for call in CALLS if "metadata" not in call[2]],
    ids=[name for name, call in zip(NAMES, CALLS, strict=True) if "metadata" not in call[2]],
)
@pytest.mark.asyncio(loop_scope="function")
async def test_sqlite_reads_in_an_indexs_order(
    filled_sqlite: Path, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """SQLite walks an index in the requested order: it neither sorts a table nor scans one without an index."""
    seen: list[str] = []
    async with ConversationMemory(filled_sqlite) as memory:
        await run_on_worker(memory, lambda db: db.set_trace_callback(seen.append))
        assert await getattr(memory, method)(*arguments, **options) is not None
    (read,) = [sql for sql in seen if "FROM sessions" in sql or "FROM messages" in sql]
    with closing(sqlite3.connect(filled_sqlite)) as db:
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {read}")]
    assert not [step for step in steps if "TEMP B-TREE" in step], steps
    # The rows of the page, once they are found, are not in an index.
    reads = [step for step in steps if step.startswith(("SCAN", "SEARCH")) and step != "SCAN page"]
    assert all("INDEX" in step for step in reads), steps
