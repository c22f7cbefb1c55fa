"""The command `flux-memory restore`: checks the options, restores a backup and shows its verdict."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_memory.cli.failure import show_failure
from flux_memory.cli.interrupting import interruptible, keeping_handlers
from flux_memory.cli.named_store import NamedStore, name_store
from flux_memory.cli.store import store_options
from flux_memory.cli.values import NamedPath
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.operations.restore import RestorePlan, RestoreReport

_INTERRUPTED = "Interrupted. The target is as it was, unless the restore had just ended: check it, or run again."


@click.command(short_help="Restore a backup into either engine, with proof.")
@click.argument("file", type=NamedPath())
@store_options("Restore into")
@click.option("--user", metavar="ID", help="Restore the sessions of this user only, beside those of others.")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace what the target has, or what it has of the user. Asks first; --dry-run shows what would be lost.",
)
@click.option("--dry-run", is_flag=True, help="Read and prove the backup, look at the target, and change nothing.")
@click.option("--without-manifest", is_flag=True, help="Trust a copy or a dump without its manifest.")
@click.option("--yes", is_flag=True, help="Skip the confirmation that --replace asks for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def restore(
    *, file: Path, sqlite_path: str | None, postgres_dsn: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Restore the backup FILE of a memory into a SQLite file or a PostgreSQL database.

    The kind of backup is recognised by its content, and each kind restores into either engine. A cut or altered file is
    refused before anything changes. A target with sessions is refused without --replace.

    Exits with 0 if the target is proven to hold the backup, 1 if it failed, 2 for wrong usage.
    """
    if options["user"] == "":
        raise click.UsageError("--user is empty; give it a value, or leave it out")
    asks = options["replace"] and not (options["yes"] or options["dry_run"])
    if asks and not sys.stdin.isatty():
        raise click.UsageError("--replace removes what the target has; look first with --dry-run, then run with --yes")
    try:
        plan = _plan(file, name_store(sqlite_path, postgres_dsn), options)
        if asks:
            looked = _run(replace(plan, dry_run=True), quiet=False, asks=True)
            if looked.lost:
                click.confirm(printable(f"Replace {looked.lost} in {looked.target}?"), abort=True)
        report = _run(plan, quiet=quiet or as_json)
    except FluxMemoryError as error:
        show_failure(error, as_json=as_json)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(_INTERRUPTED, err=True)
        sys.exit(1)
    if as_json:
        click.echo(printable(json.dumps({"ok": report.exit_code == 0, **report.as_dict()})))
    sys.exit(report.exit_code)


def _plan(file: Path, store: NamedStore, options: dict[str, Any]) -> RestorePlan:
    from flux_memory.operations.restore import RestorePlan  # noqa: PLC0415 - drivers cost more than --help may

    return RestorePlan(
        path=file,
        sqlite_path=store.sqlite_path,
        postgres_dsn=store.postgres_dsn,
        user=options["user"],
        replace=options["replace"],
        dry_run=options["dry_run"],
        needs_manifest=not options["without_manifest"],
    )


def _run(plan: RestorePlan, *, quiet: bool, asks: bool = False) -> RestoreReport:
    from flux_memory.cli.migrate_display import Display  # noqa: PLC0415 - rich costs more than --help may
    from flux_memory.operations.restore import restore_backup  # noqa: PLC0415 - so do drivers

    with keeping_handlers():
        with Display(quiet=quiet) as display:
            report = asyncio.run(interruptible(restore_backup(plan, display)))
        for line in _verdict(report, asks=asks):
            display.say(line)
    return report


def _verdict(report: RestoreReport, *, asks: bool) -> list[str]:
    """Return the closing lines; `asks` is whether a question follows."""
    from flux_memory.operations.restore import Outcome  # noqa: PLC0415 - as above

    user = "" if report.user is None else " of the user"
    if report.outcome is Outcome.REFUSED:
        return [f"{report.target} has {report.lost}{user}, which only a restore with --replace may replace."]
    if report.outcome is Outcome.READY:
        would = [f"Would replace {report.lost}{user} in {report.target}"] if report.lost else []
        ready = f"Ready: {report.held or 'the dump'}. Run again without --dry-run to restore it."
        return would if asks else [*would, ready]
    lines = [f"Replaced {report.lost}{user}"] if report.lost else []
    lines.append(f"Restored {report.held or 'the dump'} into {report.target} in {report.seconds:.1f} s")
    if report.outcome is Outcome.UNPROVEN:
        return [*lines, "Not proven: the dump has no manifest to compare with. Run flux-memory check."]
    what = "" if report.user is None else "of the user "
    lines.append(
        f"Proven identical: the sessions and messages {what}in the target are those of the backup, in order, with "
        "their content, and so is the feedback."
    )
    return lines
