"""Restores a backup: proves it, looks at what the target would lose, puts the rows there, and proves these."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from flux_memory.dsn import SecretText, mask_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup import hidden
from flux_memory.operations.backup.contents import refuse_unknown_user
from flux_memory.operations.backup.manifest import Kind
from flux_memory.operations.restore import postgres_target, sqlite_target
from flux_memory.operations.restore.populated import Populated
from flux_memory.operations.restore.recognizing import Backup, recognize
from flux_memory.operations.restore.unpacking import Unpacked, unpack
from flux_memory.transfer.progress import NullWatcher, Watcher
from flux_memory.transfer.tempfiles import private_directory
from flux_memory.transfer.threads import run_stoppable


class Outcome(StrEnum):
    """How a restore ended."""

    RESTORED = "restored"
    """The target is proven to hold the rows of the backup."""
    UNPROVEN = "unproven"
    """A dump without a manifest was restored, so there was nothing to compare it with."""
    READY = "ready"
    """A dry run found no obstacle."""
    REFUSED = "refused"
    """A dry run found rows that only a replacement may remove."""


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """The settings of a restore."""

    path: Path
    """The backup."""
    sqlite_path: Path | None = None
    postgres_dsn: str | None = field(default=None, repr=False)
    """The target: exactly one of the two."""
    user: str | None = None
    """The only user whose sessions to restore; those of other users in the target stay."""
    replace: bool = False
    """Remove the rows of the target, or those of the user, first."""
    dry_run: bool = False
    needs_manifest: bool = True
    """Refuse a copy or a dump without a manifest."""


@dataclass
class RestoreReport:
    """The outcome of a restore."""

    source: str
    target: str
    """The store, without a password."""
    outcome: Outcome = Outcome.REFUSED
    made: str = ""
    """When and of which store the backup was made, in words."""
    held: str = ""
    """What the backup holds, in words."""
    user: str | None = None
    lost: Populated = field(default_factory=Populated)
    """The rows that were replaced or, in a dry run, would be."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0: success; 1: refused."""
        return 1 if self.outcome is Outcome.REFUSED else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict that JSON can represent."""
        return {
            "source": self.source,
            "target": self.target,
            "outcome": str(self.outcome),
            "exit_code": self.exit_code,
            "made": self.made,
            "held": self.held,
            "user": self.user,
            "lost": {**asdict(self.lost), "tables": [*self.lost.tables]},
            "seconds": round(self.seconds, 3),
        }


async def restore_backup(plan: RestorePlan, watcher: Watcher | None = None) -> RestoreReport:
    """Restore a backup into a memory of either engine, and prove that it holds the rows of the backup.

    The backup is read and proven before the target is changed. The target changes in one transaction, or appears as one
    file; a restore that fails, is cancelled or killed leaves it as it was.

    Args:
        plan: The settings.
        watcher: Receives the progress.

    Raises:
        FluxMemoryError: The restore failed; the message says why, and what to do.
    """
    if (plan.sqlite_path is None) == (plan.postgres_dsn is None):
        raise BackupError("a restore needs a SQLite path or a PostgreSQL DSN, not both; give one")
    target = str(plan.sqlite_path) if plan.postgres_dsn is None else mask_dsn(plan.postgres_dsn)
    report = RestoreReport(str(plan.path), target)
    began = time.monotonic()
    with ExitStack() as stack:
        await _Restore(plan, report, watcher or NullWatcher(), stack).run()
    report.seconds = time.monotonic() - began
    return report


class _Restore:
    def __init__(self, plan: RestorePlan, report: RestoreReport, watcher: Watcher, stack: ExitStack) -> None:
        self._plan = plan
        self._report = report
        self._watcher = watcher
        self._stack = stack
        self._dsn = None if plan.postgres_dsn is None else SecretText(plan.postgres_dsn)

    async def run(self) -> None:
        plan, report, watcher = self._plan, self._report, self._watcher
        watcher.phase("Check", None)
        backup = await run_stoppable(
            lambda stopped: recognize(plan.path, needs_manifest=plan.needs_manifest, stopped=stopped)
        )
        report.made, report.user = backup.made, self._choose_user(backup)
        watcher.say(f"Backup: {backup.kind}, {backup.made}")
        schema_name = await self._inspect_target()
        if report.lost and not (plan.replace or plan.dry_run):
            raise BackupError(self._why_refused())
        as_it_is = self._restores_as_it_is(backup, schema_name)
        unpacked: Unpacked | None = None
        if not as_it_is:
            unpacked = await self._unpack(backup)
            refuse_unknown_user(report.user, unpacked.contents)
            report.held = str(unpacked.contents)
        elif backup.manifest is not None:
            report.held = backup.manifest.describe()
        if plan.dry_run:
            report.outcome = Outcome.REFUSED if report.lost and not plan.replace else Outcome.READY
            return
        if unpacked is None:
            assert self._dsn is not None  # noqa: S101 - a dump goes into a database
            await postgres_target.restore_dump_as_it_is(backup, self._dsn, watcher)
            report.outcome = Outcome.UNPROVEN if backup.manifest is None else Outcome.RESTORED
            return
        await self._load(unpacked)
        report.outcome = Outcome.RESTORED

    def _choose_user(self, backup: Backup) -> str | None:
        wanted = self._plan.user
        if backup.user is not None and wanted not in {None, backup.user}:
            raise BackupError(f"{backup.path} has the sessions of another user only; use a backup of all users")
        return wanted if backup.user is None else backup.user

    async def _inspect_target(self) -> str | None:
        report, schema_name = self._report, None
        if self._dsn is not None:
            report.lost, schema_name = await postgres_target.inspect_database(self._dsn, report.user)
        elif (path := self._plan.sqlite_path) is not None:
            if path.absolute() == self._plan.path.absolute() or (path.exists() and path.samefile(self._plan.path)):
                raise BackupError(f"{path} is the backup itself; give another target")
            report.lost = await run_stoppable(lambda _: sqlite_target.inspect_file(path, report.user))
        what = "" if report.user is None else " of the user"
        self._watcher.say(f"Target: {report.target}, with {report.lost}{what}")
        return schema_name

    def _restores_as_it_is(self, backup: Backup, schema_name: str | None) -> bool:
        """Return whether pg_restore can create the tables: where they exist, their rights and policies are kept."""
        return (
            backup.kind is Kind.DUMP
            and self._dsn is not None
            and self._report.user is None
            and not self._report.lost.exists
            and (backup.manifest is None or backup.manifest.schema == schema_name)
        )

    async def _unpack(self, backup: Backup) -> Unpacked:
        directory = self._stack.enter_context(private_directory())
        return await unpack(backup, self._report.user, directory, self._dsn, self._watcher)

    async def _load(self, unpacked: Unpacked) -> None:
        plan, user, watcher, lost = self._plan, self._report.user, self._watcher, self._report.lost
        if self._dsn is not None:
            if unpacked.unknown:
                watcher.say(f"Left out, since they are not conversation memory: {', '.join(unpacked.unknown)}")
            if user is None:
                await postgres_target.load_all(unpacked, self._dsn, watcher, replace=plan.replace and lost.exists)
            else:
                await postgres_target.replace_user(unpacked, self._dsn, user, watcher, replace=plan.replace)
            return
        path = plan.sqlite_path
        assert path is not None  # noqa: S101 - one of the two
        watcher.phase("Load", None)
        if not lost.exists:
            hidden.remove_leftovers(path.absolute().parent)
            await run_stoppable(lambda stopped: sqlite_target.create_file(unpacked, path, stopped))
        elif user is None:
            await run_stoppable(lambda stopped: sqlite_target.overwrite_file(unpacked, path, stopped))
        else:
            await run_stoppable(lambda stopped: sqlite_target.replace_user(unpacked, path, user, stopped))

    def _why_refused(self) -> str:
        user = "" if self._report.user is None else " of the user"
        return (
            f"{self._report.target} has {self._report.lost}{user}, which the restore would replace; nothing was "
            "changed. Look with --dry-run, then run with --replace, or restore into an empty target"
        )
