"""Names the store to back up, or to restore into, by its path or its DSN."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click

from flux_memory.cli.store import choose_settings
from flux_memory.dsn import SecretText, parse_dsn


class NamedStore(NamedTuple):
    """A store: exactly one of the two."""

    sqlite_path: Path | None
    postgres_dsn: str | None


def name_store(sqlite_path: str | None, postgres_dsn: str | None) -> NamedStore:
    """Return the store that the options name, else that of the settings.

    Raises:
        UsageError: The options exclude each other, one of them is empty, or the store is in memory.
        InvalidInputError: The DSN or a setting is invalid.
    """
    settings = choose_settings(sqlite_path, postgres_dsn)
    if settings.database_backend == "postgres":
        dsn = settings.require_postgres_dsn()
        parse_dsn(dsn)
        return NamedStore(None, SecretText(dsn))
    path = settings.sqlite_path if sqlite_path is None else sqlite_path
    if path == ":memory:":
        raise click.UsageError("a store in memory ends with its process; give --sqlite-path or --postgres-dsn")
    return NamedStore(Path(path), None)
