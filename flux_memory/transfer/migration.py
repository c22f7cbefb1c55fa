"""Migrates SQLite to PostgreSQL: preflight, load, verify."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from flux_memory.dsn import mask_dsn
from flux_memory.errors import FluxMemoryError, MigrationError
from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.quarantine import add_sessions_of_target, refuse_unwritable, to_scratch, write_quarantine
from flux_memory.transfer.report import Report, Status
from flux_memory.transfer.rows.spool import RefusedRow, Spool, all_digests
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.helper import read_all
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.reader import Source, inspect_source, refuse_unknown
from flux_memory.transfer.source.snapshot import Snapshot, snapshot_of
from flux_memory.transfer.target.load import load
from flux_memory.transfer.target.merge import BATCH_BYTES, MergeResult, merge
from flux_memory.transfer.target.rehearsal import rehearse
from flux_memory.transfer.target.server import (
    Target,
    analyze,
    inspect_target,
    make_durable,
    open_connection,
    prepare_schema,
    rehearsal,
)
from flux_memory.transfer.target.verify import compare
from flux_memory.transfer.tempfiles import private_directory
from flux_memory.transfer.threads import run_in_thread

Result = TypeVar("Result")


class OnInvalid(StrEnum):
    """How to treat invalid rows."""

    FAIL = "fail"
    QUARANTINE = "quarantine"


class Mode(StrEnum):
    """How much of a migration to run."""

    MOVE = "move"
    PREFLIGHT = "preflight"
    """Validate the source, rehearse the move, and change nothing."""
    VERIFY = "verify"
    """Compare both sides, and change nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a migration."""

    sqlite_path: Path
    """The SQLite file; with `retry`, the quarantine file."""
    postgres_dsn: str = field(repr=False)
    mode: Mode = Mode.MOVE
    batch_size: int = 100
    """Rows per commit if the target already has rows."""
    on_invalid: OnInvalid = OnInvalid.FAIL
    quarantine_file: Path | None = None
    """Receives refused rows; required to quarantine, and never overwritten."""
    assume_timezone: tzinfo = UTC
    """The zone of times without an offset."""
    leave_behind: frozenset[str] = frozenset()
    """Unknown tables, and columns as `table.column`, to leave out."""
    retry: bool = False


async def migrate(plan: Plan, watcher: Watcher | None = None) -> Report:
    """Move a SQLite memory into a PostgreSQL memory, and prove that both have the same content.

    The SQLite file is never changed. Rows of the target are never overwritten. After an interruption at any point, a
    second run completes with the same result.

    Args:
        plan: The settings.
        watcher: Receives the progress.

    Returns:
        The counts and the outcome; see `Report.status`.

    Raises:
        FluxMemoryError: The migration failed; the message says why, and what to do.
    """
    if plan.batch_size < 1:
        raise MigrationError(f"the batch size is {plan.batch_size}; give 1 or more")
    if plan.on_invalid is OnInvalid.QUARANTINE and plan.quarantine_file is None:
        raise MigrationError("there is no quarantine file; set one to receive refused rows")
    if plan.quarantine_file is not None and plan.mode is Mode.MOVE:
        refuse_unwritable(plan.quarantine_file)
    report = Report(str(plan.sqlite_path), mask_dsn(plan.postgres_dsn))
    with ExitStack() as stack:
        path = plan.sqlite_path
        if plan.retry:
            path = stack.enter_context(private_directory()) / "retry.db"
            stopped = threading.Event()
            await run_in_thread(lambda: to_scratch(plan.sqlite_path, path, stopped.is_set), stopped.set)
            async with open_connection(plan.postgres_dsn) as connection:
                if (await inspect_target(connection)).sessions:
                    async with rehearsal(connection):
                        await prepare_schema(connection)
                        await add_sessions_of_target(path, connection)
        snapshot = stack.enter_context(snapshot_of(path))
        with Spool() as spool:
            await _Migration(plan, report, snapshot, spool, watcher or NullWatcher()).run()
    return report


class _Migration:
    def __init__(self, plan: Plan, report: Report, snapshot: Snapshot, spool: Spool, watcher: Watcher) -> None:
        self._plan: Final = plan
        self._report: Final = report
        self._watcher: Final = watcher
        self._snapshot: Final = snapshot
        self._validator: Final = RowValidator(plan.assume_timezone)
        self._spool: Final = spool
        self._parts: list[Spool] = []
        self._filled = False
        """Whether an empty target was filled, so that the server lacks statistics."""

    async def run(self) -> None:
        plan, report = self._plan, self._report
        await self._read_in_thread(self._snapshot.open)
        sessions, messages = await self._retry_if_changed(self._count)
        self._watcher.say(f"Found {sessions:,} sessions, {messages:,} messages in {plan.sqlite_path}")
        async with open_connection(plan.postgres_dsn) as connection:
            for_reading = plan.mode is Mode.VERIFY
            target = await inspect_target(connection, for_reading=for_reading)
            self._watcher.say(_describe(target, report.target))
            await self._retry_if_changed(lambda: self._preflight(sessions + messages))
            if report.preflight.refused and plan.on_invalid is OnInvalid.FAIL:
                report.status = Status.REFUSED
                return
            if plan.mode is Mode.PREFLIGHT:
                with report.phase(self._watcher, "Rehearse", None):
                    await self._rehearse(connection)
                return
            if plan.mode is Mode.MOVE:
                await prepare_schema(connection)
                with report.phase(self._watcher, "Load", report.preflight.sessions + report.preflight.messages):
                    report.moved = await self._load(connection)
                if self._filled:
                    with report.phase(self._watcher, "Analyze", None):
                        await analyze(connection)
            with report.phase(self._watcher, "Verify", None):
                await self._verify(connection)
            with report.phase(self._watcher, "Flush", None):
                await make_durable(connection)
        path = plan.quarantine_file
        if path is not None and plan.mode is Mode.MOVE and report.preflight.refused:
            # Last, since the file is not overwritten: until it exists, the same command can be run again.
            await run_in_thread(
                lambda: write_quarantine(path, self._refused()), self._snapshot.interrupt, undo=path.unlink
            )
            report.quarantine = str(path)

    def _source(self) -> Source:
        """Return the open file's rows."""
        layout = inspect_source(self._snapshot.db)
        refuse_unknown(layout, self._plan.leave_behind)
        return Source(self._snapshot.db, layout, self._plan.assume_timezone)

    async def _open_frozen(self) -> Source:
        """Return the file's current rows, unaffected by later writes and read in the preflight's order."""
        return await self._read_in_thread(self._freeze)

    def _freeze(self) -> Source:
        found = self._report.preflight
        self._snapshot.freeze()
        source = self._source()
        source.by_time = found.by_time
        if found.tolerant:
            source.be_tolerant()
        return source

    async def _count(self) -> tuple[int, int]:
        return await self._read_in_thread(lambda: self._source().count())

    async def _preflight(self, rows: int) -> None:
        keeps_rows, advance = self._plan.mode is Mode.MOVE, self._watcher.advance

        def read() -> tuple[PreflightResult, list[Spool]]:
            source, helper = self._source(), self._snapshot.helper
            return read_all(helper, source, self._validator, self._spool, advance, keeps_rows=keeps_rows)

        with self._report.phase(self._watcher, "Preflight", rows):
            self._report.preflight, self._parts = await self._read_in_thread(read)

    async def _retry_if_changed(self, read: Callable[[], Awaitable[Result]]) -> Result:
        """Read the file; if another process wrote to it meanwhile, read its new state."""
        while True:
            try:
                result = await read()
            except (FluxMemoryError, sqlite3.Error, UnicodeDecodeError):
                if not await self._read_in_thread(self._snapshot.renew):
                    raise
            else:
                if not await self._read_in_thread(self._snapshot.renew):
                    return result
            self._watcher.say("Another process wrote to the file while it was read; it is read once more")

    def _refused(self) -> Iterator[RefusedRow]:
        for row in chain.from_iterable(part.refused() for part in self._parts):
            if self._snapshot.interrupted:
                raise MigrationError("it was cancelled")
            yield row

    async def _rehearse(self, connection: Any) -> None:
        report = self._report
        differences = await rehearse(
            connection, self._parts, report.preflight, self._open_frozen, self._validator, watcher=self._watcher
        )
        if differences.identical:
            report.status = Status.READY
        else:
            report.verification = differences

    async def _load(self, connection: Any) -> MergeResult:
        found, advance = self._report.preflight, self._watcher.advance
        if await load(connection, self._parts, found, self._watcher):
            self._filled = True
            return MergeResult(found.sessions, found.messages)
        # One connection per part, so that the server works on several processors, too.
        merged = MergeResult()
        async with AsyncExitStack() as stack:
            others = [open_connection(self._plan.postgres_dsn) for _ in self._parts[1:]]
            connections = [connection, *[await stack.enter_async_context(other) for other in others]]
            tasks = [
                asyncio.create_task(merge(own, part.batches(self._plan.batch_size, BATCH_BYTES), advance=advance))
                for own, part in zip(connections, self._parts, strict=True)
            ]
            try:
                for part in await asyncio.gather(*tasks):
                    merged.include(part)
            finally:
                await _cancel_all(tasks)
        return merged

    async def _verify(self, connection: Any) -> None:
        report = self._report
        report.verification = await compare(connection, self._open_frozen, self._validator, all_digests(self._parts))
        if not report.verification.identical:
            report.status = Status.DIFFERENT
        else:
            report.status = Status.QUARANTINED if report.preflight.refused else Status.IDENTICAL

    async def _read_in_thread(self, work: Callable[[], Result]) -> Result:
        """Read the source in a thread that `interrupt` ends."""
        return await run_in_thread(work, self._snapshot.interrupt)


async def _cancel_all(tasks: Sequence[asyncio.Task[MergeResult]]) -> None:
    """Cancel tasks and wait for their end, even if the wait is cancelled; `gather` has raised their errors."""
    cancelled: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _describe(target: Target, shown: str) -> str:
    where = f"PostgreSQL {target.server_version} at {shown}"
    if target.original:
        return (
            f"Target: {where}, with the original application's tables: {target.sessions:,} sessions, "
            f"{target.messages:,} messages; they are kept, upgraded in place, and added to"
        )
    if target.sessions or target.messages:
        return f"Target: {where}, with {target.sessions:,} sessions, {target.messages:,} messages, which are kept"
    return f"Target: {where}, empty"
