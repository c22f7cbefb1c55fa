"""The command `flux-memory check`: shows whether the configured backend works, and what it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from flux_memory.cli.check_result import describe_failure, describe_success
from flux_memory.cli.failure import in_number, show_failure
from flux_memory.cli.store import check_store_options, choose_settings, store_options
from flux_memory.cli.values import Seconds
from flux_memory.errors import FluxMemoryError
from flux_memory.records.printing import printable

if TYPE_CHECKING:
    from flux_memory.health import CheckReport
    from flux_memory.settings import Settings


@click.command(short_help="See whether the configured backend works.")
@store_options("Check")
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=Seconds(min=0.1),
    help="Seconds that the check may take; with --full, that each call may take.",
)
@click.option("--full", is_flag=True, help="Also write, read back and remove a scratch session; creates the schema.")
@click.option("--no-counts", is_flag=True, help="Do not count sessions and messages; for probes of a large store.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, also on failure.")
def check(
    *,
    sqlite_path: str | None,
    postgres_dsn: str | None,
    timeout: float,
    full: bool,
    no_counts: bool,
    as_json: bool,
) -> None:
    """Check whether the configured backend answers, and show what it holds.

    Settings come from the environment and .env: DATABASE_BACKEND, DATABASE_URL, POSTGRES_DSN, POSTGRES_REPLICA_DSN,
    each also with the prefix FLUX_MEMORY_. Without --full nothing is created or changed. Exits with 0 if all is well,
    1 if not, and 2 for wrong usage; a warning, such as a replica that reads do not use, is not a failure.
    """
    check_store_options(sqlite_path, postgres_dsn)
    began = time.monotonic()
    settings = None
    try:
        settings = choose_settings(sqlite_path, postgres_dsn)
        # The full check creates a file, as an application would.
        must_exist = sqlite_path is not None and not full
        report = asyncio.run(_check(settings, timeout, full=full, must_exist=must_exist, counts=not no_counts))
    except Exception as error:
        known = isinstance(error, FluxMemoryError)
        if as_json:
            _print_json(describe_failure(error, settings), began)
        elif known:
            show_failure(error)
        if not known:
            # A bug of the library: its traceback goes to standard error.
            raise
        sys.exit(1)
    if as_json:
        _print_json(describe_success(report), began)
    else:
        _show(report)


def _print_json(result: dict[str, Any], began: float) -> None:
    result["duration_ms"] = round((time.monotonic() - began) * 1000, 3)
    click.echo(printable(json.dumps(result)))


async def _check(
    settings: Settings,
    timeout: float,  # noqa: ASYNC109 - passed on
    *,
    full: bool,
    must_exist: bool,
    counts: bool,
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
            report = await check_postgres(settings.require_postgres_dsn(), timeout, counts=counts)
            if (replica_dsn := settings.find_replica_dsn()) is not None:
                await check_replicas(settings.require_postgres_dsn(), replica_dsn, report)
            return report
        return await check_sqlite(settings.sqlite_path, timeout, must_exist=must_exist, counts=counts)

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
        "Contents": "not counted"
        if report.sessions is None
        else f"{report.sessions:,} sessions, {report.messages:,} messages"
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
