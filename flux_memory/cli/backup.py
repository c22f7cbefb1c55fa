"""The command `flux-memory backup`: checks the options, makes a backup and shows its verdict."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_memory.cli.backup_schedule import schedule
from flux_memory.cli.failure import show_failure
from flux_memory.cli.interrupting import interruptible, keeping_handlers
from flux_memory.cli.named_store import NamedStore, name_store
from flux_memory.cli.store import store_options
from flux_memory.cli.values import NamedPath
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.cli.migrate_display import Display
    from flux_memory.operations.backup import BackupPlan, BackupReport

_INTERRUPTED = "Interrupted. No backup was written, and none was removed."


class _WithSchedule(click.Command):
    """A command whose first argument may be the name of another one; a directory of that name is ./schedule."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == [schedule.name]:
            return schedule.make_context(f"{info_name} {schedule.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_WithSchedule, short_help="Back up a memory, with proof.")
@click.argument("directory", type=NamedPath())
@store_options("Back up")
@click.option("--archive", is_flag=True, help="Write JSON lines, which restore into either engine.")
@click.option("--user", metavar="ID", help="Archive the sessions of this user only; needs --archive.")
@click.option(
    "--compression",
    type=click.Choice(["zstd", "gzip"]),
    help="Of an archive; by default zstd if Python has it, else gzip.",
)
@click.option("--name", metavar="NAME", help="Begins the file's name; by default the name of the file or database.")
@click.option("--keep-daily", metavar="N", type=click.IntRange(min=0), help="Then keep one backup of each of N days.")
@click.option("--keep-weekly", metavar="N", type=click.IntRange(min=0), help="And one of each of N weeks.")
@click.option("--no-verify", is_flag=True, help="Skip the restore into a throwaway store that proves the backup.")
@click.option("--dry-run", is_flag=True, help="Read the store, name the old backups to remove, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def backup(
    *, directory: Path, sqlite_path: str | None, postgres_dsn: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Back up a memory to a new file in DIRECTORY, while applications write to it.

    A SQLite file is copied, a PostgreSQL memory is dumped by pg_dump; --archive writes a file for either engine. Each
    backup is restored into a throwaway store and compared before it gets its name. --keep-daily and --keep-weekly then
    remove older backups of the same store and kind; without them all are kept.

    `flux-memory backup schedule --help` shows how to run it every day.

    Exits with 0 if the backup is written, 1 if it failed, 2 for wrong usage.
    """
    if options["user"] is not None and not options["archive"]:
        raise click.UsageError("--user needs --archive: a copy or a dump has all users")
    if options["user"] == "":
        raise click.UsageError("--user is empty; give it a value, or leave it out")
    if options["compression"] and not options["archive"]:
        raise click.UsageError("--compression needs --archive")
    try:
        report = _run(_plan(directory, name_store(sqlite_path, postgres_dsn), options), quiet=quiet or as_json)
    except FluxMemoryError as error:
        show_failure(error, as_json=as_json)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(_INTERRUPTED, err=True)
        sys.exit(1)
    if as_json:
        click.echo(printable(json.dumps({"ok": True, **report.as_dict()})))


def _plan(directory: Path, store: NamedStore, options: dict[str, Any]) -> BackupPlan:
    from flux_memory.operations.backup import BackupPlan, Compression, Retention  # noqa: PLC0415 - costs more than --help may

    compression = options["compression"]
    return BackupPlan(
        directory=directory,
        sqlite_path=store.sqlite_path,
        postgres_dsn=store.postgres_dsn,
        archive=options["archive"],
        user=options["user"],
        name=options["name"],
        compression=None if compression is None else Compression(compression),
        verify=not options["no_verify"],
        retention=Retention(options["keep_daily"], options["keep_weekly"]),
        dry_run=options["dry_run"],
    )


def _run(plan: BackupPlan, *, quiet: bool) -> BackupReport:
    from flux_memory.cli.migrate_display import Display  # noqa: PLC0415 - rich costs more than --help may
    from flux_memory.operations.backup import create_backup  # noqa: PLC0415 - so do drivers

    with keeping_handlers():
        with Display(quiet=quiet) as display:
            report = asyncio.run(interruptible(create_backup(plan, display)))
        _show(report, display)
    return report


def _show(report: BackupReport, display: Display) -> None:
    manifest = report.manifest
    assert manifest is not None  # noqa: S101 - of a backup that succeeded
    if report.path is not None:
        rows = 0 if manifest.contents is None else manifest.contents.rows
        rate = f", {rows / report.seconds:,.0f} rows/s" if rows else ""
        display.say(f"Wrote {report.path}: {manifest.size:,} bytes in {report.seconds:.1f} s{rate}")
    for path in report.removed:
        display.say(f"{'Would remove' if report.dry_run else 'Removed'} {path}")
    if report.path is None:
        display.say(f"Ready: {manifest.describe()} of {report.source}. Run again without --dry-run to back it up.")
    elif manifest.verified:
        display.say(
            "Proven identical: the backup was restored into a throwaway store, which has the same sessions, "
            "messages in order, and feedback."
        )
    else:
        display.say("Not proven: --no-verify skipped the trial restore. Run flux-memory restore --dry-run to read it.")
