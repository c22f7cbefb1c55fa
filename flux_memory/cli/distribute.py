"""The command `flux-memory distribute`: spreads the tables over the workers of a Citus cluster."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from flux_memory.cli.failure import in_number, show_failure
from flux_memory.dsn import SecretText
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.operations.distribute import Distribution


@click.command(short_help="Spread PostgreSQL's tables over a Citus cluster.")
@click.option(
    "--postgres-dsn", type=SecretText, metavar="DSN", help="The coordinator's database; by default the settings' DSN."
)
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
def distribute(*, postgres_dsn: str | None, dry_run: bool) -> None:
    """Distribute the tables of a PostgreSQL memory by session over the workers of a Citus cluster.

    Run it on the coordinator as the owner of the tables; it creates them if there are none. Applications may go on:
    their writes wait while the rows are copied. All rows are compared by digests before the change is committed. Run
    it again after an interruption, after an upgrade of flux-memory, and after GRANT INSERT to another role.
    """
    try:
        report = asyncio.run(_distribute(postgres_dsn, dry_run=dry_run))
    except FluxMemoryError as error:
        show_failure(error)
        sys.exit(1)
    _show(report)


async def _distribute(dsn: str | None, *, dry_run: bool) -> Distribution:
    from flux_memory.operations.distribute import distribute as run  # noqa: PLC0415 - --help stays fast

    if dsn is None:
        from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic costs more than the rest

        dsn = load_settings().require_postgres_dsn()
    return await run(dsn, dry_run=dry_run, notify=lambda step: click.echo(f"... {step}", err=True))


def _show(report: Distribution) -> None:
    click.echo(printable(f"Server      {report.server}, Citus {report.citus}"))
    click.echo(in_number(f"Cluster     {report.workers} workers, {report.shards} shards of each table"))
    for table in report.tables:
        rows = report.rows.get(table.name)
        counted = f", {rows:,} rows" if rows is not None else ""
        state = "distributed before" if table.is_distributed else f"{table.size_bytes / 2**20:,.1f} MB to copy"
        if not table.exists:
            state = "to be created"
        click.echo(printable(in_number(f"Table       {table.shown}{counted}, {state}")))
    if not report.is_done:
        for statement in report.statements:
            click.echo(printable(f"Would run   {statement};"))
        click.echo("Nothing is changed: this was a dry run. While the rows are copied, writers wait.")
        return
    click.echo(f"Functions   {report.functions}, one remote command for a write")
    if report.statements:
        click.echo("Proven      the digests of all rows are the same as before")
    for statement in report.undo:
        click.echo(printable(f"To undo     {statement};"))
    click.echo("OK")
