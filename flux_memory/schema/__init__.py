"""Knows the numbered schema files of each dialect, and which of them a database lacks.

The files never change, and a fresh database replays all of them: there is no second description of the schema. The
first two are the two generations of the original application's schema; its database is adopted by recording the files
that it already has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from flux_memory.errors import SchemaError

VERSION_TABLE: Final = "flux_memory_schema"
FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z_]+)\.sql")
NUMBERED: Final = 3
"""The version since which messages are numbered; earlier tables are those of the original application."""
NARROWED: Final = 6
"""The version since which titles and metadata of sessions are in a table of their own, and ids have 255 characters."""
WITH_FEEDBACK: Final = 7
"""The version since which there is a table of feedback."""

_ORIGINAL_SESSIONS: Final = {"id", "title", "created_at", "updated_at", "metadata"}
_ORIGINAL_MESSAGES: Final = {"id", "session_id", "role", "content", "metadata", "created_at"}


class SchemaFile(NamedTuple):
    """One step of the schema's history."""

    version: int
    name: str
    sql: str
    checksum: str
    """SHA-256 of the text, in hexadecimal."""


@cache
def history(dialect: str) -> tuple[SchemaFile, ...]:
    """Return a dialect's files, `sqlite` or `postgres`, oldest first."""
    steps = []
    for file in Path(__file__).with_name(dialect).iterdir():
        if match := FILE_NAME.fullmatch(file.name):
            sql = file.read_text(encoding="utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            steps.append(SchemaFile(int(match["version"]), match["name"], sql, checksum))
    return tuple(sorted(steps))


def missing_steps(dialect: str, applied: Mapping[int, str]) -> list[SchemaFile]:
    """Return the files that a database lacks.

    Args:
        dialect: `sqlite` or `postgres`.
        applied: The checksums that the database recorded, by version.

    Raises:
        SchemaError: The database is newer than the library, or has recorded other checksums.
    """
    steps = history(dialect)
    if applied and max(applied) > steps[-1].version:
        raise SchemaError(
            f"the database has schema version {max(applied)} and this flux-memory knows {steps[-1].version}; "
            "upgrade flux-memory, or use another database"
        )
    for step in steps:
        if applied.get(step.version, step.checksum) != step.checksum:
            raise SchemaError(
                f"schema version {step.version} ({step.name}) was applied to the database from a file that differs "
                "from this library's; use the release that made the database"
            )
    return [step for step in steps if step.version not in applied]


def describe_version(dialect: str, applied: Mapping[int, str], original_version: int) -> str:
    """Describe the schema of a database in a few words.

    Args:
        dialect: `sqlite` or `postgres`.
        applied: The checksums that the database recorded, by version.
        original_version: The result of `adopted_version` if there are none.

    Raises:
        SchemaError: As `missing` does.
    """
    lacking = missing_steps(dialect, applied)
    if applied:
        return f"version {max(applied)}" + (
            f", {len(lacking)} behind: upgraded at first use" if lacking else ", current"
        )
    if original_version:
        return f"the original application's, generation {original_version}: adopted in place at first use"
    return "none yet: created at first use"


def adopted_version(columns: Mapping[str, set[str]]) -> int:
    """Return the schema version of a database without a version table, by the columns of its tables.

    Args:
        columns: The columns of `sessions` and of `messages`; a missing table has none.

    Returns:
        The version of the original application's generation that made the tables; 0 if the database has neither.

    Raises:
        SchemaError: Another program made the tables.
    """
    sessions, messages = columns["sessions"], columns["messages"]
    if not sessions and not messages:
        return 0
    lacking = (_ORIGINAL_SESSIONS - sessions) | (_ORIGINAL_MESSAGES - messages)
    if lacking:
        raise SchemaError(
            "the database has a table 'sessions' or 'messages' that is not conversation memory (it lacks "
            f"{', '.join(sorted(lacking))}); use another database"
        )
    if unknown := messages - _ORIGINAL_MESSAGES:
        raise SchemaError(
            f"the table 'messages' has columns that the original application did not make: "
            f"{', '.join(sorted(unknown))}; move them to another table, so that nothing is lost"
        )
    return 2 if "user_id" in sessions else 1
