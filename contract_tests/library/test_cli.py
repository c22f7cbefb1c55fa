"""The command line: what it prints, its exit codes, and that every failure says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from ordinary_user import ordinary_user
from original_application import make_file_with_data
from raw_postgres import closed_port, contents, elsewhere, execute, role, with_parameter
from raw_sqlite import change

from flux_memory import __version__
from flux_memory.cli import main
from flux_memory.schema import history

NEWEST = {dialect: history(dialect)[-1].version for dialect in ("sqlite", "postgres")}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty directory and an environment without our variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_BACKEND", "DATABASE_URL", "POSTGRES_DSN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"FLUX_MEMORY_{name}", raising=False)
    return monkeypatch


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def secret_of(dsn: str) -> str:
    return urlsplit(dsn).password or ""


def test_a_new_installation_is_fine_and_nothing_is_made(tmp_path: Path) -> None:
    """Without any settings: SQLite in the default place, which does not exist yet and is shown in full."""
    result = check()
    assert result.exit_code == 0, result.output
    assert "Backend     sqlite\n" in result.stdout
    assert f"Target      would be created at {tmp_path}/data/sqlite.db\n" in result.stdout
    assert "Schema      none yet: created at first use\n" in result.stdout
    assert result.stdout.endswith("\nOK\n")
    assert "Round trip" not in result.stdout
    assert "Full check" not in result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a%00b.db", "sqlite:///chat.db"])
def test_a_path_that_no_memory_takes_is_not_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `create_memory()` would refuse, the check without `--full` refuses too."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{name}")
    result = check()
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("FAILED  db_path is ")


def test_a_file_of_the_original_application_is_not_changed(tmp_path: Path) -> None:
    """Without `--full`, looking is all it does."""
    path = tmp_path / "chat.db"
    make_file_with_data(path)
    before = path.read_bytes()
    result = check("--sqlite-path", str(path))
    assert result.exit_code == 0, result.output
    assert "Contents    2 sessions, 6 messages\n" in result.stdout
    assert "Schema      the original application's, generation 1" in result.stdout
    assert path.read_bytes() == before


def test_the_full_check_makes_the_schema_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Every public method is called; afterwards no session is left, and what was there is."""
    path = tmp_path / "chat.db"
    make_file_with_data(path)
    result = check("--sqlite-path", str(path), "--full", "--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert len(report["full"]) == 9
    assert (report["sessions"], report["messages"], report["schema"]) == (2, 6, f"version {NEWEST['sqlite']}, current")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (2,)
    assert "Full check  9 methods, each as promised\n" in check("--sqlite-path", str(path), "--full").stdout


@pytest.mark.parametrize("name", ["with space.db", "100%41.db", "what?.db", "a#b&c=d.db", "ünï.db", "..odd"])
def test_the_path_is_taken_as_it_is_written(tmp_path: Path, name: str) -> None:
    """Not as a URL: no character of a file's name means anything else."""
    result = check("--sqlite-path", str(tmp_path / name), "--full")
    assert result.exit_code == 0, result.output
    assert name in {each.name for each in tmp_path.iterdir()}


def test_postgres_masked_and_counted(environment: pytest.MonkeyPatch, flux_empty_database: str) -> None:
    """From the environment: server, schema, pool and round trip, and no password anywhere."""
    environment.setenv("DATABASE_BACKEND", "postgres")
    environment.setenv("POSTGRES_DSN", flux_empty_database)
    result = check("--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["backend"] == "postgres"
    assert report["schema"] == "none yet: created at first use"
    assert report["round_trip_ms"] > 0
    assert asyncio.run(contents(flux_empty_database)) == []
    result = check("--full")
    assert result.exit_code == 0, result.output
    assert f"Schema      version {NEWEST['postgres']}, current\n" in result.stdout
    assert "Contents    0 sessions, 0 messages\n" in result.stdout
    assert "Pool        2 of 10 connections open\n" in result.stdout
    assert "Full check  9 methods" in result.stdout
    assert secret_of(flux_empty_database) not in result.output


def test_options_override_the_settings(
    environment: pytest.MonkeyPatch, tmp_path: Path, flux_postgres_clean_dsn: str
) -> None:
    """Whatever the environment says, the option's backend is checked."""
    environment.setenv("FLUX_MEMORY_DATABASE_BACKEND", "postgres")
    environment.setenv("FLUX_MEMORY_POSTGRES_DSN", "postgresql://nowhere.invalid/db")
    assert "Backend     sqlite\n" in check("--sqlite-path", str(tmp_path / "chat.db"), "--full").stdout
    environment.setenv("FLUX_MEMORY_DATABASE_BACKEND", "sqlite")
    assert "Backend     postgres\n" in check("--postgres-dsn", flux_postgres_clean_dsn).stdout


def test_two_backends_at_once_are_a_usage_error() -> None:
    """A mistake of the command line exits with 2, as click does."""
    result = check("--sqlite-path", "x", "--postgres-dsn", "postgresql://h/d")
    assert result.exit_code == 2
    assert "give --sqlite-path or --postgres-dsn, not both" in result.output


@pytest.mark.parametrize("path", ["", "\udcff.db"])
def test_a_path_that_names_no_file_is_a_usage_error(path: str) -> None:
    """An empty variable in a script is no wish for a store in memory, which always works."""
    result = check("--sqlite-path", path)
    assert result.exit_code == 2
    assert "give the path of a file" in result.output


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_a_timeout_that_is_no_number_of_seconds_says_so(tmp_path: Path, seconds: str) -> None:
    """The same on both backends, before anything is opened."""
    for target in (["--sqlite-path", str(tmp_path / "chat.db")], ["--postgres-dsn", "postgresql://nowhere.invalid/db"]):
        result = check(*target, "--timeout", seconds)
        assert result.exit_code == 1
        assert f"seconds is {seconds}; it must be more than 0 and finite" in result.stderr


def test_the_timeout_is_kept_while_another_process_holds_the_lock(tmp_path: Path) -> None:
    """Both by the look at the file and by the calls of the full check; left to itself SQLite waits five seconds."""
    path = tmp_path / "chat.db"
    assert check("--sqlite-path", str(path), "--full").exit_code == 0

    def seconds_of_the_quickest(*arguments: str) -> float:
        # A machine that is busy makes one slow, not all three.
        quickest = float("inf")
        for _ in range(3):
            began = time.monotonic()
            result = check("--sqlite-path", str(path), "--timeout", "0.2", *arguments)
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


DSN_FAILURES: dict[str, tuple[Callable[[str], str], str]] = {
    "host not found": (
        lambda dsn: elsewhere(dsn, host="no-such-host.invalid"),
        "the host is not found; check its name",
    ),
    "authentication": (lambda dsn: dsn.replace(secret_of(dsn), "s3cret"), "check the user and the password in the DSN"),
    "unknown database": (lambda dsn: elsewhere(dsn, database="nowhere"), "create the database, or correct its name"),
    "TLS demanded": (lambda dsn: with_parameter(dsn, "sslmode=require"), "sslmode in the DSN"),
    "asyncpg in the scheme": (lambda dsn: dsn.replace("postgresql://", "postgresql+asyncpg://"), "remove '+asyncpg'"),
    "wrong scheme": (lambda dsn: dsn.replace("postgresql://", "mysql://"), "write postgresql://user:password@host"),
    "no scheme": (lambda dsn: dsn.replace("postgresql://", ""), "the DSN is not a URL; write postgresql://"),
    "unsupported parameter": (lambda dsn: with_parameter(dsn, "pool_size=5"), "give max_size= to the memory instead"),
    "unknown parameter": (lambda dsn: with_parameter(dsn, "no_such=1"), "the server does not know a parameter"),
    "bad sslmode": (lambda dsn: with_parameter(dsn, "sslmode=sometimes"), "sslmode"),
    "unescaped password": (lambda dsn: dsn.replace("@", "/1@"), "write them as %2F"),
    "empty": (lambda _: "", "set it to postgresql://user:password@host:5432/database"),
}


@pytest.mark.parametrize("case", DSN_FAILURES)
def test_every_failure_of_postgres_says_what_to_do(case: str, flux_postgres_dsn: str) -> None:
    """Exit 1, on stderr, with advice, without the password and without a traceback; the same as JSON."""
    change, advice = DSN_FAILURES[case]
    dsn = change(flux_postgres_dsn)
    result = check("--postgres-dsn", dsn)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("FAILED  ")
    assert advice in result.stderr
    assert "Traceback" not in result.stderr
    for secret in (secret_of(flux_postgres_dsn), "s3cret"):
        assert secret not in result.output
    as_json = check("--postgres-dsn", dsn, "--json")
    assert as_json.exit_code == 1
    report = json.loads(as_json.stdout)
    assert report["ok"] is False
    assert report["error"].endswith("Error")
    assert advice in report["message"]


def test_a_refused_connection_says_what_to_do(flux_postgres_dsn: str) -> None:
    """The commonest failure of all."""
    with closed_port() as port:
        result = check("--postgres-dsn", elsewhere(flux_postgres_dsn, port=port))
    assert result.exit_code == 1
    assert "nothing listens there; start the server, check host and port" in result.stderr


def test_a_newer_schema_says_what_to_do(flux_empty_database: str, tmp_path: Path) -> None:
    """On both backends, with and without `--full`."""
    path = tmp_path / "chat.db"
    assert check("--sqlite-path", str(path), "--full").exit_code == 0
    assert check("--postgres-dsn", flux_empty_database, "--full").exit_code == 0
    newer = (
        "INSERT INTO flux_memory_schema (version, name, checksum, applied_at) VALUES (99, 'later', 'x', '2999-01-01')"
    )
    change(path, newer)
    asyncio.run(execute(flux_empty_database, newer))
    for arguments in (["--sqlite-path", str(path)], ["--postgres-dsn", flux_empty_database]):
        for more in ([], ["--full"]):
            result = check(*arguments, *more)
            assert result.exit_code == 1
            assert "has schema version 99" in result.stderr
            assert "upgrade flux-memory, or use another database" in result.stderr


def not_a_database(path: Path) -> str:
    path.write_bytes(b"These are notes, no database. " * 100)
    return str(path)


def a_directory(path: Path) -> str:
    path.mkdir()
    return str(path)


def below_a_file(path: Path) -> str:
    path.touch()
    return str(path / "chat.db")


def somebody_elses(path: Path) -> str:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sessions (token TEXT)")
    return str(path)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (not_a_database, "the file is not a SQLite database; check the path"),
        (a_directory, "is a directory; give the path of a file in it"),
        (below_a_file, "cannot be written; give the process rights there, or choose another path"),
        (somebody_elses, "use another database"),
    ],
)
def test_every_failure_of_a_file_says_what_to_do(tmp_path: Path, make: Callable[[Path], str], advice: str) -> None:
    """Exit 1 with advice, and the path's content is as it was."""
    path = tmp_path / "chat.db"
    target = make(path)
    before = path.read_bytes() if path.is_file() else None
    result = check("--sqlite-path", target)
    assert result.exit_code == 1, result.output
    assert advice in result.stderr
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_directory_that_cannot_be_written_says_what_to_do(environment: pytest.MonkeyPatch) -> None:
    """Found before the application's first message: for a new file and for one that is there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        environment.chdir(directory)
        assert check("--sqlite-path", str(directory / "there.db"), "--full").exit_code == 0
        directory.chmod(0o555)
        try:
            with ordinary_user():
                missing = check("--sqlite-path", str(directory / "new" / "chat.db"))
                there = check("--sqlite-path", str(directory / "there.db"))
        finally:
            directory.chmod(0o755)
    assert (missing.exit_code, there.exit_code) == (1, 1)
    assert f"the file does not exist and {directory} cannot be written; give the process rights" in missing.stderr
    assert "the file or its directory cannot be written; SQLite needs both" in there.stderr


@pytest.mark.parametrize(
    ("variables", "advice"),
    [
        ({"DATABASE_BACKEND": "mysql"}, "the setting database_backend is wrong"),
        ({"DATABASE_BACKEND": "postgres"}, "POSTGRES_DSN is not set; set it to"),
        ({"DATABASE_URL": "postgresql://u:s3cret@h/d"}, "set DATABASE_BACKEND=postgres and POSTGRES_DSN"),
    ],
)
def test_wrong_settings_say_what_to_set(
    environment: pytest.MonkeyPatch, variables: dict[str, str], advice: str
) -> None:
    """A configuration mistake is not a traceback."""
    for name, value in variables.items():
        environment.setenv(name, value)
    result = check()
    assert result.exit_code == 1
    assert advice in result.stderr
    assert "s3cret" not in result.output


def test_help_and_version() -> None:
    """The options are documented where one looks for them."""
    result = CliRunner().invoke(main, ["check", "-h"])
    assert result.exit_code == 0
    for option in ("--sqlite-path", "--postgres-dsn", "--full", "--json", "--timeout"):
        assert option in result.output
    assert CliRunner().invoke(main, ["--version"]).output == f"main, version {__version__}\n"


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "flux_memory"], [str(Path(sys.executable).with_name("flux-memory"))]]
)
def test_both_ways_to_run_it_are_the_same_program(tmp_path: Path, command: list[str]) -> None:
    """`python -m flux_memory` and `flux-memory`, with real exit codes and streams."""
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


def test_a_role_that_may_not_make_the_tables_is_told_so(flux_empty_database: str) -> None:
    """By the check without `--full` too: as on SQLite, a store that could not be used is not well."""

    async def both() -> None:
        async with role(flux_empty_database) as dsn:
            plain, full = (
                await asyncio.to_thread(check, "--postgres-dsn", dsn),
                await asyncio.to_thread(check, "--postgres-dsn", dsn, "--full"),
            )
            for result in (plain, full):
                assert result.exit_code == 1
                assert "sees no tables there and may not create any" in result.stderr
                assert "grant the role what it lacks" in result.stderr

    asyncio.run(both())
    assert asyncio.run(contents(flux_empty_database)) == []
