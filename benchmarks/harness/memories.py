"""Makes a SQLite memory of any size as the original application wrote it, the same for the same seed."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

SCHEMA: Final = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, title TEXT DEFAULT '', created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    metadata TEXT DEFAULT '{}', user_id TEXT DEFAULT ''
);
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_id TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    metadata TEXT DEFAULT '{}', created_at TEXT NOT NULL,
    FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE CASCADE
);
CREATE INDEX idx_messages_session ON messages(session_id, created_at);
"""
SMALL_SESSIONS: Final = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)
INSERT INTO sessions (id, title, created_at, updated_at)
SELECT printf('%08x-session', n * 2654435761 % 4294967296), '', '2026-01-01T00:00:00', '2026-01-01T00:00:00'
FROM numbers
"""
SMALL_MESSAGES: Final = """
WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)
INSERT INTO messages (id, session_id, role, content, created_at)
SELECT
    printf('%08x-message', n),
    printf('%08x-session', n % :sessions * 2654435761 % 4294967296),
    'user',
    'Twenty small letters',
    strftime('%Y-%m-%dT%H:%M:%S', 1767225600 + n, 'unixepoch')
FROM numbers
"""
_START: Final = datetime(2026, 1, 1)  # noqa: DTZ001 - the original wrote naive times
_WORDS: Final = (
    "the", "of", "to", "and", "a", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as", "I",
    "his", "they", "be", "at", "one", "have", "this", "from", "or", "had", "by", "hot", "but", "some", "what", "there",
    "we", "can", "out", "other", "were", "all", "your", "when", "up", "use", "word", "how", "said", "an", "each",
    "she", "which", "do", "their", "time",
)  # fmt: skip


def make(path: Path, *, messages: int, sessions: int, content: int = 500, seed: int = 2026) -> None:
    """Write a memory.

    Args:
        path: The file, which must not exist.
        messages: How many, spread evenly.
        sessions: How many.
        content: Bytes of a message's content, about.
        seed: Of the random numbers.
    """
    rng = random.Random(seed)
    ids = [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(sessions)]
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -200000; {SCHEMA}")
    db.execute("BEGIN")
    last = _START + timedelta(seconds=messages)
    db.executemany(
        "INSERT INTO sessions (id, title, created_at, updated_at, metadata, user_id) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (id_, f"Conversation {n}", _START.isoformat(), last.isoformat(), '{"lang": "en"}', f"user-{n % 500}")
            for n, id_ in enumerate(ids)
        ),
    )
    db.executemany(
        "INSERT INTO messages (id, session_id, role, content, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        _messages(rng, ids, messages, content),
    )
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def make_small(path: Path, *, messages: int, sessions: int) -> None:
    """Write a memory of very many small messages, by SQLite's own means."""
    db = sqlite3.connect(path, isolation_level=None)
    tables, _, index = SCHEMA.partition("CREATE INDEX")
    db.executescript(f"PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -200000; {tables}")
    db.execute("BEGIN")
    db.execute(SMALL_SESSIONS, {"count": sessions})
    db.execute(SMALL_MESSAGES, {"count": messages, "sessions": sessions})
    db.execute(f"CREATE INDEX {index}")
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def _messages(rng: random.Random, ids: list[str], messages: int, content: int) -> Iterator[tuple[str, ...]]:
    text = " ".join(rng.choice(_WORDS) for _ in range(max(2_000, content)))
    for n in range(messages):
        at = rng.randrange(len(text) - content) if content < len(text) else 0
        metadata = {
            "model": "gpt-4o-mini",
            "tokens": rng.randrange(4_000),
            "latency_ms": round(rng.random() * 3_000, 2),
            "sources": [f"doc-{rng.randrange(10_000)}", f"doc-{rng.randrange(10_000)}"],
            "trace_id": f"{rng.getrandbits(64):016x}",
            "finish_reason": "stop",
        }
        yield (
            str(UUID(int=rng.getrandbits(128), version=4)),
            ids[n % len(ids)],
            "assistant" if n % 2 else "user",
            text[at : at + content],
            json.dumps(metadata if content >= 100 else {}),
            (_START + timedelta(seconds=n, microseconds=rng.randrange(1_000_000))).isoformat(),
        )
