"""Fills the library's tables with millions of rows, by one SQL statement for each kind of row."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import asyncpg

SESSIONS_OF_USER: Final = 100
LONG: Final = "long"
"""The id of the session that has many messages."""

# Half of the sessions are "en", a hundred share a tenant, and each has its own number.
POSTGRES_SESSIONS: Final = f"""
INSERT INTO sessions (id, user_id, created_at, updated_at)
SELECT
    lpad(n::text, 36, '0'),
    'user-' || n % greatest(1, $1::int / {SESSIONS_OF_USER}),
    TIMESTAMP '2026-01-01' + n * INTERVAL '1 second',
    TIMESTAMP '2026-01-01' + n * INTERVAL '1 second'
FROM generate_series(1, $1::int) AS n
"""
POSTGRES_DETAILS: Final = f"""
INSERT INTO session_details (session_id, title, metadata)
SELECT
    lpad(n::text, 36, '0'),
    'Conversation ' || n,
    jsonb_build_object(
        'lang', CASE n % 2 WHEN 0 THEN 'en' ELSE 'ko' END,
        'tenant', n % greatest(1, $1::int / {SESSIONS_OF_USER}),
        'number', n
    )
FROM generate_series(1, $1::int) AS n
"""
POSTGRES_LONG_SESSION: Final = f"""
WITH session AS (
    INSERT INTO sessions (id, created_at, updated_at, message_count)
    VALUES ('{LONG}', TIMESTAMP '2026-01-01', TIMESTAMP '2026-02-01', $1::int)
), details AS (
    INSERT INTO session_details (session_id) VALUES ('{LONG}')
)
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT
    '{LONG}', lpad(n::text, 36, '0'), n, 'user', repeat('Some words. ', 20), '{{"tokens": 60}}',
    TIMESTAMP '2026-01-01' + n * INTERVAL '1 second'
FROM generate_series(1, $1::int) AS n
"""
SQLITE_SESSIONS: Final = f"""
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO sessions (id, user_id, created_at, updated_at, revision)
SELECT
    printf('%036d', n),
    'user-' || (n % max(1, :count / {SESSIONS_OF_USER})),
    strftime('%Y-%m-%dT%H:%M:%S', 1767225600 + n, 'unixepoch') || '.000000+00:00',
    strftime('%Y-%m-%dT%H:%M:%S', 1767225600 + n, 'unixepoch') || '.000000+00:00',
    lower(hex(randomblob(16)))
FROM numbers
"""
SQLITE_DETAILS: Final = f"""
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO session_details (session_id, title, metadata)
SELECT
    printf('%036d', n),
    'Conversation ' || n,
    json_object(
        'lang', CASE n % 2 WHEN 0 THEN 'en' ELSE 'ko' END,
        'tenant', n % max(1, :count / {SESSIONS_OF_USER}),
        'number', n
    )
FROM numbers
"""
SQLITE_LONG_SESSION: Final = f"""
INSERT INTO sessions (id, created_at, updated_at, message_count)
VALUES ('{LONG}', '2026-01-01T00:00:00.000000+00:00', '2026-02-01T00:00:00.000000+00:00', :count)
"""
SQLITE_LONG_DETAILS: Final = f"INSERT INTO session_details (session_id) VALUES ('{LONG}')"
SQLITE_MESSAGES: Final = f"""
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO messages (session_id, id, seq, role, content, metadata, created_at)
SELECT
    '{LONG}', printf('%036d', n), n, 'user', 'Some words. Some words. Some words. Some words. Some words.',
    '{{"tokens": 60}}', strftime('%Y-%m-%dT%H:%M:%S', 1767225600 + n, 'unixepoch') || '.000000+00:00'
FROM numbers
"""


def message_id(number: int) -> str:
    """Return the id of a message of the long session; the first is 1."""
    return f"{number:036d}"


async def fill_postgres(dsn: str, *, sessions: int, messages: int) -> None:
    """Add sessions, and one session with many messages, to existing tables."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(POSTGRES_SESSIONS, sessions)
        await connection.execute(POSTGRES_DETAILS, sessions)
        await connection.execute(POSTGRES_LONG_SESSION, messages)
        # Autovacuum would do the same within a minute.
        await connection.execute("VACUUM (ANALYZE) sessions")
        await connection.execute("VACUUM (ANALYZE) session_details")
        await connection.execute("VACUUM (ANALYZE) messages")
    finally:
        await connection.close()


def fill_sqlite(path: Path, *, sessions: int, messages: int) -> None:
    """Add sessions, and one session with many messages, to existing tables."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN")
    db.execute(SQLITE_SESSIONS, {"count": sessions})
    db.execute(SQLITE_DETAILS, {"count": sessions})
    db.execute(SQLITE_LONG_SESSION, {"count": messages})
    db.execute(SQLITE_LONG_DETAILS)
    db.execute(SQLITE_MESSAGES, {"count": messages})
    db.execute("COMMIT")
    db.close()
