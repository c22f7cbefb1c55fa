"""Databases that are made once for a run and copied for each test. All processes of a run share them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import asyncpg

from flux_memory.testkit.servers.dsns import with_database, with_login
from flux_memory.testkit.servers.recipe import DatabaseInitError, Recipe, Step, call_function, name_of
from flux_memory.testkit.servers.roles import Roles, quote_name, quote_text
from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements

_BUILD_SECONDS: Final = 600.0
"""Time limit of one step, and of waiting for a template that another process of the run makes."""
_POLL_SECONDS: Final = 0.02
_EXISTS: Final = "SELECT count(*) > 0 FROM pg_database WHERE datname = $1"
_TRY: Final = "SELECT pg_try_advisory_lock(hashtext($1), hashtext('flux-memory template'))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext($1), hashtext('flux-memory template'))"
_COMMENTS: Final = re.compile(r"--[^\n]*|/\*.*?\*/|[\s;]", re.DOTALL)
END_OTHERS: Final = """
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_NOT_STATEMENTS: Final = "it has commands of psql; make it with `pg_dump --inserts`, or pass a function that runs psql"


class Templates:
    """The templates of one run on one server."""

    def __init__(self, statements: Statements, maintenance_dsn: str, roles: Roles) -> None:
        self._statements = statements
        self._maintenance = maintenance_dsn
        self._roles = roles
        self._ready: set[str] = set()
        self._failed: dict[str, DatabaseInitError] = {}

    def ensure(self, name: str, recipe: Recipe, create: Callable[[Recipe], str]) -> None:
        """Make a template unless a process of the run has.

        Args:
            name: The name of the template.
            recipe: How to make it.
            create: Creates a scratch database that a later run removes if this process is killed; returns its name.

        Raises:
            DatabaseInitError: A step failed. Later calls with the same recipe raise the same error.
        """
        if name in self._ready:
            return
        if name in self._failed:
            raise self._failed[name]
        with self._locked(name):
            if not self._statements.fetch_value(self._maintenance, _EXISTS, name):
                scratch = create(recipe)
                try:
                    self._fill(scratch, recipe)
                    # Only a finished template has its name, so that no process copies a part of one.
                    self._statements.execute(
                        self._maintenance, f"ALTER DATABASE {quote_name(scratch)} RENAME TO {quote_name(name)}"
                    )
                except BaseException as error:
                    if isinstance(error, DatabaseInitError):
                        self._failed[name] = error
                    drop = f"DROP DATABASE IF EXISTS {quote_name(scratch)} WITH (FORCE)"
                    self._statements.execute(self._maintenance, drop)
                    raise
        self._ready.add(name)

    def _fill(self, scratch: str, recipe: Recipe) -> None:
        admin = with_database(self._maintenance, scratch)
        owner = admin
        if recipe.owner is not None:
            owner = with_login(admin, recipe.owner, self._roles.password_of(recipe.owner))
        try:
            for extension in recipe.extensions:
                with _naming(f"the extension {extension!r}", ""):
                    script = f"CREATE EXTENSION IF NOT EXISTS {quote_name(extension)} CASCADE"
                    self._statements.run_script(admin, script, _BUILD_SECONDS)
            for number, step in enumerate(recipe.init, 1):
                self._run_step(step, owner, f"step {number} of {len(recipe.init)}, {name_of(step)},")
        finally:
            # A function may have left connections, with which a database can be neither renamed nor copied.
            self._statements.fetch_value(admin, END_OTHERS)
            self._statements.forget(admin)

    def _run_step(self, step: Step, dsn: str, name: str) -> None:
        if not isinstance(step, str | Path):
            with _naming(name, ""):
                call_function(step, dsn)
            return
        script = step if isinstance(step, str) else step.read_text(encoding="utf-8-sig")
        if not _COMMENTS.sub("", script):
            # asyncpg fails if there is nothing to run.
            return
        with _naming(name, script):
            self._statements.run_script(dsn, script, _BUILD_SECONDS)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        deadline = time.monotonic() + _BUILD_SECONDS
        while not self._statements.fetch_value(self._maintenance, _TRY, name):
            if time.monotonic() > deadline:
                raise DatabaseInitError(
                    f"another process of the run has been making this database for {_BUILD_SECONDS:.0f} s"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._statements.fetch_value(self._maintenance, _UNLOCK, name)


@contextmanager
def _naming(step: str, script: str) -> Iterator[None]:
    """Name the step in errors, with the line of the script if the server says where the error is."""
    try:
        yield
    except NotAnswered as error:
        raise DatabaseInitError(f"{step} failed: {error}") from error
    except Exception as error:
        place = ""
        if (position := getattr(error, "position", None)) and script:
            place = f" in line {script.count(chr(10), 0, int(position)) + 1}"
        advice = ""
        if isinstance(error, asyncpg.PostgresSyntaxError):
            if "\n\\" in f"\n{script}":
                advice = f" ({_NOT_STATEMENTS})"
            elif script.endswith(".sql"):
                advice = " (a path with white space is SQL: pass it as a pathlib.Path)"
        raise DatabaseInitError(f"{step} failed{place}: {type(error).__name__}: {error}{advice}") from error


def creation(name: str, recipe: Recipe, template: str, *, copy_files: bool) -> str:
    """Return the statement that creates a recipe's database.

    Args:
        name: The new database.
        recipe: Its owner and locale.
        template: The database to copy.
        copy_files: Copy files instead of logging each page; faster where nothing is synchronised to a disk.
    """
    parts = [f"CREATE DATABASE {quote_name(name)} TEMPLATE {quote_name(template)}"]
    if recipe.owner is not None:
        parts.append(f"OWNER {quote_name(recipe.owner)}")
    if recipe.locale is not None:
        parts.append(f"LOCALE {quote_text(recipe.locale)}")
    if copy_files:
        parts.append("STRATEGY file_copy")
    return " ".join(parts)
