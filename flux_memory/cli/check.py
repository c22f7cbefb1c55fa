"""The command `flux-memory check`: shows whether the configured backend works, and what it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from flux_memory.cli.failure import causes, in_number, show_failure
from flux_memory.dsn import SecretText
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable
from flux_memory.records.text import find_unstorable

if TYPE_CHECKING:
    from flux_memory.health import CheckReport
    from flux_memory.settings import Settings


@click.command(short_help="See whether the configured backend works.")
@click.option("--sqlite-path", metavar="FILE", help="Check this SQLite file instead of the settings' store.")
@click.option(
    "--postgres-dsn",
    type=SecretText,
    metavar="DSN",
    help="Check this PostgreSQL database instead of the settings' store.",
)
@click.option(
    "--timeout", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds that a call may take."
)
@click.option("--full", is_flag=True, help="Also write, read back and remove a scratch session; creates the schema.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(*, sqlite_path: str | None, postgres_dsn: str | None, timeout: float, full: bool, as_json: bool) -> None:
    """Check whether the configured backend answers, and show what it holds.

    Settings come from the environment and .env: DATABASE_BACKEND, DATABASE_URL, POSTGRES_DSN, POSTGRES_REPLICA_DSN,
    each also with the prefix FLUX_MEMORY_. Without --full nothing is created or changed. Exits with 0 if all is well
    and 1 if not; a replica that reads do not use is a warning.
    """
    try:
        # The full check creates a file, as an application would.
        must_exist = sqlite_path is not None and not full
        report = asyncio.run(
            _check(choose_settings(sqlite_path, postgres_dsn), timeout, full=full, must_exist=must_exist)
        )
    except FluxMemoryError as error:
        if as_json:
            failure = {"ok": False, "error": type(error).__name__, "message": str(error), "causes": causes(error)}
            click.echo(printable(json.dumps(failure)))
        else:
            show_failure(error)
        sys.exit(1)
    if as_json:
        click.echo(printable(json.dumps({"ok": True, **dataclasses.asdict(report)})))
    else:
        _show(report)


def choose_settings(sqlite_path: str | None, postgres_dsn: str | None) -> Settings:
    """Return the settings of a store that is given by options, or those of the environment.

    Raises:
        UsageError: Both options are given, or the path is not one.
    """
    if sqlite_path is not None and postgres_dsn is not None:
        raise click.UsageError("give --sqlite-path or --postgres-dsn, not both")
    if sqlite_path is not None and (not sqlite_path or find_unstorable(sqlite_path)):
        raise click.UsageError("--sqlite-path is empty or not text; give the path of a file, in UTF-8")
    from flux_memory.settings import load_settings  # noqa: PLC0415 - pydantic costs more than the rest

    if sqlite_path is not None:
        return load_settings(database_backend="sqlite", database_url=f"sqlite+aiosqlite:///{quote(sqlite_path)}")
    if postgres_dsn is not None:
        return load_settings(database_backend="postgres", postgres_dsn=postgres_dsn, postgres_replica_dsn="")
    return load_settings()


async def _check(
    settings: Settings,
    timeout: float,  # noqa: ASYNC109 - passed on
    *,
    full: bool,
    must_exist: bool,
) -> CheckReport:
    from flux_memory.backends.deadlines import deadline  # noqa: PLC0415 - --help stays fast
    from flux_memory.factory import create_memory  # noqa: PLC0415 - --help stays fast
    from flux_memory.health import (  # noqa: PLC0415 - --help stays fast
        check_methods,
        check_postgres,
        check_replicas,
        check_sqlite,
    )

    async def check_store() -> CheckReport:
        if settings.database_backend == "postgres":
            report = await check_postgres(settings.require_postgres_dsn(), timeout)
            if (replica_dsn := settings.find_replica_dsn()) is not None:
                await check_replicas(settings.require_postgres_dsn(), replica_dsn, report)
            return report
        return await check_sqlite(settings.sqlite_path, timeout, must_exist=must_exist)

    memory = create_memory(settings)  # raises the errors that an application would get
    with deadline(timeout):
        report = await check_store()
        if full:
            async with memory:
                await check_methods(memory, report)
            report = dataclasses.replace(await check_store(), full=report.full, note=report.note)
    return report


def _show(report: CheckReport) -> None:
    lines = {
        "Backend": report.backend,
        "Target": report.target,
        "Server": report.server,
        "Schema": report.schema,
        "Contents": f"{report.sessions:,} sessions, {report.messages:,} messages"
        + f", {report.feedback:,} entries of feedback" * bool(report.feedback)
        + " that the role may see" * bool(report.row_security),
        "Policies": f"row-level security on {', '.join(report.row_security)} may hide others"
        * bool(report.row_security),
        "Pool": report.pool,
        "Replicas": "; ".join(report.replicas),
        "Round trip": "" if report.round_trip_ms is None else f"{report.round_trip_ms:.3f} ms",
        "Full check": f"{len(report.full)} methods, each as promised" if report.full else "",
        "Note": report.note,
    }
    for name, value in lines.items():
        if value:
            click.echo(printable(in_number(f"{name:<11} {value}")))
    for statement in report.repairs:
        click.echo(printable(f"At first use: {statement}"))
    for warning in report.warnings:
        click.echo(printable(f"WARNING  {warning}"), err=True)
    click.echo("OK")
