"""Migrates SQLite to PostgreSQL: preflight, load, verify."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from typing import Any, Final, TypeVar
from uuid import UUID

from flux_memory.dsn import mask_dsn
from flux_memory.errors import FluxMemoryError, MigrationError
from flux_memory.transfer.feedback_stage import FeedbackStage
from flux_memory.transfer.plan import Mode, OnInvalid, Plan, check_plan, describe_target
from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.quarantine import add_sessions_of_target, refuse_unwritable, to_scratch, write_quarantine
from flux_memory.transfer.report import Report, Status
from flux_memory.transfer.rows.ratings import FeedbackSpool
from flux_memory.transfer.rows.spool import RefusedRow, SessionDigest, Spool, all_digests
from flux_memory.transfer.rows.validate import RowValidator
from flux_memory.transfer.source.helper import read_all
from flux_memory.transfer.source.preflight import PreflightResult
from flux_memory.transfer.source.reader import Source, inspect_source, refuse_unknown
from flux_memory.transfer.source.snapshot import Snapshot, snapshot_of
from flux_memory.transfer.target.choosing import choose_path
from flux_memory.transfer.target.load import Rows, added_columns, load, refuse_to_replace, replace
from flux_memory.transfer.target.merge_result import MergeResult
from flux_memory.transfer.target.moves import NOT_RECORDED, MoveRecord, find_source_ids, may_read_record, open_record
from flux_memory.transfer.target.parallel import merge_parts
from flux_memory.transfer.target.rehearsal import load_first
from flux_memory.transfer.target.server import (
    ANALYZE,
    WRITING,
    analyze,
    inspect_target,
    open_connection,
    prepare_schema,
    rehearsal,
    write_transaction,
)
from flux_memory.transfer.target.transfer_path import ONE_SERVER_TRANSFER
from flux_memory.transfer.target.verify import Comparison, Forecast, Losses, check_keys, compare
from flux_memory.transfer.tempfiles import private_directory
from flux_memory.transfer.threads import run_in_thread, run_stoppable

Result = TypeVar("Result")


async def migrate(plan: Plan, watcher: Watcher | None = None) -> Report:
    """Move a SQLite memory into a PostgreSQL memory, and prove that both have the same content.

    The SQLite file is never changed. Rows of the target are never overwritten, unless `plan.replace` is set. After an
    interruption at any point, a second run completes with the same result.

    Args:
        plan: The settings.
        watcher: Receives the progress.

    Returns:
        The counts and the outcome; see `Report.status`.

    Raises:
        FluxMemoryError: The migration failed; the message says why, and what to do.
    """
    check_plan(plan)
    if plan.quarantine_file is not None and plan.mode is Mode.MOVE:
        refuse_unwritable(plan.quarantine_file)
    report = Report(str(plan.sqlite_path), mask_dsn(plan.postgres_dsn), replaces=plan.replace)
    with ExitStack() as stack:
        path = plan.sqlite_path
        if plan.retry:
            path = stack.enter_context(private_directory()) / "retry.db"
            await run_stoppable(partial(to_scratch, plan.sqlite_path, path))
            await add_sessions_of_target(path, plan.postgres_dsn)
        snapshot = stack.enter_context(snapshot_of(path))
        with Spool() as spool, FeedbackSpool() as entries:
            feedback = FeedbackStage(plan, entries)
            await _Migration(report, snapshot, spool, feedback, watcher or NullWatcher()).run()
    return report


class _Migration:
    def __init__(
        self, report: Report, snapshot: Snapshot, spool: Spool, feedback: FeedbackStage, watcher: Watcher
    ) -> None:
        self._plan: Final = feedback.plan
        self._report: Final = report
        self._watcher: Final = watcher
        self._snapshot: Final = snapshot
        self._validator: Final = RowValidator(feedback.plan.assume_timezone)
        self._spool: Final = spool
        self._feedback: Final = feedback
        self._parts: list[Spool] = []
        self._path = ONE_SERVER_TRANSFER
        self._filled = False
        """Whether an empty target was filled, whose statistics the server does not have yet."""

    async def run(self) -> None:
        plan, report = self._plan, self._report
        await self._read_in_thread(self._snapshot.open)
        sessions, messages = await self._retry_if_changed(self._count)
        self._watcher.say(f"Found {sessions:,} sessions, {messages:,} messages in {plan.sqlite_path}")
        async with open_connection(plan.postgres_dsn) as connection:
            for_reading = plan.mode is Mode.VERIFY
            target = await inspect_target(connection, for_reading=for_reading, replaces=plan.replace)
            self._path = choose_path(target)
            self._watcher.say(describe_target(target, plan, report.target))
            if plan.replace and target.has_tables:
                await refuse_to_replace(connection)
            await self._retry_if_changed(lambda: self._preflight(sessions + messages))
            if report.preflight.refused and plan.on_invalid is OnInvalid.FAIL:
                report.status = Status.REFUSED
                return
            if plan.mode is Mode.PREFLIGHT:
                with report.phase(self._watcher, "Rehearse", None):
                    await self._rehearse(connection, replaces=plan.replace and target.has_tables)
                return
            if plan.mode is Mode.MOVE:
                await self._move(connection)
            else:
                await self._prove(connection)
            if report.status is Status.DIFFERENT and plan.replace:
                return
            with report.phase(self._watcher, "Flush", None):
                await self._path.flush(connection)
        path = plan.quarantine_file
        if path is not None and plan.mode is Mode.MOVE and report.preflight.refused:
            # Last, since an existing file is refused: until this one exists, the same command can be run again.
            await run_in_thread(
                lambda: write_quarantine(path, self._refused()), self._snapshot.interrupt, undo=path.unlink
            )
            report.quarantine = str(path)

    def _source(self) -> Source:
        """Return the open file's rows."""
        layout = inspect_source(self._snapshot.db)
        refuse_unknown(layout, self._plan.leave_behind)
        return Source(self._snapshot.db, layout, self._plan.assume_timezone)

    def _frozen_source(self) -> Source:
        """Return the file's current rows, unaffected by later writes and read in the preflight's order."""
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
            found, parts = read_all(helper, source, self._validator, self._spool, advance, keeps_rows=keeps_rows)
            self._feedback.read(source, self._validator, self._spool, found)
            return found, parts

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

    async def _prepare(self, connection: Any) -> MoveRecord | None:
        await prepare_schema(connection)
        digests = all_digests(self._parts)
        plan, found = self._plan, self._report.preflight
        record = await open_record(connection, plan.sqlite_path, digests, found.sessions, complete=not plan.retry)
        await self._feedback.prepare(connection, has_record=record is not None)
        if record is None:
            self._watcher.say(NOT_RECORDED)
        return record

    async def _rehearse(self, connection: Any, *, replaces: bool) -> None:
        """Do what a move does, but load the first rows only, and undo everything."""
        plan, report, first = self._plan, self._report, self._parts[0]
        async with rehearsal(connection):
            record = await self._prepare(connection)
            # Compared before any row is locked, since this takes long with a large target.
            only_loaded, found, source_ids = plan.replace, Comparison(), None
            if replaces:
                report.losses = Losses(columns=await added_columns(connection))
                await compare(report.losses, connection, *self._source_side(), statement=self._path.statement)
                await self._feedback.compare(report.losses, connection)
            elif not plan.replace:
                source_ids = await self._find_source_ids(connection)
                found = await self._compare(connection, source_ids, Forecast())
                only_loaded = not (found.target_sessions or found.target_messages)
            whole = await load_first(
                connection,
                first,
                record,
                self._path,
                replaces=plan.replace,
                restores_deleted=plan.restore_deleted,
                watcher=self._watcher,
            )
            await self._feedback.rehearse(connection)
            if only_loaded:
                # A trigger may have dropped or changed a row without an error.
                loaded = islice(first.digests(), first.kept_sessions)
                await self._compare(connection, source_ids, Comparison() if whole else Forecast(), loaded)
        if report.status is not Status.DIFFERENT:
            report.status = Status.READY
            report.verification = found if found.skipped else None

    async def _move(self, connection: Any) -> None:
        plan, report, watcher = self._plan, self._report, self._watcher
        record = await self._prepare(connection)
        report.recorded = record is not None
        if plan.replace:
            await self._replace(connection, record)
            return
        with report.phase(watcher, "Load", report.preflight.sessions + report.preflight.messages):
            moved = report.moved = await self._load(connection, record)
            moved.feedback = await self._feedback.load(connection)
            moved.skipped_feedback = report.preflight.feedback - moved.feedback
        if self._filled:
            with report.phase(watcher, "Analyze", None):
                await analyze(connection)
        await self._prove(connection)

    async def _load(self, connection: Any, record: MoveRecord | None) -> MergeResult:
        plan, found, advance = self._plan, self._report.preflight, self._watcher.advance
        skips_deleted = record is not None and record.known and not plan.restore_deleted
        if not skips_deleted and await load(connection, self._rows(record)):
            self._filled = True
            return MergeResult(found.sessions, found.messages)
        merged = await merge_parts(
            plan.postgres_dsn,
            connection,
            self._parts,
            record,
            self._path,
            batch_size=plan.batch_size,
            restores_deleted=plan.restore_deleted,
            advance=advance,
        )
        if record is not None:
            async with write_transaction(connection):
                await record.add_move(connection, found.sessions, found.messages)
        return merged

    def _rows(self, record: MoveRecord | None) -> Rows:
        return Rows(self._parts, self._report.preflight, self._watcher, record, self._path.drops_keys)

    async def _replace(self, connection: Any, record: MoveRecord | None) -> None:
        """Replace the target's rows, and prove the new ones before the old ones are gone."""
        report, found = self._report, self._report.preflight
        # After an error there is no ROLLBACK, for the reason given in `read_transaction`.
        transaction = connection.transaction(isolation="read_committed", readonly=False)
        await transaction.start()
        await connection.execute(WRITING)
        with report.phase(self._watcher, "Load", found.sessions + found.messages):
            before = await replace(connection, self._rows(record))
            entries = await self._feedback.replace(connection)
        with report.phase(self._watcher, "Analyze", None):
            await connection.execute(ANALYZE)
        with report.phase(self._watcher, "Verify", None):
            await self._compare(connection, None, Comparison())
        if report.status is Status.DIFFERENT:
            report.recorded = False
            await transaction.rollback()
        else:
            await transaction.commit()
            report.moved = MergeResult(
                found.sessions,
                found.messages,
                replaced_sessions=before[0],
                replaced_messages=before[1],
                feedback=found.feedback,
                replaced_feedback=entries,
            )

    async def _prove(self, connection: Any) -> None:
        """Compare both sides in a new transaction."""
        with self._report.phase(self._watcher, "Verify", None):
            async with self._path.read(connection, self._plan.postgres_dsn) as is_one_moment:
                found = Comparison(is_one_moment=is_one_moment)
                await self._compare(connection, await self._find_source_ids(connection), found)

    async def _find_source_ids(self, connection: Any) -> list[UUID] | None:
        """Return the ids that the source may have in the target's record of moves; `None` if it cannot be read."""
        if not await may_read_record(connection):
            return None
        found = self._report.preflight
        if self._plan.retry or found.refused_sessions:
            # Only part of the source is read here: a session that it lacks may not have been deleted there.
            return []
        return await find_source_ids(connection, all_digests(self._parts), found.sessions)

    async def _compare(
        self,
        connection: Any,
        source_ids: list[UUID] | None,
        found: Comparison,
        digests: Iterator[SessionDigest] | None = None,
    ) -> Comparison:
        report = self._report
        report.verification = found
        source, validator, every = self._source_side()
        await compare(
            *(found, connection, source, validator, digests or every),
            statement=self._path.statement,
            source_ids=source_ids,
            skips_deleted=self._plan.skips_deleted,
        )
        if digests is None:
            await self._feedback.compare(found, connection)
        await check_keys(found, connection)
        # A trigger may keep a row that is to be replaced.
        if not (found.identical if self._plan.replace else found.contained):
            report.status = Status.DIFFERENT
        elif report.preflight.refused:
            report.status = Status.QUARANTINED
        elif found.skipped:
            report.status = Status.SKIPPED
        else:
            report.status = Status.IDENTICAL if found.identical else Status.CONTAINED
        return found

    def _source_side(self) -> tuple[Callable[[], Awaitable[Source]], RowValidator, Iterator[SessionDigest]]:
        """Return the arguments of `compare` that describe the source."""
        return lambda: self._read_in_thread(self._frozen_source), self._validator, all_digests(self._parts)

    async def _read_in_thread(self, work: Callable[[], Result]) -> Result:
        """Read the source in a thread that `interrupt` ends."""
        return await run_in_thread(work, self._snapshot.interrupt)
