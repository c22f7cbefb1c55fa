"""Tests the command line: its output, its options and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from check_command import password_of, run_check
from click.testing import CliRunner
from original_application import make_file_with_data
from raw_postgres import dump_database

from flux_memory import __version__
from flux_memory.cli import main
from flux_memory.schema import history

NEWEST = {dialect: history(dialect)[-1].version for dialect in ("sqlite", "postgres")}
pytestmark = pytest.mark.usefixtures("clean_environment")


def test_a_new_installation_passes_and_creates_nothing(tmp_path: Path) -> None:
    """Without settings the check describes SQLite at the default path, which does not exist yet."""
    result = run_check()
    assert result.exit_code == 0, result.output
    assert "Backend     sqlite\n" in result.stdout
    assert f"Target      would be created at {tmp_path}/data/sqlite.db\n" in result.stdout
    assert "Schema      none yet: created at first use\n" in result.stdout
    assert result.stdout.endswith("\nOK\n")
    assert "Round trip" not in result.stdout
    assert "Full check" not in result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a%00b.db", "sqlite:///chat.db"])
def test_a_path_that_no_memory_accepts_fails_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check without `--full` refuses each path that `create_memory()` refuses."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{name}")
    result = run_check()
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("FAILED  db_path is ")


def test_a_file_of_the_original_application_is_not_changed(tmp_path: Path) -> None:
    """Without `--full` the check only reads."""
    path = tmp_path / "chat.db"
    make_file_with_data(path)
    before = path.read_bytes()
    result = run_check("--sqlite-path", str(path))
    assert result.exit_code == 0, result.output
    assert "Contents    2 sessions, 6 messages\n" in result.stdout
    assert "Schema      the original application's, generation 1" in result.stdout
    assert path.read_bytes() == before


def test_the_full_check_makes_the_schema_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Every public method is called; afterwards the scratch session is gone and the earlier data is there."""
    path = tmp_path / "chat.db"
    make_file_with_data(path)
    result = run_check("--sqlite-path", str(path), "--full", "--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert len(report["full"]) == 18
    assert (report["sessions"], report["messages"], report["schema"]) == (2, 6, f"version {NEWEST['sqlite']}, current")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (2,)
    assert "Full check  18 methods, each as promised\n" in run_check("--sqlite-path", str(path), "--full").stdout


@pytest.mark.parametrize("name", ["with space.db", "100%41.db", "what?.db", "a#b&c=d.db", "ünï.db", "..odd"])
def test_the_path_is_used_literally(tmp_path: Path, name: str) -> None:
    """The path is not a URL: no character of a file name has another meaning."""
    result = run_check("--sqlite-path", str(tmp_path / name), "--full")
    assert result.exit_code == 0, result.output
    assert name in {each.name for each in tmp_path.iterdir()}


def test_postgres_masked_and_counted(clean_environment: pytest.MonkeyPatch, flux_empty_database: str) -> None:
    """Configured by the environment: server, schema, pool and round trip are shown, and the password is not."""
    clean_environment.setenv("DATABASE_BACKEND", "postgres")
    clean_environment.setenv("POSTGRES_DSN", flux_empty_database)
    result = run_check("--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["backend"] == "postgres"
    assert report["schema"] == "none yet: created at first use"
    assert report["round_trip_ms"] > 0
    assert asyncio.run(dump_database(flux_empty_database)) == []
    result = run_check("--full")
    assert result.exit_code == 0, result.output
    assert f"Schema      version {NEWEST['postgres']}, current\n" in result.stdout
    assert "Contents    0 sessions, 0 messages\n" in result.stdout
    assert "Pool        2 of 10 connections open\n" in result.stdout
    assert "Full check  18 methods" in result.stdout
    assert password_of(flux_empty_database) not in result.output


def test_options_override_the_settings(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, flux_memory_postgres_dsn: str
) -> None:
    """The option's backend is checked, even if the environment names the other one."""
    clean_environment.setenv("FLUX_MEMORY_DATABASE_BACKEND", "postgres")
    clean_environment.setenv("FLUX_MEMORY_POSTGRES_DSN", "postgresql://nowhere.invalid/db")
    assert "Backend     sqlite\n" in run_check("--sqlite-path", str(tmp_path / "chat.db"), "--full").stdout
    clean_environment.setenv("FLUX_MEMORY_DATABASE_BACKEND", "sqlite")
    assert "Backend     postgres\n" in run_check("--postgres-dsn", flux_memory_postgres_dsn).stdout


def test_options_of_both_backends_are_a_usage_error() -> None:
    """A mistake in the arguments exits with 2, as click does."""
    result = run_check("--sqlite-path", "x", "--postgres-dsn", "postgresql://h/d")
    assert result.exit_code == 2
    assert "give --sqlite-path or --postgres-dsn, not both" in result.output


@pytest.mark.parametrize("arguments", [[], ["contract"]])
def test_a_group_without_a_subcommand_prints_its_help(arguments: list[str]) -> None:
    """The help keeps its lines: only text that a user typed is shown without control codes."""
    shown = CliRunner().invoke(main, arguments).output.splitlines()
    assert shown[0].startswith("Usage: ")
    assert "Commands:" in shown


@pytest.mark.parametrize("path", ["", "\udcff.db"])
def test_a_path_that_names_no_file_is_a_usage_error(path: str) -> None:
    """An empty variable in a script must not select a store in memory, which always works."""
    result = run_check("--sqlite-path", path)
    assert result.exit_code == 2
    assert "give the path of a file" in result.output


def test_the_timeout_is_kept_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    """Reading the file and the calls of the full check keep the timeout; SQLite's own default is five seconds."""
    path = tmp_path / "chat.db"
    assert run_check("--sqlite-path", str(path), "--full").exit_code == 0

    def seconds_of_the_quickest(*arguments: str) -> float:
        # A busy machine slows down one of them, not all three.
        quickest = float("inf")
        for _ in range(3):
            began = time.monotonic()
            result = run_check("--sqlite-path", str(path), "--timeout", "0.2", *arguments)
            quickest = min(quickest, time.monotonic() - began)
            assert result.exit_code == 1
            assert "nothing was stored" in result.stderr
            if quickest < 4:
                break
        return quickest

    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert seconds_of_the_quickest("--full") < 4
        db.execute("ROLLBACK")
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("BEGIN EXCLUSIVE")
        assert seconds_of_the_quickest() < 4


def test_help_and_version() -> None:
    """`--help` documents every option."""
    result = CliRunner().invoke(main, ["check", "-h"])
    assert result.exit_code == 0
    for option in ("--sqlite-path", "--postgres-dsn", "--full", "--json", "--timeout"):
        assert option in result.output
    assert CliRunner().invoke(main, ["--version"]).output == f"main, version {__version__}\n"


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "flux_memory"], [str(Path(sys.executable).with_name("flux-memory"))]]
)
def test_both_commands_run_the_same_program(tmp_path: Path, command: list[str]) -> None:
    """`python -m flux_memory` and `flux-memory` have the same exit codes and output."""
    good = subprocess.run(
        [*command, "check", "--json", "--full", "--sqlite-path", str(tmp_path / "chat.db")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ,
    )
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["ok"] is True
    bad = subprocess.run(
        [*command, "check", "--full", "--sqlite-path", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ,
    )
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("FAILED  ")
    assert bad.stderr.count("\n") == 1
