"""Tests the throwaway PostgreSQL without pytest: what each provider promises."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from flux_memory.testkit.servers import Server, ServerUnavailable, local, start_server
from flux_memory.testkit.servers.binaries import find_binaries, server_account
from flux_memory.testkit.servers.container import ContainerServer
from flux_memory.testkit.servers.databases import with_database
from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements

pytestmark = pytest.mark.usefixtures("without_test_dsn")


@pytest.fixture(params=["local", "docker", "external"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "local":
        yield request.getfixturevalue("local_server")
    elif request.param == "docker":
        with start_server("docker", image=request.getfixturevalue("postgres_image")) as found:
            yield found
    else:
        with start_server(request.getfixturevalue("local_server").dsn) as found:
            yield found


def socket_directory(server: Server) -> Path:
    """Return the directory of the socket, within the server's own directory."""
    assert server.socket_dsn is not None
    return Path(parse_qs(urlsplit(server.socket_dsn).query)["host"][0])


def test_every_provider_gives_separate_databases(server: Server, statements: Statements) -> None:
    """Promise: two databases are independent, and a dropped one is gone."""
    first, second = server.create_database(), server.create_database()
    statements.execute(first, "CREATE TABLE sessions (id int)")
    assert statements.fetch_value(second, "SELECT to_regclass('sessions')") is None
    assert str(statements.fetch_value(first, "SHOW server_version")).startswith(server.version)
    server.drop_database(first)
    with pytest.raises(NotAnswered, match="does not exist"):
        select_one(first)
    with pytest.raises(ValueError, match="not a database of this run"):
        server.drop_database(server.dsn)


def select_one(dsn: str) -> Any:
    with closing(Statements()) as statements:
        return statements.fetch_value(dsn, "SELECT 1")


def test_a_login_costs_the_client_one_round(server: Server, statements: Statements) -> None:
    """Promise: a connection spends no time on rounds that protect a guessable password; the server's is random."""
    kept = "SELECT rolpassword FROM pg_authid WHERE rolname = current_user"
    assert str(statements.fetch_value(server.dsn, kept)).startswith("SCRAM-SHA-256$1:")


def test_every_provider_refuses_a_wrong_password(server: Server) -> None:
    """Promise: authentication works over TCP and over the socket, so that its failures can be tested."""
    for dsn in filter(None, (server.dsn, server.socket_dsn)):
        right = urlsplit(dsn).password
        assert right
        with pytest.raises(NotAnswered, match="password authentication failed"):
            select_one(dsn.replace(right, "wrong"))


def test_emptying_keeps_tables_and_other_databases(server: Server, statements: Statements) -> None:
    """Promise: emptying deletes the sessions of one database, moved ones too, and only if there are such tables."""
    dsn = server.create_database()
    server.empty_database(dsn)
    for table in ("sessions", "flux_memory_moved_sessions"):
        statements.execute(dsn, f"CREATE TABLE {table} (id int); INSERT INTO {table} VALUES (1)")
        server.empty_database(dsn)
        assert statements.fetch_value(dsn, f"SELECT count(*) FROM {table}") == 0
    with pytest.raises(ValueError, match="not a database of this run"):
        server.empty_database(server.dsn)


def test_emptying_ends_open_transactions_of_a_failed_test(local_server: Server, statements: Statements) -> None:
    """Promise: a transaction that a failed test left open does not block later tests."""
    dsn = local_server.create_database()
    statements.execute(dsn, "CREATE TABLE sessions (id int); INSERT INTO sessions VALUES (1)")
    statements.execute(dsn, "BEGIN; LOCK TABLE sessions")
    local_server.empty_database(dsn)
    assert statements.fetch_value(dsn, "SELECT count(*) FROM sessions") == 0


def test_a_server_outlives_its_connections(local_server: Server, statements: Statements) -> None:
    """Promise: a test that ends every connection ends neither the fixtures' work nor their claim to databases."""
    end_all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' "
    with start_server(local_server.dsn) as server:
        dsn = server.create_database()
        server.empty_database(dsn)
        statements.fetch_value(local_server.dsn, f"{end_all} AND pid <> pg_backend_pid()")
        server.drop_database(server.create_database())
        with start_server(local_server.dsn):
            assert select_one(dsn) == 1
        server.empty_database(dsn)


def test_a_socket_leads_to_the_same_database(local_server: Server, statements: Statements) -> None:
    """Promise: the local server can also be reached through a Unix socket."""
    dsn = local_server.create_database()
    statements.execute(dsn, "CREATE TABLE here (id int)")
    through = local_server.through_socket(dsn)
    assert through is not None
    assert statements.fetch_value(through, "SELECT to_regclass('here') IS NOT NULL AND inet_server_addr() IS NULL")


def test_an_external_server_on_a_socket_says_so(local_server: Server) -> None:
    """Promise: a DSN with a socket directory works and is returned as the socket's DSN."""
    assert local_server.socket_dsn is not None
    with start_server(local_server.socket_dsn) as server:
        dsn = server.create_database()
        assert server.through_socket(dsn) == dsn
        assert select_one(dsn) == 1
    with start_server(local_server.dsn) as server:
        assert server.socket_dsn is None


def test_methods_work_while_an_event_loop_runs(local_server: Server) -> None:
    """Promise: no method depends on the caller's event loop, so a benchmark can call it inside one."""

    async def use() -> None:
        local_server.drop_database(local_server.create_database())

    asyncio.run(use())


def test_local_server_listens_on_loopback_only(local_server: Server, statements: Statements) -> None:
    """Promise: a throwaway server is not open to the network."""
    assert statements.fetch_value(local_server.dsn, "SHOW listen_addresses") == "127.0.0.1"


def test_container_publishes_on_loopback_only(docker_engine: Any, postgres_image: str) -> None:
    """Promise: a container on this machine is not open to the network."""
    with start_server("docker", image=postgres_image) as server:
        running = server._running
        assert isinstance(running, ContainerServer)
        assert urlsplit(server.dsn).hostname == "127.0.0.1"
        ports = docker_engine.api.inspect_container(running.container)["NetworkSettings"]["Ports"]
        assert [binding["HostIp"] for binding in ports["5432/tcp"]] == ["127.0.0.1"]


def test_local_server_never_runs_as_root(local_server: Server) -> None:
    """Promise: in a process of root the programs run as another existing user, otherwise as the current one."""
    owner = (socket_directory(local_server) / "data").stat().st_uid
    assert owner == server_account().user
    assert owner != 0
    assert os.geteuid() in {0, owner}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the programs as another user")
def test_programs_out_of_the_other_users_reach_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: root can run it from a project that other users cannot enter; no permission outside changes."""
    prefix = find_binaries().directory.parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / prefix.parent.name).mkdir()
    (closed / prefix.parent.name / prefix.name).symlink_to(prefix)
    bindir = closed / prefix.parent.name / prefix.name / "bin"
    if prefix.parent.with_name(f"{prefix.parent.name}.libs").is_dir():
        (closed / f"{prefix.parent.name}.libs").symlink_to(prefix.parent.with_name(f"{prefix.parent.name}.libs"))
    before = (closed.stat().st_mode, prefix.stat().st_mode)
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(bindir))
    monkeypatch.setattr(Path, "resolve", Path.absolute)
    with start_server("local") as server:
        copied = list(socket_directory(server).parent.glob("programs/*/*/bin/postgres"))
        assert len(copied) == 1
    assert (closed.stat().st_mode, prefix.stat().st_mode) == before


def test_nothing_is_left_after_success_and_failure() -> None:
    """Promise: directory, socket and process are gone after the block, with and without an error."""
    seen = []

    def use_and_fail() -> None:
        with start_server("local") as server:
            seen.append((socket_directory(server).parent, server.dsn))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        use_and_fail()
    [(directory, dsn)] = seen
    assert not directory.exists()
    with pytest.raises(NotAnswered):
        select_one(dsn)


def test_durable_server_keeps_its_durability_and_takes_settings(
    statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: benchmarks get PostgreSQL's default durability, and settings arrive as they were given.

    The directory for temporary files may have any name.
    """
    place = Path(tempfile.mkdtemp(prefix=f"a, 'b' \\{os.getpid()}"))
    place.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    settings = {"application_name": "it's \\n", "max_connections": "20"}
    with start_server("local", durable=True, settings=settings) as server:
        assert socket_directory(server).is_relative_to(place)
        shown = {name: statements.fetch_value(server.dsn, f"SHOW {name}") for name in ("fsync", "full_page_writes")}
        assert shown == {"fsync": "on", "full_page_writes": "on"}
        assert statements.fetch_value(server.dsn, "SHOW max_connections") == "20"
        # asyncpg sets no value, so it is the server's.
        assert statements.fetch_value(server.dsn, "SHOW application_name") == "it's \\n"
        statements.forget(server.dsn)
    place.rmdir()


def test_settings_that_cannot_be_given_are_refused(local_server: Server) -> None:
    """Promise: an external server is never accepted for requested settings or durability."""
    with pytest.raises(ServerUnavailable, match="settings"), start_server(local_server.dsn, settings={"fsync": "on"}):
        pass
    with pytest.raises(ServerUnavailable, match="fsync"), start_server(local_server.dsn, durable=True):
        pass


def test_settings_that_the_server_refuses_are_reported() -> None:
    """Promise: a server that does not start reports its own message, and leaves nothing behind."""
    with (
        pytest.raises(ServerUnavailable, match="no_such_setting"),
        start_server("local", settings={"no_such_setting": "1"}),
    ):
        pass


def test_a_port_taken_by_another_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: if another process takes the port between the probe and the server's start, another port is tried."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = local._free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(local, "_free_port", lambda: next(ports))
        with start_server("local") as server:
            assert urlsplit(server.dsn).port == free


def test_dsn_keeps_its_query() -> None:
    """Promise: another database of the same server keeps the DSN's options."""
    dsn = "postgresql://u:p@/postgres?host=/run/pg&port=5433&sslmode=disable&dbname=x"
    assert with_database(dsn, "a b") == "postgresql://u:p@/a%20b?host=/run/pg&port=5433&sslmode=disable"


def test_the_built_image_honours_its_variables(docker_engine: Any, built_image: str, statements: Statements) -> None:
    """Promise: the image accepts user, password and database as the official one does, and options of the server."""
    container = docker_engine.containers.run(
        built_image,
        ["-c", "application_name=from-the-command"],
        detach=True,
        environment={"POSTGRES_USER": "alice", "POSTGRES_PASSWORD": "p w'\"$", "POSTGRES_DB": 'odd "name"'},
        ports={"5432/tcp": ("127.0.0.1",)},
    )
    try:
        container.reload()
        port = container.attrs["NetworkSettings"]["Ports"]["5432/tcp"][0]["HostPort"]

        async def ask() -> list[Any]:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=port, user="alice", password="p w'\"$", database='odd "name"'
            )
            try:
                row = await connection.fetchrow(
                    "SELECT current_user, current_database(), current_setting('application_name'), rolsuper "
                    "FROM pg_roles WHERE rolname = current_user"
                )
                return list(row)
            finally:
                await connection.close()

        async def ask_until_answered() -> list[Any]:
            async with asyncio.timeout(60):
                while True:
                    try:
                        return await ask()
                    except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
                        await asyncio.sleep(0.05)

        assert asyncio.run(ask_until_answered()) == ["alice", 'odd "name"', "from-the-command", True]
    finally:
        container.remove(force=True, v=True)


def test_the_built_image_wants_a_password(docker_engine: Any, built_image: str) -> None:
    """Promise: without a password the image exits with an error instead of being open to everyone."""
    container = docker_engine.containers.run(built_image, detach=True)
    try:
        assert container.wait(timeout=60)["StatusCode"] == 1
        assert b"POSTGRES_PASSWORD" in container.logs()
    finally:
        container.remove(force=True, v=True)


def test_external_server_keeps_foreign_databases(local_server: Server, statements: Statements) -> None:
    """Promise: on an external server a run drops what it created, and touches no other database."""
    bystanders = ["flux_memory", "flux_memory_test", "flux_memory_test_prod_1", f"other_{secrets.token_hex(6)}_1"]
    for name in bystanders:
        statements.execute(local_server.dsn, f'CREATE DATABASE "{name}"')
    with start_server(local_server.dsn) as server:
        dsn = server.create_database()
        assert select_one(dsn) == 1
    names = set(statements.fetch_column(local_server.dsn, "SELECT datname FROM pg_database"))
    assert names >= set(bystanders)
    assert urlsplit(dsn).path.removeprefix("/") not in names
    assert select_one(local_server.dsn) == 1
    for name in bystanders:
        statements.execute(local_server.dsn, f'DROP DATABASE "{name}"')


def test_external_server_needs_a_role_that_creates_databases(local_server: Server, statements: Statements) -> None:
    """Promise: a role that may not create databases is reported at once, with advice."""
    statements.execute(local_server.dsn, "CREATE ROLE humble LOGIN PASSWORD 'humble'")
    parts = urlsplit(local_server.dsn)
    dsn = parts._replace(netloc=f"humble:humble@127.0.0.1:{parts.port}").geturl()
    with pytest.raises(ServerUnavailable, match="CREATEDB"), start_server(dsn):
        pass
