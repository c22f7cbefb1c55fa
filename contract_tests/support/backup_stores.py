"""Stores to back up, filled through the library, and read without the code under test."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner, Result
from raw_postgres import fetch_rows

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.cli import main
from flux_memory.operations.backup import BackupPlan, create_backup
from flux_memory.operations.restore import RestorePlan, RestoreReport, restore_backup

SESSIONS = """
SELECT id, user_id, title, metadata{cast}, sessions.created_at{cast}, updated_at{cast}, message_count
FROM sessions JOIN session_details ON session_id = id
"""
MESSAGES = "SELECT session_id, seq, id, role, content, metadata{cast}, created_at{cast} FROM messages"
FEEDBACK = """
SELECT id, session_id, message_id, user_id, rating, comment, corrected_answer, metadata{cast}, created_at{cast}
FROM feedback
"""
TEXTS = ("plain", "", ',"metadata":{"x":1}', '한국어 \u2028 \\ " \n\t', "x" * 5000, "é\U0001f600")

MakeStore = Callable[[str], "Store"]
"""Makes an empty store of an engine."""


class Store(NamedTuple):
    """A store of either engine."""

    sqlite_path: Path | None
    postgres_dsn: str | None

    def plan(self) -> dict[str, Any]:
        """Return the arguments of a plan."""
        return self._asdict()

    def options(self) -> list[str]:
        """Return the options of a command."""
        if self.postgres_dsn is not None:
            return ["--postgres-dsn", self.postgres_dsn]
        return ["--sqlite-path", str(self.sqlite_path)]

    def open(self) -> Memory:
        """Open a memory."""
        if self.postgres_dsn is not None:
            return PostgresConversationMemory(self.postgres_dsn, min_size=1, max_size=4)
        return ConversationMemory(str(self.sqlite_path))

    def use(self, work: Callable[[Memory], Awaitable[Any]]) -> Any:
        """Run work on a memory that is closed afterwards."""

        async def run() -> Any:
            async with self.open() as memory:
                return await work(memory)

        return asyncio.run(run())

    def rows(self, user: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
        """Return all rows, or those of a user, in order; metadata is parsed, times are of one form."""
        found = {name: sorted(map(_plain, self._fetch(sql))) for name, sql in _STATEMENTS.items()}
        if user is None:
            return found
        ids = {row[0] for row in found["sessions"] if row[1] == user}
        return {
            "sessions": [row for row in found["sessions"] if row[1] == user],
            "messages": [row for row in found["messages"] if row[0] in ids],
            "feedback": [row for row in found["feedback"] if row[3] == user],
        }

    def _fetch(self, sql: str) -> list[tuple[Any, ...]]:
        if self.postgres_dsn is not None:
            return [tuple(row) for row in asyncio.run(fetch_rows(self.postgres_dsn, sql.format(cast="::text")))]
        with closing(sqlite3.connect(str(self.sqlite_path))) as db:
            return db.execute(sql.format(cast="")).fetchall()


_STATEMENTS = {"sessions": SESSIONS, "messages": MESSAGES, "feedback": FEEDBACK}


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_plain_value, row))


def _plain_value(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        return repr(sorted(json.loads(value).items()))
    if value is None:
        return ""
    if isinstance(value, str) and value[:3] == "202" and value[4:5] == "-":
        return datetime.fromisoformat(value).replace(tzinfo=None)
    return value


async def fill(memory: Memory, *, users: int = 3, messages: int = 12, seed: int = 1) -> None:
    """Store conversations of several users, with feedback."""
    rng = random.Random(seed)
    for number in range(users):
        user = f"user-{number}"
        for title in ("first", "second 한국어"):
            metadata = {"n": rng.randrange(10), "f": rng.random(), "deep": {"b": [None, True, 1.0], "aa": "x"}}
            session = await memory.create_session(title, metadata, user_id=user)
            ids = await memory.add_messages(
                session,
                [
                    {"role": rng.choice(["user", "assistant"]), "content": rng.choice(TEXTS), "metadata": {"i": index}}
                    for index in range(messages)
                ],
            )
        await memory.feedback.add(session, 1, message_id=ids[0], comment="good", metadata={"k": 1.5, "a": [1]})
        await memory.feedback.add(session, -1, corrected_answer='No,\n"metadata": so')


def back_up(store: Store, directory: Path, **settings: Any) -> Path:
    """Make a backup, and return its path."""
    report = asyncio.run(create_backup(BackupPlan(directory=directory, **store.plan(), **settings)))
    assert report.path is not None
    return report.path


def restore(path: Path, store: Store, **settings: Any) -> RestoreReport:
    """Restore a backup."""
    return asyncio.run(restore_backup(RestorePlan(path=path, **store.plan(), **settings)))


def run_command(*arguments: object) -> Result:
    """Run a command of the program in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def seen_files(directory: Path) -> list[str]:
    """Return the names in a directory, hidden ones included."""
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []
