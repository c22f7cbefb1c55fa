"""Measures throwaway PostgreSQL servers for pytest: the time to the first query, and the time that each test adds."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from flux_memory.testkit.servers.binaries import find_binaries, run_as, server_account
from harness import machine
from harness.markdown import table

RESULTS: Final = Path(__file__).parent / "results"
TABLES: Final = 30
"""Tables of the schema that each test needs, each with an index and 20 rows."""
RUN_SECONDS: Final = 300
MEMORY: Final = Path("/dev/shm")
"""A file system in memory: flux-memory's servers are there by default, so the other ones are, too."""

SCHEMA: Final = "".join(
    f"CREATE TABLE t{number} (id int PRIMARY KEY, name text, data jsonb);\n"
    f"CREATE INDEX ON t{number} (name);\n"
    f"INSERT INTO t{number} SELECT n, 'row ' || n, '{{}}' FROM generate_series(1, 20) AS n;\n"
    for number in range(TABLES)
)
TESTS: Final = """
import json, os, pathlib, time
import psycopg, pytest
{fixtures}

times = []

@pytest.mark.parametrize("number", range({tests}))
def test_rows({fixture}, number):
    {connect}
    assert connection.execute("SELECT count(*) FROM t7").fetchone() == (20,)
    times.append(time.time())
    connection.execute("DELETE FROM t7")
    {after}
    pathlib.Path("times.json").write_text(json.dumps(times))
"""


@dataclass(frozen=True)
class Contender:
    """A way to get PostgreSQL in tests.

    name: What tables show.
        package: The package whose version is shown.
        fixtures: The definitions of its fixtures.
        fixture: The fixture of a test.
        connect: The statement that sets `connection`.
        after: The statements that end a test.
        options: Options of pytest; `{bin}` is the directory of PostgreSQL's programs.
    """

    name: str
    package: str
    fixtures: str
    fixture: str
    connect: str
    after: str = "connection.commit(); connection.close()"
    options: tuple[str, ...] = ()


CONTENDERS: Final = (
    Contender(
        "flux-memory, a copy for each test",
        "flux-memory",
        "@pytest.fixture\ndef database(flux_postgres_database):\n    return flux_postgres_database(init='schema.sql')",
        "database",
        "connection = psycopg.connect(database.dsn)",
        options=("--flux-postgres=local", "-p", "no:pytest_postgresql"),
    ),
    Contender(
        "flux-memory, a rollback for each test",
        "flux-memory",
        "@pytest.fixture(scope='session')\ndef flux_postgres_rollback_database(flux_postgres):\n"
        "    return flux_postgres.database(init='schema.sql')",
        "flux_postgres_rollback",
        "connection = flux_postgres_rollback.psycopg()",
        after="connection.commit()",
        options=("--flux-postgres=local", "-p", "no:pytest_postgresql"),
    ),
    Contender(
        "pytest-postgresql, a copy for each test",
        "pytest-postgresql",
        "from pytest_postgresql import factories\n"
        "database_proc = factories.postgresql_proc(load=[pathlib.Path('schema.sql').absolute()])\n"
        "database = factories.postgresql('database_proc')",
        "database",
        "connection = database",
        after="connection.commit()",
        options=("--postgresql-exec={bin}/pg_ctl", "-p", "no:flux_memory"),
    ),
    Contender(
        "testing.postgresql, a server for each test",
        "testing.postgresql",
        "import testing.postgresql\n"
        "def fill(server):\n"
        "    with psycopg.connect(server.url()) as connection:\n"
        "        connection.execute(pathlib.Path('schema.sql').read_text())\n"
        "@pytest.fixture(scope='session')\n"
        "def servers():\n"
        "    factory = testing.postgresql.PostgresqlFactory(cache_initialized_db=True, on_initialized=fill,\n"
        "        initdb='{bin}/initdb', postgres='{bin}/postgres')\n"
        "    yield factory\n"
        "    factory.clear_cache()\n"
        "@pytest.fixture\n"
        "def server(servers):\n"
        "    with servers() as server:\n"
        "        yield server",
        "server",
        "connection = psycopg.connect(server.url())",
        options=("-p", "no:flux_memory", "-p", "no:pytest_postgresql"),
    ),
)
"""All use the same programs of PostgreSQL and the same driver."""


@contextmanager
def made_project(contender: Contender, tests: int, programs: Path) -> Iterator[Path]:
    """Yield a directory with the contender's tests, which an unprivileged user may write."""
    with tempfile.TemporaryDirectory(prefix="fc-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        place = Path(name)
        (place / "tmp").mkdir()
        fixtures = contender.fixtures.replace("{bin}", str(programs))
        code = TESTS.format(
            fixtures=fixtures,
            tests=tests,
            **{part: getattr(contender, part) for part in ("fixture", "connect", "after")},
        )
        (place / "test_rows.py").write_text(code, encoding="utf-8")
        (place / "schema.sql").write_text(SCHEMA, encoding="utf-8")
        (place / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        if (account := server_account()).is_other:
            for path in (place, *place.iterdir()):
                os.chown(path, account.user, account.group)
        yield place


def run_once(contender: Contender, tests: int, programs: Path, home: Path) -> dict[str, float]:
    """Run the contender's tests, and return the seconds to the first query, of a test, and of the whole run."""
    account = server_account()
    with made_project(contender, tests, programs) as place:
        options = [option.replace("{bin}", str(programs)) for option in contender.options]
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
            cwd=place,
            env={
                **{name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "LANG"}},
                "HOME": str(home),
                "TMPDIR": str(place / "tmp"),
                "FLUX_MEMORY_PG_BINDIR": str(programs),
            },
            user=account.user if account.is_other else None,
            group=account.group if account.is_other else None,
            extra_groups=[] if account.is_other else None,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        seconds = time.time() - began
        if done.returncode != 0:
            raise click.ClickException(f"{contender.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        times = json.loads((place / "times.json").read_text(encoding="utf-8"))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return {"first": times[0] - began, "test": median(gaps or [0.0]), "run": seconds}


@contextmanager
def made_home() -> Iterator[Path]:
    """Yield a home directory, for caches, that only the unprivileged user can enter."""
    with tempfile.TemporaryDirectory(prefix="fc-home-") as name:
        if (account := server_account()).is_other:
            os.chown(name, account.user, account.group)
        yield Path(name)


def measure(tests: int, rounds: int, programs: Path) -> dict[str, dict[str, float]]:
    """Return the medians of each contender, in rounds by turns; `cold` is the first query without a cache."""
    samples: dict[str, list[dict[str, float]]] = {each.name: [] for each in CONTENDERS}
    with made_home() as home:
        for _ in range(rounds):
            for contender in CONTENDERS:
                shutil.rmtree(home / ".cache", ignore_errors=True)
                cold = run_once(contender, 1, programs, home)["first"]
                samples[contender.name].append({"cold": cold, **run_once(contender, tests, programs, home)})
    return {name: {part: median(sample[part] for sample in rows) for part in rows[0]} for name, rows in samples.items()}


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return the table of the result, with its head."""
    rows = [
        ["", "version", "first query, first run, s", "first query, s", "each test, ms", f"{result['tests']} tests, s"]
    ]
    for contender in CONTENDERS:
        cost = result["cost"][contender.name]
        figures = [f"{cost['cold']:.2f}", f"{cost['first']:.2f}", f"{1000 * cost['test']:.1f}", f"{cost['run']:.2f}"]
        rows.append([contender.name, result["versions"][contender.package], *figures])
    return rows


def document(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = result["about"]
    head, *rows = rows_of(result)
    conditions = (
        f"Measured {about['at']} at {about['commit']}, on {about['cores']} cores ({about['cpu']}), Python "
        f"{about['python']}, PostgreSQL {result['server']}; load {about['load_before']} before. Medians of "
        f"{result['rounds']} rounds, by turns. Each test needs a schema of {TABLES} tables with an index and 20 rows "
        "each, deletes rows and commits. Times to the first query include the start of Python and pytest, and the "
        "schema; before a first run there is no cache. Each tool has its own settings, without fsync; all servers are "
        "in memory."
    )
    lines = ["# Cost of a throwaway PostgreSQL", "", conditions, "", *table(head, rows)]
    if (unrest := machine.unrest(about)) is not None:
        lines += ["", unrest]
    return "\n".join(lines) + "\n"


def check_interpreter() -> None:
    """Fail if this is root, and the peers, which do not run as root, cannot run this interpreter either."""
    account = server_account()
    try:
        done = run_as(account, [sys.executable, "--version"], {}) if account.is_other else None
    except PermissionError:
        raise click.ClickException(
            f"an unprivileged user cannot run {sys.executable}; measure as such a user"
        ) from None
    if done is not None and done.returncode != 0:
        raise click.ClickException(f"{sys.executable} does not run as an unprivileged user: {done.stdout}")


@click.command()
@click.option("--tests", type=click.IntRange(2), default=50, show_default=True, help="Tests of a run.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
def main(*, tests: int, rounds: int, out: Path) -> None:
    """Measure, print, and write harness_cost.json and harness_cost.md; fail if a peer is faster."""
    console = Console()
    check_interpreter()
    programs = find_binaries()
    said = subprocess.run([programs.directory / "postgres", "--version"], capture_output=True, text=True, check=True)
    result: dict[str, Any] = {
        "about": machine.about(),
        "server": said.stdout.split()[2],
        "programs": programs.origin,
        "tests": tests,
        "rounds": rounds,
        "versions": {each.package: importlib.metadata.version(each.package) for each in CONTENDERS},
    }
    result["cost"] = measure(tests, rounds, programs.directory)
    out.mkdir(parents=True, exist_ok=True)
    (out / "harness_cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "harness_cost.md").write_text(document(result), encoding="utf-8")
    head, *rows = rows_of(result)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    slower = slower_than_peers(result["cost"])
    for each in slower:
        console.print(f"[red]{each}[/red]")
    sys.exit(bool(slower))


def slower_than_peers(cost: dict[str, dict[str, float]]) -> list[str]:
    """Return each figure of the copy for each test that a peer beats.

    Not of the first run: it creates a cluster as the peers do, and is about as fast.
    """
    own = CONTENDERS[0].name
    peers = [each.name for each in CONTENDERS if each.package != "flux-memory"]
    return [
        f"{own}: {part} takes {cost[own][part]:.3f} s, and {peer} {cost[peer][part]:.3f} s"
        for peer in peers
        for part in ("first", "test", "run")
        if cost[own][part] > cost[peer][part]
    ]


if __name__ == "__main__":
    main()
