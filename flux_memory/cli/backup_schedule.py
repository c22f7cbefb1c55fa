"""The command `flux-memory backup schedule`: writes a systemd timer, or a line for cron, that makes backups."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from flux_memory.cli.failure import show_failure
from flux_memory.cli.values import NamedPath
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable


@click.command(name="schedule", short_help="Write a systemd timer, or a line for cron, that makes backups.")
@click.argument("directory", type=NamedPath())
@click.option("--sqlite-path", metavar="FILE", help="Back up this SQLite file, not the store of the environment file.")
@click.option(
    "--environment-file",
    metavar="FILE",
    type=NamedPath(),
    help="A file with DATABASE_BACKEND and POSTGRES_DSN, which only the account can read.",
)
@click.option("--at", default="03:15", show_default=True, metavar="HH:MM", help="The time of day.")
@click.option("--account", metavar="USER", help="The system's user that runs it; by default yours.")
@click.option("--archive", is_flag=True, help="As for flux-memory backup.")
@click.option("--name", metavar="NAME", help="Names the units, and begins the names of the files.")
@click.option("--keep-daily", metavar="N", type=click.IntRange(min=0), default=7, show_default=True)
@click.option("--keep-weekly", metavar="N", type=click.IntRange(min=0), default=4, show_default=True)
@click.option("--no-verify", is_flag=True, help="As for flux-memory backup.")
@click.option("--cron", is_flag=True, help="Write a line for crontab instead of systemd units.")
@click.option("--output", metavar="DIR", type=NamedPath(), help="Write the units to this directory.")
def schedule(*, output: Path | None, cron: bool, **options: Any) -> None:
    """Write a systemd service and timer that back up a memory to DIRECTORY every day.

    The units, or the line for crontab, are printed, and installed by you. They have no password: put POSTGRES_DSN in
    the environment file. To back up a SQLite file, give --sqlite-path.
    """
    from flux_memory.operations.backup.schedule import Schedule, write_units  # noqa: PLC0415 - other commands need none

    if options["sqlite_path"] is None and options["environment_file"] is None:
        raise click.UsageError("give --sqlite-path, or --environment-file with DATABASE_BACKEND and POSTGRES_DSN")
    if cron and output is not None:
        raise click.UsageError("--output is for units; add the line to crontab yourself")
    try:
        plan = Schedule.from_options(**options)
        if cron:
            click.echo(plan.cron_line())
        elif output is None:
            for name, text in plan.units().items():
                click.echo(f"# {name}\n{text}")
        else:
            for path in write_units(plan, output):
                click.echo(printable(f"Wrote {path}"))
            click.echo(printable(plan.next_steps(output)))
    except FluxMemoryError as error:
        show_failure(error)
        sys.exit(1)
