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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from flux_memory.testkit.servers.binaries import Account, find_binaries, run_as, server_account
from flux_memory.testkit.servers.choice import IMAGE_VARIABLE, default_image
from harness import machine
from harness.markdown import table
from harness.throwaway_servers import CONTENDERS, TESTS, Contender

RESULTS: Final = Path(__file__).parent / "results"
TABLES: Final = 30
"""Tables of the schema that each test needs, each with an index and 20 rows."""
RUN_SECONDS: Final = 300
DOCKER_SECONDS: Final = 20
MEMORY: Final = Path("/dev/shm")
"""A file system in memory: flux-memory's servers are there by default, so the other ones are, too."""

SCHEMA: Final = "".join(
    f"CREATE TABLE t{number} (id int PRIMARY KEY, name text, data jsonb);\n"
    f"CREATE INDEX ON t{number} (name);\n"
    f"INSERT INTO t{number} SELECT n, 'row ' || n, '{{}}' FROM generate_series(1, 20) AS n;\n"
    for number in range(TABLES)
)


class Origin(NamedTuple):
    """Where the servers of all contenders come from."""

    programs: Path
    image: str


@contextmanager
def made_project(contender: Contender, tests: int, origin: Origin, account: Account) -> Iterator[Path]:
    """Yield a directory with the contender's tests, which the account may write."""
    with tempfile.TemporaryDirectory(prefix="fc-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        place = Path(name)
        (place / "tmp").mkdir()
        code = TESTS.format(
            fixtures=contender.rendered(contender.fixtures, *origin),
            tests=tests,
            **{part: getattr(contender, part) for part in ("fixture", "connection", "after")},
        )
        (place / "test_rows.py").write_text(code, encoding="utf-8")
        compose = contender.rendered(contender.compose, *origin)
        (place / "compose.yaml").write_text(compose, encoding="utf-8")
        (place / "schema.sql").write_text(SCHEMA, encoding="utf-8")
        (place / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        if account.is_other:
            for path in (place, *place.iterdir()):
                os.chown(path, account.user, account.group)
        yield place


def run_once(contender: Contender, tests: int, origin: Origin, home: Path) -> dict[str, float]:
    """Run the contender's tests, and return the seconds to the first query, of a test, and of the whole run."""
    # The engine's socket is often closed to other users.
    account = Account(os.geteuid(), os.getegid()) if contender.in_container else server_account()
    with made_project(contender, tests, origin, account) as place:
        options = [contender.rendered(option, *origin) for option in contender.options]
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *contender.unused_plugins(), *options],
            cwd=place,
            env={
                **{name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "LANG"}},
                "HOME": str(home),
                "TMPDIR": str(place / "tmp"),
                "FLUX_MEMORY_PG_BINDIR": str(origin.programs),
                IMAGE_VARIABLE: origin.image,
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


def measure(contenders: Sequence[Contender], tests: int, rounds: int, origin: Origin) -> dict[str, dict[str, float]]:
    """Return the medians of each contender, in rounds by turns; `cold` is the first query without a cache."""
    samples: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
    with made_home() as home:
        for _ in range(rounds):
            for contender in contenders:
                shutil.rmtree(home / ".cache", ignore_errors=True)
                cold = run_once(contender, 1, origin, home)["first"]
                samples[contender.name].append({"cold": cold, **run_once(contender, tests, origin, home)})
    return {name: {part: median(sample[part] for sample in rows) for part in rows[0]} for name, rows in samples.items()}


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """Return the table of the result, with its head."""
    rows = [
        ["", "version", "first query, first run, s", "first query, s", "each test, ms", f"{result['tests']} tests, s"]
    ]
    for contender in CONTENDERS:
        if (cost := result["cost"].get(contender.name)) is None:
            continue
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
        "schema; before a first run there is no cache. Local servers have each tool's own settings, without "
        "fsync, and are in memory."
    )
    containers = (
        f"The containers run {result['image']}, as each tool starts them; pytest-databases and pytest-docker have no "
        "database for each test, so the schema is dropped and made again."
        if result["image"]
        else "Containers were not measured."
    )
    lines = ["# Cost of a throwaway PostgreSQL", "", conditions, "", containers, "", *table(head, rows)]
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


def check_engine(image: str) -> None:
    """Fail unless a Docker engine answers and has the image."""
    try:
        done = subprocess.run(
            ["docker", "image", "inspect", image], capture_output=True, text=True, timeout=DOCKER_SECONDS, check=False
        )
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        raise click.ClickException(
            f"the containers cannot be measured: {reason}; start an engine, name an image that it has with --image, or "
            "leave the containers out with --no-containers"
        )


@click.command()
@click.option("--tests", type=click.IntRange(2), default=50, show_default=True, help="Tests of a run.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--image", default=default_image, show_default="the testkit's", help="The image of the containers.")
@click.option("--containers/--no-containers", default=True, show_default=True, help="Whether to measure containers.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results")
def main(*, tests: int, rounds: int, image: str, containers: bool, out: Path) -> None:
    """Measure, print, and write harness_cost.json and harness_cost.md; fail if a peer is faster."""
    console = Console()
    check_interpreter()
    if containers:
        check_engine(image)
    contenders = [each for each in CONTENDERS if containers or not each.in_container]
    programs = find_binaries()
    said = subprocess.run([programs.directory / "postgres", "--version"], capture_output=True, text=True, check=True)
    result: dict[str, Any] = {
        "about": machine.about(),
        "server": said.stdout.split()[2],
        "programs": programs.origin,
        "image": image if containers else "",
        "tests": tests,
        "rounds": rounds,
        "versions": {each.package: importlib.metadata.version(each.package) for each in contenders},
    }
    result["cost"] = measure(contenders, tests, rounds, Origin(programs.directory, image))
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
    """Return each figure of a copy for each test that a peer with a server of the same kind beats.

    Not of the first run on local programs: it creates a cluster as the peers do, and is about as fast.
    """
    slower = []
    for in_container in (False, True):
        measured = [each for each in CONTENDERS if each.in_container == in_container and each.name in cost]
        slower += [
            f"{own.name}: {part} takes {cost[own.name][part]:.3f} s, and {peer.name} {cost[peer.name][part]:.3f} s"
            for own in measured[:1]
            for peer in measured
            if peer.package != own.package
            for part in ("first", "test", "run")
            if cost[own.name][part] > cost[peer.name][part]
        ]
    return slower


if __name__ == "__main__":
    main()
