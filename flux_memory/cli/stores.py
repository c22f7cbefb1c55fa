"""Options that name a store, and the store that they or the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from flux_memory.dsn import SecretText, mask_dsn, parse_dsn


class NamedStore(NamedTuple):
    """A store: exactly one of the two."""

    sqlite_path: Path | None
    postgres_dsn: str | None

    def __str__(self) -> str:
        """Return the store's address without its password."""
        return str(self.sqlite_path) if self.postgres_dsn is None else mask_dsn(self.postgres_dsn)


def store_options(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `--sqlite-path` and `--postgres-dsn` to a command.

    Args:
        what: What the command does to the store, as a verb.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        file = click.option("--sqlite-path", metavar="FILE", help=f"{what} this SQLite file, not the settings' store.")
        database = click.option(
            "--postgres-dsn",
            type=SecretText,
            metavar="DSN",
            help=f"{what} this PostgreSQL database, not the settings' store.",
        )
        return file(database(command))

    return decorate


def name_store(sqlite_path: str | None, postgres_dsn: str | None) -> NamedStore:
    """Return the store that the options name, else that of the settings.

    Raises:
        UsageError: The options exclude each other, or one of them is empty.
        InvalidInputError: The DSN or a setting is invalid, or the store is in memory.
    """
    from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic costs more than --help may

    if sqlite_path is not None and postgres_dsn is not None:
        raise click.UsageError("give --sqlite-path or --postgres-dsn, not both")
    for name, value in (("--sqlite-path", sqlite_path), ("--postgres-dsn", postgres_dsn)):
        # An unset shell variable gives an empty option, which must not mean the settings' store.
        if value == "":
            raise click.UsageError(f"{name} is empty; give it a value, or leave it out")
    if "://" in (sqlite_path or ""):
        raise click.UsageError("--sqlite-path is a URL; give the path alone, such as ./data/memory.db")
    if sqlite_path is None and postgres_dsn is None:
        settings = load_settings()
        if settings.database_backend == "postgres":
            postgres_dsn = settings.require_postgres_dsn()
        else:
            sqlite_path = settings.sqlite_path
    if postgres_dsn is not None:
        parse_dsn(postgres_dsn)
        return NamedStore(None, SecretText(postgres_dsn))
    if sqlite_path == ":memory:":
        raise click.UsageError("a store in memory ends with its process; give --sqlite-path or --postgres-dsn")
    return NamedStore(Path(sqlite_path or ""), None)
