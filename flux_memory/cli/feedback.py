"""The commands `flux-memory feedback import` and `export`: move feedback between a memory and a file of JSON lines."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

import click

from flux_memory.cli.failure import show_failure
from flux_memory.cli.store import choose_settings
from flux_memory.cli.values import NamedPath
from flux_memory.dsn import SecretText
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.cli.migrate_display import Display
    from flux_memory.settings import Settings
    from flux_memory.transfer.feedback_file import ImportReport

Result = TypeVar("Result")

_GO_ON: Final = "Interrupted. Entries that are stored stay: run the same command again, and it goes on."
_STDOUT: Final = "-"
_CHECK_SECONDS: Final = 30.0
"""Seconds within which the tables are checked."""

_sqlite_path = click.option("--sqlite-path", metavar="FILE", help="The SQLite memory, instead of the settings' store.")
_postgres_dsn = click.option(
    "--postgres-dsn", type=SecretText, metavar="DSN", help="The PostgreSQL memory, instead of the settings' store."
)
_quiet = click.option("--quiet", is_flag=True, help="Print errors only.")


@click.group(short_help="Import and export feedback.")
def feedback() -> None:
    """Move feedback between a memory and files of JSON lines, such as those of the original application."""


@feedback.command("import", short_help="Add the feedback in a file to a memory.")
@click.argument("file", type=NamedPath())
@_sqlite_path
@_postgres_dsn
@click.option("--assume-timezone", default="UTC", show_default=True, help="The time zone of times without one.")
@click.option("--dry-run", is_flag=True, help="Read and check all lines, and change nothing.")
@click.option(
    "--quarantine-file",
    type=NamedPath(),
    metavar="FILE",
    help="The file for lines that cannot be stored; by default a new one in the working directory.",
)
@_quiet
def import_(
    *,
    file: Path,
    sqlite_path: str | None,
    postgres_dsn: str | None,
    assume_timezone: str,
    dry_run: bool,
    quarantine_file: Path | None,
    quiet: bool,
) -> None:
    """Add the feedback in FILE, one JSON object per line, to a memory. A second run adds nothing.

    Exits with 0 if every line is stored, 1 if it failed, 2 for wrong usage, 3 if lines are in quarantine. Correct them
    there, and import that file.
    """
    zone = _zone(assume_timezone)
    quarantine = quarantine_file or Path(f"{file.stem}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.quarantine.jsonl")

    async def work(store: Any, display: Display) -> ImportReport:
        from flux_memory.transfer.feedback_file import import_feedback  # noqa: PLC0415 - --help stays fast

        display.phase("Import", None)
        return await import_feedback(file, store, quarantine, display.advance, naive=zone, dry_run=dry_run)

    report = _run(sqlite_path, postgres_dsn, work, quiet=quiet)
    if not quiet:
        _show(report)
    sys.exit(report.exit_code)


@feedback.command("export", short_help="Write the feedback of a memory to a file.")
@click.argument("file", type=NamedPath(allow_dash=True), default=_STDOUT)
@_sqlite_path
@_postgres_dsn
@_quiet
def export(*, file: Path, sqlite_path: str | None, postgres_dsn: str | None, quiet: bool) -> None:
    """Write all feedback to FILE, one JSON object per line, oldest first; by default to the standard output.

    The lines have the form of the original application's: times are UTC without an offset. FILE must not exist.
    """
    to_file = str(file) != _STDOUT

    async def work(store: Any, display: Display) -> int:
        from flux_memory.transfer.feedback_file import export_feedback, write_feedback  # noqa: PLC0415 - as above

        if to_file:
            display.phase("Export", None)
            return await write_feedback(file, store, display.advance)
        written = 0
        async for line in export_feedback(store):
            click.echo(line.encode(), nl=False)
            written += 1
        return written

    written = _run(sqlite_path, postgres_dsn, work, quiet=quiet or not to_file, creates=False)
    if to_file and not quiet:
        click.echo(printable(f"Exported {_entries(written)} to {file}"))


def _run(
    sqlite_path: str | None,
    postgres_dsn: str | None,
    work: Callable[[Any, Display], Coroutine[Any, Any, Result]],
    *,
    quiet: bool,
    creates: bool = True,
) -> Result:
    """Run a coroutine with the feedback of the chosen memory, and end the program if it fails.

    Args:
        sqlite_path: The option `--sqlite-path`.
        postgres_dsn: The option `--postgres-dsn`.
        work: The coroutine.
        quiet: Whether to print errors only.
        creates: Whether a store without current tables gets them.
    """
    from flux_memory.cli.migrate_display import Display  # noqa: PLC0415 - rich costs more than --help may
    from flux_memory.factory import create_memory  # noqa: PLC0415 - as above

    async def main(display: Display, settings: Settings) -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is not None:
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        if not creates:
            await _check_tables(settings)
        async with create_memory(settings) as memory:
            return await work(memory.feedback, display)

    try:
        settings = choose_settings(sqlite_path, postgres_dsn)
        with Display(quiet=quiet) as display:
            return asyncio.run(main(display, settings))
    except FluxMemoryError as error:
        show_failure(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(_GO_ON, err=True)
    sys.exit(1)


async def _check_tables(settings: Settings) -> None:
    """Check that the store has current tables: opening it would create them, also in a file named by mistake."""
    if settings.database_backend == "postgres":
        from flux_memory.operations.server_connection import connect_to_server  # noqa: PLC0415 - only this driver
        from flux_memory.operations.server_tables import check_server_tables  # noqa: PLC0415 - only this driver

        async with connect_to_server(settings.require_postgres_dsn(), _CHECK_SECONDS) as server:
            await check_server_tables(server)
    elif settings.sqlite_path != ":memory:":
        from flux_memory.operations.file_tables import check_file_tables  # noqa: PLC0415 - only this driver

        await check_file_tables(settings.sqlite_path, _CHECK_SECONDS)


def _zone(name: str) -> Any:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise click.BadParameter(
            f"there is no time zone {name!r}; write one such as Europe/Berlin", param_hint="--assume-timezone"
        ) from error


def _show(report: ImportReport) -> None:
    for reason in report.first_refused:
        click.echo(printable(f"  {reason}"))
    if report.refused > len(report.first_refused):
        click.echo(f"  and {report.refused - len(report.first_refused):,} more")
    if report.dry_run:
        click.echo(f"Ready: {_entries(report.added)} can be imported, {report.refused:,} cannot. Nothing was changed.")
        return
    click.echo(f"Imported {_entries(report.added)}; {report.present:,} were there already")
    if report.quarantine is not None:
        click.echo(
            printable(
                f"Not imported: {_entries(report.refused)}; see {report.quarantine}. Correct them there, then import "
                "that file"
            )
        )


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"
