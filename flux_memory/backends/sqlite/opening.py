"""Opens a SQLite file for a memory: private, durable, checked, and with a current schema."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from flux_memory.backends.sqlite.errors import is_busy, is_read_only
from flux_memory.backends.sqlite.file import LOG_BYTES, OpenFile, can_only_be_read, make_private, refuse_cut_page
from flux_memory.backends.sqlite.worker import LOCK_SECONDS
from flux_memory.errors import BackendUnavailableError, FluxMemoryError
from flux_memory.records.filters import MetadataFilter
from flux_memory.schema import history
from flux_memory.schema import sqlite as schema

_LOG: Final = logging.getLogger("flux_memory.sqlite")

_REOPEN_SECONDS: Final = 0.01
"""Seconds before the next attempt to open a file that another process is opening."""

_CONNECTION: Final[dict[str, Any]] = {
    "timeout": LOCK_SECONDS,
    "isolation_level": None,
    # One thread uses it; after a fork the child's main thread closes it.
    "check_same_thread": False,
}


def connect(
    path: str,
    timeout: float,
    must_stop: Callable[[], bool] = lambda: False,
    pause: Callable[[float], object] = time.sleep,
    *,
    kind: type[sqlite3.Connection] = sqlite3.Connection,
) -> tuple[sqlite3.Connection, OpenFile]:
    """Open the file, durable and with a current schema; retry while other processes are opening it.

    Args:
        path: The file, created if it is missing, or `:memory:`.
        timeout: Seconds until a lock ends the attempts.
        must_stop: Returns whether the statement that runs has to end; SQLite itself cannot interrupt our function.
        pause: Sleeps between two attempts; returns whether to end them. An upgrade that has begun goes on.
        kind: The class of the connection.

    Raises:
        FluxMemoryError: The file or the SQLite library cannot be used; the message says what to do.
        sqlite3.Error: SQLite's own reason.
        OSError: The file cannot be created.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _connect_once(path, must_stop, kind)
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait for a lock to change the journal mode.
            if not is_busy(error) or time.monotonic() >= deadline or pause(_REOPEN_SECONDS):
                raise


def _connect_once(
    path: str, must_stop: Callable[[], bool], kind: type[sqlite3.Connection]
) -> tuple[sqlite3.Connection, OpenFile]:
    """Open the file, durable and checked, and bring its schema up to date."""
    # The releases before 3.35.5 can damage a file when they drop a column.
    if sqlite3.sqlite_version_info < (3, 35, 5):
        raise FluxMemoryError(
            f"SQLite 3.35.5 or newer is needed, and this Python has {sqlite3.sqlite_version}; use a newer Python"
        )
    if path != ":memory:":
        make_private(Path(path))
    try:
        return _prepare(path, sqlite3.connect(path, factory=kind, **_CONNECTION), must_stop)
    except sqlite3.OperationalError as error:
        if not is_read_only(error) or not can_only_be_read(path):
            raise
    # Even a reader creates files beside it, unless the file is immutable.
    uri = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"
    return _prepare(path, sqlite3.connect(uri, uri=True, factory=kind, **_CONNECTION), must_stop, frozen=True)


def _prepare(
    path: str, db: sqlite3.Connection, must_stop: Callable[[], bool], *, frozen: bool = False
) -> tuple[sqlite3.Connection, OpenFile]:
    try:
        _require(db, "synchronous", "FULL", (2,))
        _require(db, "foreign_keys", "ON", (1,))
        # A listing tests many sessions with one filter.
        prepared = lru_cache(maxsize=1)(partial(MetadataFilter, must_stop=must_stop))
        db.create_function("jsonb_contains", 2, partial(_contains, prepared), deterministic=True)
        refuse_cut_page(path, db)
        # The schema first: another program's file is refused before its journal mode changes.
        schema.bring_up_to_date(db)
        if not frozen:
            _use_write_ahead_log(path, db)
            # Creates the log, so that `OpenFile` can watch it.
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        _LOG.info(
            "opened SQLite on %s: SQLite %s, schema version %d%s",
            *(path if path == ":memory:" else Path(path).absolute(), sqlite3.sqlite_version),
            *(history("sqlite")[-1].version, ", read-only" if frozen else ""),
        )
        return db, OpenFile(path, db, frozen=frozen)
    except BaseException:
        db.close()
        raise


def _use_write_ahead_log(path: str, db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    try:
        _require(db, "journal_mode", "WAL", ("wal",) if path != ":memory:" else ("memory",))
    except sqlite3.OperationalError as error:
        # A read-only file needs no log; a write to it fails with SQLite's reason.
        if not is_read_only(error):
            raise


def _contains(prepared: Callable[[str], MetadataFilter], stored: bytes | None, part: str) -> bool:
    try:
        return stored is not None and prepared(part).finds(stored.decode())
    except UnicodeDecodeError:
        return False


def _require(db: sqlite3.Connection, pragma: str, value: str, expected: tuple[object, ...]) -> None:
    """Set a pragma and read it back: SQLite ignores a value that it cannot set."""
    if db.execute(f"PRAGMA {pragma}").fetchone()[0] in expected:
        return
    db.execute(f"PRAGMA {pragma} = {value}")
    if (found := db.execute(f"PRAGMA {pragma}").fetchone()[0]) not in expected:
        raise BackendUnavailableError(
            f"SQLite cannot set {pragma} to {value} here, it stays {found}; use a file on a local disk"
        )
