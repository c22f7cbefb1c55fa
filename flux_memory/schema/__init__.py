"""The schema's history: numbered files per dialect that are never changed, and what of them a database lacks.

A fresh database replays all files; there is no second description of the schema. The first two are the schema of
the original application, generation by generation, so that a database it made is taken over by recording the files
it already has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from flux_memory.errors import SchemaError

VERSION_TABLE: Final = "flux_memory_schema"
FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z_]+)\.sql")

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
    for file in files(__name__).joinpath(dialect).iterdir():
        if match := FILE_NAME.fullmatch(file.name):
            sql = file.read_text(encoding="utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            steps.append(SchemaFile(int(match["version"]), match["name"], sql, checksum))
    return tuple(sorted(steps))


def missing(dialect: str, applied: Mapping[int, str]) -> list[SchemaFile]:
    """Return the files that a database lacks.

    Args:
        dialect: `sqlite` or `postgres`.
        applied: The checksums that the database recorded, by version.

    Raises:
        SchemaError: The database is newer than the library, or was made by files other than ours.
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


def described(dialect: str, applied: Mapping[int, str], original_version: int) -> str:
    """Say in a few words which schema a database has.

    Args:
        dialect: `sqlite` or `postgres`.
        applied: The checksums that the database recorded, by version.
        original_version: Where there are none, what `adopted_version` returns.

    Raises:
        SchemaError: As `missing` does.
    """
    lacking = missing(dialect, applied)
    if applied:
        return f"version {max(applied)}" + (
            f", {len(lacking)} behind: upgraded at first use" if lacking else ", current"
        )
    if original_version:
        return f"the original application's, generation {original_version}: adopted in place at first use"
    return "none yet: made at first use"


def adopted_version(columns: Mapping[str, set[str]]) -> int:
    """Return which generation of the original application made the tables of a database without a version table.

    Args:
        columns: The columns of `sessions` and of `messages`; a table that is missing has none.

    Returns:
        0 for a database that has neither table, else the version that stands for that generation.

    Raises:
        SchemaError: The tables are somebody else's.
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
            f"{', '.join(sorted(unknown))}; move them to a table of your own, so that nothing is lost"
        )
    return 2 if "user_id" in sessions else 1
