"""Tests the programs of PostgreSQL that a dump needs: their version, their rights, their secrets, and poolers."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, restore, run_command, seen_files
from fault_pooler import run_pooler, with_pooler
from raw_postgres import execute, fetch_rows

from flux_memory.dsn import parse_dsn
from flux_memory.errors import BackupError
from flux_memory.operations.backup import dumping, programs
from flux_memory.operations.backup.addresses import libpq_environment, render_dsn
from flux_memory.operations.backup.manifest import manifest_path, read_manifest
from flux_memory.testkit.servers import start_server


@pytest.fixture
def database(make_store: MakeStore) -> Store:
    """A filled PostgreSQL store."""
    store = make_store("postgres")
    store.use(fill)
    return store


def make_program(directory: Path, version: str) -> Path:
    """Make a program that prints a version; no test runs it further."""
    directory.mkdir()
    path = directory / "pg_dump"
    path.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n")
    path.chmod(0o755)
    return directory


def test_the_program_of_the_servers_version_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same version wins, else the oldest later one; an older one is refused, and named."""
    places = [make_program(tmp_path / number, f"{number}.1") for number in ("13", "17", "16", "18")]
    monkeypatch.setattr(programs, "_places", lambda _: iter(places))
    assert programs.find_program("pg_dump", 17).path.parent.name == "17"
    assert programs.find_program("pg_dump", 15).path.parent.name == "16"
    assert programs.find_program("pg_dump", 14, oldest_major=18).path.parent.name == "18"
    with pytest.raises(BackupError, match=r"no pg_dump of version 19 or later \(.*13.* is of version 13") as raised:
        programs.find_program("pg_dump", 19)
    assert "postgresql-client-19" in str(raised.value)


def find_older_programs(major: int) -> Path:
    """Return the directory of real programs that are older than a server; Debian's packages have them."""
    for place in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        if int(place.parent.name) < major and (place / "pg_dump").exists():
            return place
    reason = f"this machine has no pg_dump older than {major}; Debian has it in postgresql-client"
    if os.environ.get("FLUX_MEMORY_REQUIRE_TLS") == "1":
        pytest.fail(f"FLUX_MEMORY_REQUIRE_TLS=1 promises Debian's programs, but {reason}", pytrace=False)
    pytest.skip(reason)


def test_an_older_pg_dump_is_refused(backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real pg_dump older than the server there is an error, not a dump that lacks something."""
    # Not the run's server: it may be the oldest version that this machine has.
    with start_server("local") as server:
        database = Store(None, server.create_database())
        database.use(fill)
        major = int(server.version.partition(".")[0])
        old = find_older_programs(major)
        monkeypatch.setattr(programs, "_places", lambda _: iter([old]))
        with pytest.raises(BackupError, match=f"no pg_dump of version {major} or later"):
            back_up(database, backups)
        assert seen_files(backups) == []
        assert back_up(database, backups, archive=True).exists()


def test_a_role_that_may_create_no_database_proves_on_a_local_server(
    database: Store, make_store: MakeStore, backups: Path
) -> None:
    """Without CREATEDB the dump is restored on a throwaway server of this machine, and no database is left anywhere."""
    assert database.postgres_dsn is not None
    dsn = parse_dsn(database.postgres_dsn)
    role = f"backup_{os.urandom(4).hex()}"
    reader = dsn._replace(arguments={**dsn.arguments, "user": role, "password": "secret-4"})
    asyncio.run(
        execute(
            database.postgres_dsn,
            f"CREATE ROLE {role} LOGIN PASSWORD 'secret-4'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        )
    )
    try:
        store = Store(None, render_dsn(reader, database=dsn.arguments["database"]))
        backup = back_up(store, backups)
        target = make_store("postgres")
        restore(backup, target)
        assert target.rows() == database.rows()
    finally:
        asyncio.run(execute(database.postgres_dsn, f"DROP OWNED BY {role}; DROP ROLE {role}"))
    left = asyncio.run(
        fetch_rows(database.postgres_dsn, "SELECT datname FROM pg_database WHERE datname LIKE 'flux_memory_scratch%'")
    )
    assert left == []


def test_the_password_is_in_no_argument(database: Store, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No argument of a program, which each user of the machine sees, has the password."""
    seen: list[str] = []
    run = dumping.run_program

    async def look(
        program: programs.Program, arguments: list[str], environment: dict[str, str], **pipes: object
    ) -> object:
        seen.extend(arguments)
        assert environment["PGPASSWORD"]
        return await run(program, arguments, environment, **pipes)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(dumping, "run_program", look)
    back_up(database, backups)
    assert database.postgres_dsn is not None
    password = str(parse_dsn(database.postgres_dsn).arguments["password"])
    assert any("--snapshot=" in argument for argument in seen)
    assert not [argument for argument in seen if password in argument]


def test_settings_of_the_dsn_reach_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS, hosts and settings of the server are passed on in variables."""
    monkeypatch.delenv("PGOPTIONS", raising=False)
    text = (
        "postgresql://ann:s%20ecret@h1:1,h2:2/chat?sslmode=verify-full&sslrootcert=/ca.pem&target_session_attrs=primary"
        "&search_path=my%20chat&chat.user=x%5Cy"
    )
    environment = libpq_environment(parse_dsn(text))
    expected = {
        "PGHOST": "h1,h2",
        "PGPORT": "1,2",
        "PGUSER": "ann",
        "PGPASSWORD": "s ecret",
        "PGDATABASE": "chat",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGTARGETSESSIONATTRS": "primary",
        "PGOPTIONS": "-c search_path=my\\ chat -c chat.user=x\\\\y",
    }
    assert {name: environment.get(name) for name in expected} == expected
    again = parse_dsn(render_dsn(parse_dsn(text), database="other"))
    assert again.addresses == (("h1", 1), ("h2", 2))
    assert (again.arguments["database"], again.arguments["password"]) == ("other", "s ecret")
    with pytest.raises(BackupError, match="sslpassword"):
        libpq_environment(parse_dsn("postgresql://ann@h/chat?sslpassword=x"))


@pytest.fixture
def pooled(database: Store) -> Iterator[Store]:
    """The store behind a PgBouncer in transaction mode."""
    assert database.postgres_dsn is not None
    with run_pooler(database.postgres_dsn) as pooler:
        yield Store(None, with_pooler(database.postgres_dsn, pooler))


def test_a_dump_through_a_pooler_is_refused_and_an_archive_is_not(
    database: Store, pooled: Store, make_store: MakeStore, backups: Path
) -> None:
    """PgBouncer would hand pg_dump's settings to other clients; an archive is one transaction, and works."""
    with pytest.raises(BackupError, match="connection pooler"):
        back_up(pooled, backups)
    assert seen_files(backups) == []
    backup = back_up(pooled, backups, archive=True)
    target = make_store("sqlite")
    restore(backup, target)
    assert target.rows() == database.rows()


def test_tables_of_an_earlier_schema_are_dumped_before_an_upgrade(make_store: MakeStore, backups: Path) -> None:
    """A dump of an earlier schema is proven table by table, and restores with the upgrade that follows."""
    store, target = make_store("postgres"), make_store("postgres")
    store.use(fill)
    rows = {**store.rows(), "feedback": []}
    assert store.postgres_dsn is not None
    asyncio.run(execute(store.postgres_dsn, "DROP TABLE feedback; DELETE FROM flux_memory_schema WHERE version > 6"))
    result = run_command("backup", backups, *store.options())
    assert result.exit_code == 0, result.output
    assert "schema version 6" in result.output
    assert "Proven identical" in result.output
    (backup,) = backups.glob("*.dump")
    restore(backup, target)
    target.use(lambda memory: memory.count_sessions())
    assert target.rows() == rows


def test_a_dump_has_only_the_tables_of_the_memory(database: Store, backups: Path) -> None:
    """Tables of other programs in the same database are not dumped."""
    assert database.postgres_dsn is not None
    asyncio.run(execute(database.postgres_dsn, "CREATE TABLE invoices (id INT); INSERT INTO invoices VALUES (1)"))
    backup = back_up(database, backups)
    major = int(read_manifest(manifest_path(backup)).engine.rpartition(" ")[2])
    program = programs.find_program("pg_restore", major)
    listed = subprocess.run([program.path, "--list", backup], capture_output=True, text=True, check=True).stdout
    assert "sessions" in listed
    assert "invoices" not in listed
