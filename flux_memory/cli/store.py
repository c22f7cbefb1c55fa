"""Options that name a store, and the store that they or the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from flux_memory.dsn import SecretText
from flux_memory.records.text import find_unstorable

if TYPE_CHECKING:
    from flux_memory.settings import Settings


def store_options(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `--sqlite-path` and `--postgres-dsn`; the verb begins their help."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--postgres-dsn",
            type=SecretText,
            metavar="DSN",
            help=f"{verb} this PostgreSQL database instead of the settings' store.",
        )(command)
        return click.option(
            "--sqlite-path", metavar="FILE", help=f"{verb} this SQLite file instead of the settings' store."
        )(command)

    return add


def check_store_options(sqlite_path: str | None, postgres_dsn: str | None) -> None:
    """Refuse options that name no store, or two.

    Raises:
        click.UsageError: The options are wrong.
    """
    if sqlite_path is not None and postgres_dsn is not None:
        raise click.UsageError("give --sqlite-path or --postgres-dsn, not both")
    if sqlite_path is not None and (not sqlite_path or find_unstorable(sqlite_path)):
        raise click.UsageError("--sqlite-path is empty or not text; give the path of a file, in UTF-8")
    if "://" in (sqlite_path or ""):
        raise click.UsageError("--sqlite-path is a URL; give the path alone, such as ./data/memory.db")
    if postgres_dsn == "":
        # An unset shell variable gives an empty option, which must not mean the settings' store.
        raise click.UsageError("--postgres-dsn is empty; give it a value, or leave it out")


def choose_settings(sqlite_path: str | None, postgres_dsn: str | None) -> Settings:
    """Return the settings, with the store that an option names.

    Raises:
        click.UsageError: Both options are given, or the path is not one.
        InvalidInputError: A setting is invalid; the message names it.
    """
    check_store_options(sqlite_path, postgres_dsn)
    from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic costs more than the rest

    if sqlite_path is not None:
        return load_settings(database_backend="sqlite", database_url=f"sqlite+aiosqlite:///{quote(sqlite_path)}")
    if postgres_dsn is not None:
        return load_settings(database_backend="postgres", postgres_dsn=postgres_dsn, postgres_replica_dsn="")
    return load_settings()
