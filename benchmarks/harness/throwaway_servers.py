"""The contenders of `harness_cost`: ways to get PostgreSQL in tests, with a machine's programs or in containers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = """
import json, pathlib, time
import psycopg, pytest

SCHEMA = pathlib.Path("schema.sql").absolute()
{fixtures}

times = []

@pytest.mark.parametrize("number", range({tests}))
def test_rows({fixture}, number):
    connection = {connection}
    assert connection.execute("SELECT count(*) FROM t7").fetchone() == (20,)
    times.append(time.time())
    connection.execute("DELETE FROM t7")
    connection.commit()
    {after}
    pathlib.Path("times.json").write_text(json.dumps(times))
"""


@dataclass(frozen=True)
class Contender:
    """A way to get PostgreSQL in tests.

    Its texts may name `{bin}`, the directory of PostgreSQL's programs, and `{image}`, the image of the containers.

    Args:
        name: The first column of the table.
        package: The package whose version is shown.
        plugin: The name of its plugin; those of the others are not loaded.
        fixtures: The definitions of its fixtures.
        fixture: The fixture of a test.
        connection: The expression of a test's connection.
        after: The statement that ends a test after its commit.
        options: Options of pytest.
        compose: The text of a compose file, if it uses one.
        in_container: Whether the server runs in a container.
    """

    name: str
    package: str
    plugin: str
    fixtures: str
    fixture: str
    connection: str
    after: str = "connection.close()"
    options: tuple[str, ...] = ()
    compose: str = ""
    in_container: bool = False

    def rendered(self, text: str, programs: Path, image: str) -> str:
        """Return one of its texts with the programs and the image filled in."""
        return text.replace("{bin}", str(programs)).replace("{image}", image)

    def unused_plugins(self) -> Iterable[str]:
        """Return the options that keep pytest from loading the plugins of the others."""
        return [f"-pno:{each}" for each in sorted(PLUGINS - {self.plugin})]


COPY_FOR_EACH_TEST: Final = """
@pytest.fixture
def database(flux_postgres_database):
    return flux_postgres_database(init=SCHEMA)
"""
ROLLBACK_FOR_EACH_TEST: Final = """
@pytest.fixture(scope="session")
def flux_postgres_rollback_database(flux_postgres):
    return flux_postgres.database(init=SCHEMA)
"""
PYTEST_POSTGRESQL: Final = """
from pytest_postgresql import factories
database_proc = factories.postgresql_proc(load=[SCHEMA])
database = factories.postgresql("database_proc")
"""
TESTING_POSTGRESQL: Final = """
import testing.postgresql

def fill(server):
    with psycopg.connect(server.url()) as connection:
        connection.execute(SCHEMA.read_text())

@pytest.fixture(scope="session")
def servers():
    factory = testing.postgresql.PostgresqlFactory(
        cache_initialized_db=True, on_initialized=fill, initdb="{bin}/initdb", postgres="{bin}/postgres"
    )
    yield factory
    factory.clear_cache()

@pytest.fixture
def server(servers):
    with servers() as server:
        yield server
"""
# Neither of the two has a database for each test; their users drop the schema, and make it again.
_NEW_SCHEMA: Final = """
@pytest.fixture
def database(server_dsn):
    connection = psycopg.connect(server_dsn)
    connection.execute("DROP SCHEMA public CASCADE")
    connection.execute("CREATE SCHEMA public")
    connection.execute(SCHEMA.read_text())
    connection.commit()
    return connection
"""
PYTEST_DATABASES: Final = (
    """
def dsn_of(service):
    return f"host={service.host} port={service.port} user=postgres password=secret dbname=postgres"

def answers(service):
    try:
        psycopg.connect(dsn_of(service)).close()
    except psycopg.OperationalError:
        return False
    return True

@pytest.fixture(scope="session")
def server_dsn(docker_service):
    environment = {"POSTGRES_PASSWORD": "secret"}
    with docker_service.run("{image}", 5432, "postgres", env=environment, check=answers) as service:
        yield dsn_of(service)
"""
    + _NEW_SCHEMA
)
PYTEST_DOCKER: Final = (
    """
import shutil, subprocess

@pytest.fixture(scope="session")
def docker_compose_file():
    return str(SCHEMA.with_name("compose.yaml"))

@pytest.fixture(scope="session")
def docker_compose_command():
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return "docker compose" if plugin.returncode == 0 else "docker-compose"

@pytest.fixture(scope="session")
def docker_setup():
    return ["up -d"]

@pytest.fixture(scope="session")
def server_dsn(docker_ip, docker_services):
    port = docker_services.port_for("postgres", 5432)
    dsn = f"host={docker_ip} port={port} user=postgres password=secret dbname=postgres"
    def answers():
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            return False
        return True
    docker_services.wait_until_responsive(check=answers, timeout=60, pause=0.1)
    return dsn
"""
    + _NEW_SCHEMA
)
COMPOSE: Final = """
version: "3"
services:
  postgres:
    image: "{image}"
    environment: {POSTGRES_PASSWORD: secret}
    ports: ["127.0.0.1::5432"]
"""

CONTENDERS: Final = (
    Contender(
        "flux-memory, a copy for each test",
        "flux-memory",
        "flux_memory",
        COPY_FOR_EACH_TEST,
        "database",
        "psycopg.connect(database.dsn)",
        options=("--flux-postgres=local",),
    ),
    Contender(
        "flux-memory, a rollback for each test",
        "flux-memory",
        "flux_memory",
        ROLLBACK_FOR_EACH_TEST,
        "flux_postgres_rollback",
        "flux_postgres_rollback.psycopg()",
        after="pass",
        options=("--flux-postgres=local",),
    ),
    Contender(
        "pytest-postgresql, a copy for each test",
        "pytest-postgresql",
        "pytest_postgresql",
        PYTEST_POSTGRESQL,
        "database",
        "database",
        after="pass",
        options=("--postgresql-exec={bin}/pg_ctl",),
    ),
    Contender(
        "testing.postgresql, a server for each test",
        "testing.postgresql",
        "",
        TESTING_POSTGRESQL,
        "server",
        "psycopg.connect(server.url())",
    ),
    Contender(
        "flux-memory in a container, a copy for each test",
        "flux-memory",
        "flux_memory",
        COPY_FOR_EACH_TEST,
        "database",
        "psycopg.connect(database.dsn)",
        options=("--flux-postgres=docker",),
        in_container=True,
    ),
    Contender(
        "pytest-databases, the schema for each test",
        "pytest-databases",
        "pytest_databases",
        PYTEST_DATABASES,
        "database",
        "database",
        in_container=True,
    ),
    Contender(
        "pytest-docker, the schema for each test",
        "pytest-docker",
        "docker",
        PYTEST_DOCKER,
        "database",
        "database",
        compose=COMPOSE,
        in_container=True,
    ),
)
"""All use the same driver, and those of a kind the same programs of PostgreSQL or the same image."""

PLUGINS: Final = {each.plugin for each in CONTENDERS} - {""}
