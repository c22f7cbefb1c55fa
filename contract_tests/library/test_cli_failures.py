"""Tests that every failure of the command line exits with 1 and says what to do."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from check_command import password_of, run_check
from ordinary_user import become_ordinary_user
from raw_postgres import create_role, dump_database, execute, reserve_port, with_address, with_parameter
from raw_sqlite import execute_in_file
from unusable_paths import make_directory, make_file_as_parent, write_notes

pytestmark = pytest.mark.usefixtures("clean_environment")

DSN_FAILURES: dict[str, tuple[Callable[[str], str], str]] = {
    "host not found": (
        lambda dsn: with_address(dsn, host="no-such-host.invalid"),
        "the host is not found; check its name",
    ),
    "authentication": (
        lambda dsn: dsn.replace(password_of(dsn), "s3cret"),
        "check the user and the password in the DSN",
    ),
    "unknown database": (lambda dsn: with_address(dsn, database="nowhere"), "create the database, or correct its name"),
    "TLS demanded": (lambda dsn: with_parameter(dsn, "sslmode=require"), "sslmode in the DSN"),
    "asyncpg in the scheme": (lambda dsn: dsn.replace("postgresql://", "postgresql+asyncpg://"), "remove '+asyncpg'"),
    "wrong scheme": (lambda dsn: dsn.replace("postgresql://", "mysql://"), "write postgresql://user:password@host"),
    "no scheme": (lambda dsn: dsn.replace("postgresql://", ""), "the DSN is not a URL; write postgresql://"),
    "unsupported parameter": (lambda dsn: with_parameter(dsn, "pool_size=5"), "give max_size= to the memory instead"),
    "unknown parameter": (lambda dsn: with_parameter(dsn, "no_such=1"), "the server does not know a parameter"),
    "bad sslmode": (lambda dsn: with_parameter(dsn, "sslmode=sometimes"), "sslmode"),
    "unescaped password": (lambda dsn: dsn.replace("@", "/1@"), "write them as %2F"),
}


@pytest.mark.parametrize("case", DSN_FAILURES)
def test_every_failure_of_postgres_says_what_to_do(case: str, flux_postgres_dsn: str) -> None:
    """Exit 1, with advice on stderr and in JSON, without the password and without a traceback."""
    change, advice = DSN_FAILURES[case]
    dsn = change(flux_postgres_dsn)
    result = run_check("--postgres-dsn", dsn)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("FAILED  ")
    assert advice in result.stderr
    assert "Traceback" not in result.stderr
    for secret in (password_of(flux_postgres_dsn), "s3cret"):
        assert secret not in result.output
    as_json = run_check("--postgres-dsn", dsn, "--json")
    assert as_json.exit_code == 1
    report = json.loads(as_json.stdout)
    assert report["ok"] is False
    assert report["error"].endswith("Error")
    assert advice in report["message"]


@pytest.mark.parametrize("option", ["--postgres-dsn", "--sqlite-path"])
def test_an_empty_option_is_wrong_usage(option: str) -> None:
    """A shell variable that is not set gives one; it must not mean the store of the settings."""
    result = run_check(option, "")
    assert result.exit_code == 2
    assert f"{option} is empty" in result.stderr


def test_a_refused_connection_says_what_to_do(flux_postgres_dsn: str) -> None:
    """The most common failure names its cause and its remedy."""
    with reserve_port() as port:
        result = run_check("--postgres-dsn", with_address(flux_postgres_dsn, port=port))
    assert result.exit_code == 1
    assert "nothing listens there; start the server, check host and port" in result.stderr


def test_a_newer_schema_says_what_to_do(flux_empty_database: str, tmp_path: Path) -> None:
    """Both backends refuse it, with and without `--full`."""
    path = tmp_path / "chat.db"
    assert run_check("--sqlite-path", str(path), "--full").exit_code == 0
    assert run_check("--postgres-dsn", flux_empty_database, "--full").exit_code == 0
    newer = (
        "INSERT INTO flux_memory_schema (version, name, checksum, applied_at) VALUES (99, 'later', 'x', '2999-01-01')"
    )
    execute_in_file(path, newer)
    asyncio.run(execute(flux_empty_database, newer))
    for arguments in (["--sqlite-path", str(path)], ["--postgres-dsn", flux_empty_database]):
        for more in ([], ["--full"]):
            result = run_check(*arguments, *more)
            assert result.exit_code == 1
            assert "has schema version 99" in result.stderr
            assert "upgrade flux-memory, or use another database" in result.stderr


def make_foreign_tables(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sessions (token TEXT)")
    return path


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (write_notes, "the file is not a SQLite database; check the path"),
        (make_directory, "is a directory; give the path of a file in it"),
        (make_file_as_parent, "cannot be written; give the process rights there, or choose another path"),
        (make_foreign_tables, "use another database"),
    ],
)
def test_every_failure_of_a_file_says_what_to_do(tmp_path: Path, make: Callable[[Path], Path], advice: str) -> None:
    """Exit 1 with advice, and the file or directory is unchanged."""
    path = tmp_path / "chat.db"
    target = make(path)
    before = path.read_bytes() if path.is_file() else None
    result = run_check("--sqlite-path", str(target))
    assert result.exit_code == 1, result.output
    assert advice in result.stderr
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_directory_that_cannot_be_written_says_what_to_do(clean_environment: pytest.MonkeyPatch) -> None:
    """The check finds it before the application's first message, for a new file and for an existing one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        clean_environment.chdir(directory)
        assert run_check("--sqlite-path", str(directory / "there.db"), "--full").exit_code == 0
        directory.chmod(0o555)
        try:
            with become_ordinary_user():
                missing = run_check("--sqlite-path", str(directory / "new" / "chat.db"))
                there = run_check("--sqlite-path", str(directory / "there.db"))
        finally:
            directory.chmod(0o755)
    assert (missing.exit_code, there.exit_code) == (1, 1)
    assert f"the file does not exist and {directory} cannot be written; give the process rights" in missing.stderr
    assert "the file or its directory cannot be written; SQLite needs both" in there.stderr


@pytest.mark.parametrize(
    ("variables", "advice"),
    [
        ({"DATABASE_BACKEND": "mysql"}, "the setting DATABASE_BACKEND is wrong"),
        ({"DATABASE_BACKEND": "postgres"}, "POSTGRES_DSN is not set; set it to"),
        ({"DATABASE_URL": "postgresql://u:s3cret@h/d"}, "set DATABASE_BACKEND=postgres and POSTGRES_DSN"),
    ],
)
def test_wrong_settings_say_what_to_set(
    clean_environment: pytest.MonkeyPatch, variables: dict[str, str], advice: str
) -> None:
    """A configuration mistake gives advice instead of a traceback."""
    for name, value in variables.items():
        clean_environment.setenv(name, value)
    result = run_check()
    assert result.exit_code == 1
    assert advice in result.stderr
    assert "s3cret" not in result.output


def test_a_role_that_may_not_create_tables_gets_advice(flux_empty_database: str) -> None:
    """The check without `--full` also fails: as on SQLite, a store that cannot be used is not healthy."""

    async def both() -> None:
        async with create_role(flux_empty_database) as dsn:
            plain, full = (
                await asyncio.to_thread(run_check, "--postgres-dsn", dsn),
                await asyncio.to_thread(run_check, "--postgres-dsn", dsn, "--full"),
            )
            for result in (plain, full):
                assert result.exit_code == 1
                assert "sees no tables there and may not create any" in result.stderr
                assert "grant the role what it lacks" in result.stderr

    asyncio.run(both())
    assert asyncio.run(dump_database(flux_empty_database)) == []
