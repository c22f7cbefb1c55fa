"""The command `flux-memory migrate`: checks the options, runs the transfer and shows its verdict."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from flux_memory.cli.failure import show_failure
from flux_memory.cli.interrupting import interruptible, keeping_handlers
from flux_memory.dsn import SecretText, mask_dsn, parse_dsn
from flux_memory.errors import FluxMemoryError, InvalidInputError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.cli.migrate_display import Display
    from flux_memory.transfer import Plan, Report

_REPORTS_BEGIN = (b'{\n  "source": ', b'{\n  "status": ')
"""The beginnings of a report: of a migration that ended, and of one that failed."""
_EXCLUDED = {
    "replace": ("verify", "to_sqlite", "retry", "restore_deleted"),
    "restore_deleted": ("verify", "to_sqlite"),
}
_GO_ON = "Interrupted. Nothing is half done: run the same command again, and it goes on to exactly the same result."


@click.command(short_help="Move a SQLite memory to PostgreSQL, with proof.")
@click.option("--sqlite-path", metavar="FILE", help="The SQLite file; by default the one in the settings.")
@click.option(
    "--postgres-dsn",
    type=SecretText,
    metavar="DSN",
    help="The PostgreSQL database; by default the settings' POSTGRES_DSN.",
)
@click.option(
    "--batch-size",
    default=100,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows of a commit, if the target already has rows.",
)
@click.option("--dry-run", is_flag=True, help="Read all rows, rehearse the move, and change nothing.")
@click.option("--verify", is_flag=True, help="Compare both sides, change nothing.")
@click.option("--to-sqlite", metavar="FILE", help="The way back: write the PostgreSQL memory into a fresh SQLite file.")
@click.option("--retry", metavar="FILE", help="Load the corrected rows of a quarantine file.")
@click.option(
    "--replace",
    is_flag=True,
    help="Make PostgreSQL exactly the file: also delete and overwrite. Asks first; --dry-run shows what would be lost.",
)
@click.option(
    "--restore-deleted",
    is_flag=True,
    help="Move also sessions that an earlier run moved and that were deleted in PostgreSQL since.",
)
@click.option(
    "--on-invalid",
    default="fail",
    show_default=True,
    type=click.Choice(["fail", "quarantine"]),
    help="For rows that cannot be moved: stop, or write them to a file and move the rest.",
)
@click.option(
    "--quarantine-file", metavar="FILE", help="The file for them; by default a new one in the working directory."
)
@click.option("--assume-timezone", default="UTC", show_default=True, help="The time zone of times without one.")
@click.option("--leave-behind", multiple=True, metavar="NAME", help="An unknown table, or table.column, to leave out.")
@click.option("--report", metavar="FILE", help="Write a report as JSON.")
@click.option("--yes", is_flag=True, help="Skip the confirmation. Without a terminal only --replace needs it.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def migrate(**options: Any) -> None:
    """Move a SQLite memory to PostgreSQL, and prove that nothing was lost.

    The SQLite file is only read. Exits with 0 if everything in it is proven to be in PostgreSQL, 1 if it failed or the
    sides differ, 2 for wrong usage, 3 if rows are in quarantine, or sessions were skipped as deleted.
    """
    _check_usage(options)
    try:
        if options["replace"] and not (options["yes"] or options["dry_run"]):
            report = _transfer({**options, "dry_run": True, "quiet": False}, asks=True)
            if report.exit_code == 0:
                click.confirm(printable(f"Replace everything in {report.target} with {report.source}?"), abort=True)
                report = _transfer({**options, "yes": True})
        else:
            report = _transfer(options)
        if options["report"]:
            _write_report(Path(options["report"]), report.as_dict())
    except FluxMemoryError as error:
        show_failure(error)
        if options["report"]:
            try:
                _write_report(Path(options["report"]), {"status": "failed", "exit_code": 1, "error": str(error)})
            except InvalidInputError as unwritten:
                if str(unwritten) != str(error):
                    show_failure(unwritten)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(_GO_ON, err=True)
        sys.exit(1)
    sys.exit(report.exit_code)


def _transfer(options: dict[str, Any], *, asks: bool = False) -> Report:
    """Run a transfer and show its verdict; `asks` is whether a question follows that."""
    from flux_memory.cli.migrate_display import Display  # noqa: PLC0415 - rich costs more than --help may

    with keeping_handlers():
        work = _work(options)
        with Display(quiet=options["quiet"]) as display:
            report = asyncio.run(interruptible(work(display)))
        display.verdict(report, _for_a_retry(options), asks=asks)
    return report


def _for_a_retry(options: dict[str, Any]) -> list[str]:
    """Return the options that decided where rows went and how they were read; a retry needs the same."""
    given = {"--postgres-dsn": options["postgres_dsn"] and mask_dsn(options["postgres_dsn"])}
    if options["assume_timezone"] != "UTC":
        given["--assume-timezone"] = options["assume_timezone"]
    return [part for name, value in given.items() if value for part in (name, value)]


def _check_usage(options: dict[str, Any]) -> None:
    for name, value in options.items():
        # An unset shell variable gives an empty option, which must not mean the settings' file or database.
        if value == "":
            raise click.UsageError(f"--{name.replace('_', '-')} is empty; give it a value, or leave it out")
    for name in ("sqlite_path", "to_sqlite"):
        if "://" in (options[name] or ""):
            raise click.UsageError(
                f"--{name.replace('_', '-')} is a URL; give the path alone, such as ./data/memory.db"
            )
    if sum(bool(options[name]) for name in ("dry_run", "verify", "to_sqlite")) > 1:
        raise click.UsageError("--dry-run, --verify and --to-sqlite exclude each other")
    _check_replacing(options)
    if options["retry"] and (options["to_sqlite"] or options["sqlite_path"]):
        raise click.UsageError("--retry replaces --sqlite-path and excludes --to-sqlite; leave those out")
    if options["to_sqlite"] and options["sqlite_path"]:
        raise click.UsageError("--to-sqlite names the file to create and reads no SQLite file; leave out --sqlite-path")
    if options["report"]:
        _check_report(Path(options["report"]))


def _check_replacing(options: dict[str, Any]) -> None:
    for name, excluded in _EXCLUDED.items():
        for other in excluded:
            if options[name] and options[other]:
                raise click.UsageError(f"--{name} and --{other} exclude each other; leave one out".replace("_", "-"))
    if options["replace"] and not (options["yes"] or options["dry_run"] or sys.stdin.isatty()):
        raise click.UsageError(
            "--replace deletes what only PostgreSQL has; look first with --dry-run, then run with --yes"
        )


def _check_report(path: Path) -> None:
    """Refuse to overwrite a file that is not a report: it may be the memory itself."""
    wrong = None
    try:
        if not path.absolute().parent.is_dir():
            wrong = "the directory does not exist; create it first"
        elif path.is_dir():
            wrong = f"{path} is a directory; give the path of a file in it"
        elif path.is_symlink() and not path.exists():
            wrong = f"{path} is a link to a file that does not exist; remove it, or give another path"
        elif path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                if not file.read(32).startswith(_REPORTS_BEGIN):
                    wrong = f"{path} is not a report, and is not overwritten; give another path"
    except OSError as error:
        wrong = f"{path} cannot be read: {error.strerror}; give another path"
    if wrong is not None:
        raise click.BadParameter(wrong, param_hint="--report")


def _work(options: dict[str, Any]) -> Callable[[Display], Coroutine[Any, Any, Report]]:
    """Ask for confirmation, before the display draws on the terminal, and return the transfer to run."""
    from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic costs more than --help may
    from flux_memory.transfer import migrate as transfer  # noqa: PLC0415 - so do drivers
    from flux_memory.transfer import migrate_back  # noqa: PLC0415

    settings = load_settings()
    if options["postgres_dsn"] is None and settings.postgres_dsn is None:
        raise click.UsageError("there is no PostgreSQL database; give --postgres-dsn, or set POSTGRES_DSN")
    dsn = options["postgres_dsn"] or settings.require_postgres_dsn()
    # An invalid DSN is refused before a large file is read.
    parse_dsn(dsn)
    if options["to_sqlite"]:
        return partial(migrate_back, dsn, Path(options["to_sqlite"]))
    plan = _plan(options, dsn, Path(options["retry"] or options["sqlite_path"] or settings.sqlite_path))
    if not (options["yes"] or options["dry_run"] or options["verify"]) and sys.stdin.isatty():
        click.confirm(printable(f"Move {plan.sqlite_path} to {mask_dsn(dsn)}?"), abort=True)
    return partial(transfer, plan)


def _plan(options: dict[str, Any], dsn: str, source: Path) -> Plan:
    from flux_memory.transfer import Mode, OnInvalid, Plan  # noqa: PLC0415 - drivers cost more than --help may

    try:
        zone = UTC if options["assume_timezone"] == "UTC" else ZoneInfo(options["assume_timezone"])
    except (KeyError, ValueError, OSError) as error:
        raise click.BadParameter(
            f"there is no time zone {options['assume_timezone']!r}; write one such as Europe/Berlin",
            param_hint="--assume-timezone",
        ) from error
    quarantine = options["quarantine_file"]
    if quarantine is None and options["on_invalid"] == "quarantine":
        quarantine = f"{source.stem}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.quarantine.jsonl"
    mode = Mode.PREFLIGHT if options["dry_run"] else Mode.VERIFY if options["verify"] else Mode.MOVE
    return Plan(
        sqlite_path=source,
        postgres_dsn=dsn,
        mode=mode,
        batch_size=options["batch_size"],
        on_invalid=OnInvalid(options["on_invalid"]),
        quarantine_file=None if quarantine is None else Path(quarantine),
        assume_timezone=zone,
        leave_behind=frozenset(options["leave_behind"]),
        retry=bool(options["retry"]),
        replace=options["replace"],
        restore_deleted=options["restore_deleted"],
    )


def _write_report(path: Path, report: dict[str, Any]) -> None:
    from flux_memory.transfer.tempfiles import sync  # noqa: PLC0415 - not needed for --help

    lines = json.dumps(report, indent=2, ensure_ascii=False).split("\n")
    try:
        # It has ids, and so perhaps the names of users.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{printable(line)}\n" for line in lines)
        if path.is_file():
            sync(path)
            sync(path.absolute().parent)
    except OSError as error:
        raise InvalidInputError(
            f"the report {path} cannot be written: {error.strerror}; give --report another path"
        ) from error
