"""Checks a configured store for `flux-memory check`: connection, schema, contents, and every method."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flux_memory.backends.sqlite.errors import translate_errors as translate_sqlite_errors
from flux_memory.backends.sqlite.file import check_usable, hint_at_original, refuse_special_files
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn
from flux_memory.errors import BackendUnavailableError, SchemaError
from flux_memory.health.methods import check_methods
from flux_memory.schema import WITH_FEEDBACK, describe_version, missing_steps
from flux_memory.schema import sqlite as sqlite_schema
from flux_memory.schema.postgres.tables import IS_MEMORY

__all__ = ["ROW_SECURITY", "CheckReport", "check_methods", "check_postgres", "check_replicas", "check_sqlite"]

MAY_MAKE_TABLES: Final = "SELECT has_schema_privilege(current_schema()::text, 'CREATE')"
IS_STANDBY: Final = "SELECT pg_catalog.pg_is_in_recovery()"
COUNTS: Final = "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM messages)"
# Tables whose rows a policy may hide from the role, and whether some policy lets it read.
ROW_SECURITY: Final = f"""
SELECT
    relname::text,
    EXISTS (
        SELECT FROM pg_policy
        WHERE polrelid = pg_class.oid AND polpermissive AND polcmd IN ('r', '*')
            AND EXISTS (
                SELECT FROM pg_catalog.unnest(polroles) AS holder
                WHERE holder = 0::oid OR pg_has_role(holder, 'USAGE')
            )
    )
FROM pg_class
WHERE {IS_MEMORY}
    AND row_security_active(oid)
ORDER BY relname DESC
"""  # noqa: S608 - constants of ours
COUNT_FEEDBACK: Final = "SELECT count(*) FROM feedback"

_ROUND_TRIPS: Final = 5
_POOL_CONNECTIONS: Final = 10
_LOCK_SHARE: Final = 0.9
"""Share of the deadline to wait for another process's lock; the rest lets the caller report it."""
_INTERRUPT_SECONDS: Final = 0.05
"""Seconds between two attempts to interrupt the inspection of a file at its deadline."""


@dataclass
class CheckReport:
    """The results of a check, in the order of the output. Passwords are masked."""

    backend: str
    target: str
    server: str = ""
    role: str = ""
    """`primary` or `standby`; empty for SQLite."""
    schema: str = ""
    repairs: list[str] = field(default_factory=list)
    """The statements by which the first use repairs the original application's tables, before it upgrades them."""
    warnings: list[str] = field(default_factory=list)
    sessions: int | None = 0
    """`None` if they were not counted."""
    messages: int | None = 0
    feedback: int | None = 0
    row_security: list[str] = field(default_factory=list)
    """Tables whose rows row-level security may hide from the role; the counts include only rows that it sees."""
    pool: str = ""
    round_trip_ms: float | None = None
    """The median of five."""
    replicas: list[str] = field(default_factory=list)
    """Each replica that reads may use, with how far it is behind the primary; `warnings` has the others."""
    note: str = ""
    """A remark that is not a fault, such as a file that the settings may mean instead."""
    full: list[str] = field(default_factory=list)
    """The methods that the full check called."""


async def check_sqlite(
    path: str,
    timeout: float,  # noqa: ASYNC109 - own
    *,
    must_exist: bool = False,
    counts: bool = True,
) -> CheckReport:
    """Check a SQLite file without creating or changing it.

    Args:
        path: The file, or `:memory:`.
        timeout: Seconds within which the check ends.
        must_exist: Whether a missing file is an error.
        counts: Whether to count sessions and messages, which takes as long as there are many.

    Raises:
        FluxMemoryError: The store cannot be used; the message names the next step.
    """
    look = _FileLook(path, timeout, must_exist, counts)
    # Not on the event loop: SQLite waits for another process's lock.
    looking = asyncio.ensure_future(asyncio.to_thread(look.run))
    try:
        await asyncio.wait([looking], timeout=timeout)
    finally:
        while not looking.done():
            # Repeated, since an interrupt between two statements has no effect.
            look.interrupt()
            await asyncio.wait([looking], timeout=_INTERRUPT_SECONDS)
    with translate_sqlite_errors(path):
        return looking.result()


async def check_postgres(
    dsn: str,
    timeout: float,  # noqa: ASYNC109 - part of what is reported
    *,
    counts: bool = True,
) -> CheckReport:
    """Check a PostgreSQL database without changing it.

    Args:
        dsn: A DSN as for `PostgresConversationMemory`.
        timeout: Seconds within which the check ends.
        counts: Whether to count sessions and messages, which takes as long as there are many.

    Raises:
        FluxMemoryError: The store cannot be used; the message names the next step.
    """
    from flux_memory.backends.postgres.call_state import CallState  # noqa: PLC0415 - only the driver in use
    from flux_memory.backends.postgres.errors import translate_errors  # noqa: PLC0415 - only the driver in use
    from flux_memory.backends.postgres.pool import OwnPool  # noqa: PLC0415 - only the driver in use

    dsn = SecretText(dsn)
    report = CheckReport("postgres", mask_dsn(dsn))
    pool = OwnPool(parse_dsn(dsn), 2, _POOL_CONNECTIONS, timeout)
    state = CallState(writes=False)
    try:
        with translate_errors(report.target, timeout, state, pool):
            async with asyncio.timeout(timeout):
                connection = await pool.take()
                state.sending()
                await pool.fill()
                report.pool = f"{pool.size} of {_POOL_CONNECTIONS} connections open"
                await _look_at_server(connection, report, counts=counts)
                pool.put_back(connection)
                await pool.close(timeout)
    finally:
        pool.terminate()
    return report


async def check_replicas(dsn: str, replica_dsn: str, report: CheckReport) -> None:
    """Add to a report which replicas reads may use, and why not the others.

    Args:
        dsn: The DSN of the primary.
        replica_dsn: The DSN whose hosts are the replicas.
        report: The report on the primary.

    Raises:
        InvalidInputError: A DSN is invalid.
    """
    from flux_memory.backends.postgres.replicas.inspecting import inspect_replicas  # noqa: PLC0415 - only with replicas

    for each in await inspect_replicas(SecretText(dsn), SecretText(replica_dsn)):
        if each.trouble:
            report.warnings.append(f"reads do not use the replica {each.shown}: {each.trouble}")
        else:
            report.replicas.append(f"{each.shown}, {each.bytes_behind:,} bytes behind")


def _check_can_be_made(file: Path) -> None:
    directory = next(parent for parent in file.absolute().parents if parent.exists())
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise BackendUnavailableError(
            f"SQLite on {file}: the file does not exist and {directory} cannot be written; "
            "give the process rights there, or choose another path"
        )


class _FileLook:
    """Looks at a SQLite file; another thread may end that by `interrupt`."""

    def __init__(self, path: str, timeout: float, must_exist: bool, counts: bool) -> None:
        self._path = path
        self._timeout = timeout
        self._must_exist = must_exist
        self._counts = counts
        self._db: sqlite3.Connection | None = None

    def interrupt(self) -> None:
        if (db := self._db) is not None:
            # The other thread may have closed it.
            with suppress(sqlite3.ProgrammingError):
                db.interrupt()

    def run(self) -> CheckReport:
        report = CheckReport(
            "sqlite", self._path, f"SQLite {sqlite3.sqlite_version}", pool="one connection on a thread"
        )
        if self._path == ":memory:":
            report.schema = describe_version("sqlite", {}, 0)
            return report
        file = Path(self._path).absolute()
        report.target = str(file)
        refuse_special_files(file)
        if not file.exists():
            _check_can_be_made(file)
            report.note = hint_at_original(self._path)
            if self._must_exist:
                hint = f"; {report.note}" if report.note else ""
                raise BackendUnavailableError(
                    f"the file {file} does not exist; correct the path, or create a store there with --full{hint}"
                )
            report.target = f"would be created at {file}"
            report.schema = describe_version("sqlite", {}, 0)
            return report
        check_usable(file)
        # Not mode=ro: such a reader leaves the log's files behind.
        uri = f"{file.as_uri()}?mode=rw"
        timeout = self._timeout * _LOCK_SHARE
        with closing(sqlite3.connect(uri, uri=True, timeout=timeout, check_same_thread=False)) as db:
            self._db = db
            _read(db, report, counts=self._counts)
        return report


def _read(db: sqlite3.Connection, report: CheckReport, *, counts: bool) -> None:
    sqlite_schema.distrust(db)
    db.execute("PRAGMA query_only = ON")
    applied = sqlite_schema.applied_versions(db)
    original = 0 if applied else sqlite_schema.original_version(db)
    report.schema = describe_version("sqlite", applied, original)
    sqlite_schema.inspect(db, applied)
    if not counts:
        report.sessions = report.messages = report.feedback = None
    elif applied or original:
        report.sessions, report.messages = db.execute(COUNTS).fetchone()
    if counts and max(applied, default=0) >= WITH_FEEDBACK:
        (report.feedback,) = db.execute(COUNT_FEEDBACK).fetchone()
    times = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        times.append(time.perf_counter() - began)
    report.round_trip_ms = statistics.median(times) * 1000


async def _look_at_server(connection: Any, report: CheckReport, *, counts: bool) -> None:
    from flux_memory.backends.postgres.preparing import check_encoding  # noqa: PLC0415 - only the driver in use
    from flux_memory.schema import postgres as schema  # noqa: PLC0415 - only the driver in use

    report.server = f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    report.role = "standby" if await connection.fetchval(IS_STANDBY) else "primary"
    await check_encoding(connection)
    # In one snapshot, since another process may upgrade the tables.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        state = await schema.inspect(connection)
    report.schema = describe_version("postgres", state.applied, state.original)
    if report.role == "standby":
        if missing_steps("postgres", state.applied):
            raise SchemaError(
                f"PostgreSQL at {report.target}: the server is a standby, and its tables are not those of this release "
                f"({report.schema}); create or upgrade them on its primary with flux-memory check --full"
            )
        report.note = "a standby: reads work, writes need the primary"
    report.repairs = [fault.statement for fault in state.repairs]
    report.warnings = [
        f"{each.grantee} may create objects in the schema {each.name}, which search_path names; run REVOKE CREATE ON "
        f"SCHEMA {each.name} FROM {each.grantee}"
        for each in state.open_schemas
    ]
    if state.version:
        await _count_rows(connection, report, state.version, counts=counts)
    elif not await connection.fetchval(MAY_MAKE_TABLES):
        raise SchemaError(
            f"PostgreSQL at {report.target}: the role sees no tables there and may not create any; create them as "
            "their owner with flux-memory check --full, and grant the role what it lacks"
        )
    times = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        await connection.fetchval("SELECT 1")
        times.append(time.perf_counter() - began)
    report.round_trip_ms = statistics.median(times) * 1000


async def _count_rows(connection: Any, report: CheckReport, version: int, *, counts: bool) -> None:
    tables = await connection.fetch(ROW_SECURITY)
    report.row_security = [name for name, _ in tables]
    if hidden := [name for name, may_read in tables if not may_read]:
        raise SchemaError(
            f"PostgreSQL at {report.target}: row-level security is on for {', '.join(hidden)}, and no policy lets the "
            "role read a row, so that the store looks empty to it; create a policy for the role, or connect as another"
        )
    if not counts:
        report.sessions = report.messages = report.feedback = None
        return
    async with connection.transaction(readonly=True):
        if not tables:
            # If a policy was created just now, the server raises instead of counting only the rows that it shows.
            await connection.execute("SET LOCAL row_security = off")
        report.sessions, report.messages = await connection.fetchrow(COUNTS)
        if version >= WITH_FEEDBACK:
            report.feedback = await connection.fetchval(COUNT_FEEDBACK)
