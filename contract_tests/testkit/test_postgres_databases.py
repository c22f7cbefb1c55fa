"""Tests of databases from a recipe: made once for the run, copied for each test, owned by an unprivileged role."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from waiting import becomes_true

from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers.database import PostgresDatabase
from flux_memory.testkit.servers.recipe import DatabaseInitError
from flux_memory.testkit.servers.statements import Statements

TABLE = "CREATE TABLE items (name text); INSERT INTO items VALUES ('seed')"
NAMES = "SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') FROM items"


@pytest.fixture(params=["own", "given"])
def server(request: pytest.FixtureRequest, local_server: Server) -> Iterator[Server]:
    """A server started for the run, and one given by its DSN."""
    if request.param == "own":
        yield local_server
    else:
        with start_server(local_server.dsn) as given:
            yield given


def ask(database: PostgresDatabase, query: str) -> Any:
    with closing(Statements()) as statements:
        return statements.fetch_value(database.dsn, query)


def test_steps_run_once_and_each_database_is_a_copy(server: Server, tmp_path: Path) -> None:
    """Promise: SQL, files and functions run in order, once for the run; the copies are independent."""
    (tmp_path / "rows.sql").write_text("INSERT INTO items VALUES ('file');\n")
    calls = tmp_path / "calls"

    def add_row(dsn: str) -> None:
        with closing(Statements()) as statements, calls.open("a") as file:
            statements.execute(dsn, "INSERT INTO items VALUES ('function')")
            file.write("called\n")

    async def add_row_later(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("INSERT INTO items VALUES ('coroutine')")
        await connection.close()

    with closing(Statements()) as left_open:
        # An open connection must not prevent the copy.
        init = [
            TABLE,
            "rows.sql",
            tmp_path / "rows.sql",
            add_row,
            add_row_later,
            "-- no statement\n",
            lambda dsn: left_open.execute(dsn, "SELECT 1"),
        ]
        first, second = (server.database(init=init, directory=tmp_path) for _ in range(2))
        assert ask(first, "WITH gone AS (DELETE FROM items RETURNING 1) SELECT count(*) FROM gone") == 5
        assert ask(second, NAMES) == "coroutine file file function seed"
        assert ask(server.database(init=init, directory=tmp_path), NAMES) == "coroutine file file function seed"
    assert calls.read_text() == "called\n"


def test_a_function_may_run_its_own_event_loop_in_an_async_test(local_server: Server) -> None:
    """Promise: migrations that call `asyncio.run()` also work while an event loop runs."""

    def migrate(dsn: str) -> None:
        async def work() -> None:
            connection = await asyncpg.connect(dsn)
            await connection.execute(TABLE)
            await connection.close()

        asyncio.run(work())

    async def test() -> str:
        return str(ask(local_server.database(init=migrate), NAMES))

    assert asyncio.run(test()) == "seed"


def test_an_owner_has_no_other_rights(server: Server) -> None:
    """Promise: the role owns its database and all that the steps made, and may create nothing else."""
    rights = (
        "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = current_user"
    )
    name = f"owner of the {server.is_own} one"
    for owner, wanted in ((True, None), (name, name)):
        database = server.database(init=TABLE, owner=owner, extensions=["plpgsql"])
        assert ask(database, "SELECT current_user") == database.user
        assert wanted in {None, database.user}
        assert database.user != server.user
        assert ask(database, rights) is False
        assert ask(database, "SELECT tableowner FROM pg_tables WHERE tablename = 'items'") == database.user
        assert ask(database, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()") == (
            database.user
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            ask(database, "CREATE DATABASE other")
        assert server.database(owner=owner).user == database.user


def test_a_role_that_the_run_did_not_create_is_refused(local_server: Server, statements: Statements) -> None:
    """Promise: a run neither uses nor drops a role of the server's that has the owner's name."""
    statements.execute(local_server.dsn, "CREATE ROLE precious")
    with start_server(local_server.dsn) as given:
        with pytest.raises(ValueError, match="owner='precious': the server has such a role already"):
            given.database(owner="precious")
        with pytest.raises(ValueError, match="owner='postgres'"):
            given.database(owner="postgres")
    assert statements.fetch_value(local_server.dsn, "SELECT count(*) FROM pg_roles WHERE rolname = 'precious'") == 1


@pytest.mark.parametrize("owner", ["pg_x", "none", "public", "long" * 20, "a,b", "a\0b"])
def test_a_name_that_no_role_can_have_is_refused(local_server: Server, owner: str) -> None:
    """Promise: the error names the owner that was asked for."""
    with pytest.raises(ValueError, match=f"owner={re.escape(repr(owner))}: .*; choose another"):
        local_server.database(owner=owner)


@pytest.mark.parametrize("owner", ['a"b', "x'y", "a/b@c:d?", "\u00fc \u00e9", "A B", "back\\slash", "%41", "a=b"])
def test_an_owner_may_have_any_other_name(local_server: Server, owner: str) -> None:
    """Promise: every form of the DSN logs in as the owner, however it is written."""
    database = local_server.database(owner=owner, init=TABLE)
    assert database.user == owner
    assert ask(database, "SELECT current_user || ' ' || session_user") == f"{owner} {owner}"
    local_server.drop_database(database)


def test_a_file_of_a_windows_editor_is_read(local_server: Server, tmp_path: Path) -> None:
    """Promise: a byte order mark is not part of the SQL, as for psql."""
    (tmp_path / "schema.sql").write_bytes(b"\xef\xbb\xbf" + TABLE.encode())
    assert ask(local_server.database(init=tmp_path / "schema.sql"), NAMES) == "seed"


def test_nothing_is_left_on_a_given_server(local_server: Server, statements: Statements) -> None:
    """Promise: databases, templates and roles are gone after the run."""
    everything = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
    before = sorted(statements.fetch_column(local_server.dsn, everything))
    with start_server(local_server.dsn) as given:
        given.database(init=TABLE, owner="leaver")
        given.database(init=TABLE, owner=True)
        with pytest.raises(DatabaseInitError):
            given.database(init="SELECT wrong")
        # A database each, a template each, a role each.
        assert len(statements.fetch_column(local_server.dsn, everything)) == len(before) + 6
    assert sorted(statements.fetch_column(local_server.dsn, everything)) == before


def hold_database(dsn: str, made: Any, end: Any) -> None:
    with start_server(dsn) as server:
        made.put(server.database(init=TABLE, owner="held").dbname)
        end.wait()


def test_a_killed_runs_templates_and_roles_are_dropped(local_server: Server, statements: Statements) -> None:
    """Promise: after kill -9, the next run drops all that the killed one made."""
    everything = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
    before = sorted(statements.fetch_column(local_server.dsn, everything))
    processes = multiprocessing.get_context("spawn")
    made, end = processes.Queue(), processes.Event()
    holder = processes.Process(target=hold_database, args=(local_server.dsn, made, end))
    holder.start()
    made.get(timeout=60)
    with start_server(local_server.dsn):
        assert len(statements.fetch_column(local_server.dsn, everything)) == len(before) + 3
    holder.kill()
    holder.join()

    def is_clean() -> bool:
        # The server takes a moment to notice that the killed process's connection is gone.
        with start_server(local_server.dsn):
            pass
        return sorted(statements.fetch_column(local_server.dsn, everything)) == before

    assert becomes_true(is_clean, seconds=60)


def build_in_process(running: Any, secret: str, directory: str, start: Any, made: Any) -> None:
    """Another process of the same run makes the same database."""
    server = Server(running, run=secret)
    start.wait()
    database = server.database(init=functools.partial(note_call, Path(directory)), owner=True)
    made.put((ask(database, "SELECT count(*) FROM items"), database.user))
    start.wait()
    server.close()


def note_call(directory: Path, dsn: str) -> None:
    with closing(Statements()) as statements:
        statements.execute(dsn, TABLE)
    with (directory / "calls").open("a") as file:
        file.write("called\n")


def test_the_processes_of_a_run_make_a_template_once(local_server: Server, tmp_path: Path) -> None:
    """Promise: of several processes that need a template at once, one makes it and the others wait for it."""
    processes = multiprocessing.get_context("spawn")
    start, made = processes.Barrier(3), processes.Queue()
    arguments = (local_server._started, "the run's secret", str(tmp_path), start, made)
    workers = [processes.Process(target=build_in_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = {made.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(results) == 1
    assert (tmp_path / "calls").read_text() == "called\n"


def fail(_dsn: str) -> None:
    raise LookupError("out of luck")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"init": [TABLE, "SELECT 1;\nSELECT wrong"]},
            r"step 2 of 2, the SQL 'SELECT 1;', failed in line 2: .*\"wrong\"",
        ),
        (
            {"init": [TABLE, "broken.sql"]},
            r"step 2 of 2, the file .*/broken.sql, failed in line 2: .*pg_dump --inserts",
        ),
        ({"init": "white space.sql"}, r"syntax error at or near .*pass it as a pathlib.Path"),
        ({"init": f"BEGIN; {TABLE}"}, "it ends within a transaction, which is rolled back: add COMMIT"),
        ({"init": "missing.sql"}, r"the file .*/missing.sql cannot be read: No such file"),
        ({"init": fail}, "step 1 of 1, the function fail, failed: LookupError: out of luck"),
        ({"init": functools.partial(fail)}, "the function fail, failed"),
        ({"extensions": ["no_such_extension"]}, "the extension 'no_such_extension' failed: .*is not available"),
        ({"locale": "no_such_locale"}, r"the server cannot create the database: .*no_such_locale"),
        ({"template": "no_such_database"}, r"the server cannot create the database: .*no_such_database"),
    ],
    ids=[
        *("SQL", "a file", "white space", "no commit", "no file"),
        *("a function", "a partial", "an extension", "a locale", "a template"),
    ],
)
def test_an_error_names_the_step(local_server: Server, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    """Promise: a step that fails is named, with its line and the server's message, every time; no database is left."""
    (tmp_path / "broken.sql").write_text("CREATE TABLE x (y int);\n\\restrict abc\nCOPY x FROM stdin;\n1\n\\.\n")
    count = "SELECT count(*) FROM pg_database"
    before = ask(PostgresDatabase(local_server.dsn), count)
    for _ in range(2):
        with pytest.raises(DatabaseInitError, match=f"(?s){said}"):
            local_server.database(**arguments, directory=tmp_path)
    assert ask(PostgresDatabase(local_server.dsn), count) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"init": [1]}, "init: 1 is neither SQL, nor a path, nor a function"),
        ({"init": 5}, "init=5 is a int; pass a list"),
        ({"extensions": "hstore"}, r"extensions=\['hstore'\]"),
        ({"extensions": 5}, "extensions=5 is a int; pass a list"),
        ({"extensions": [None]}, "extensions: None is not the name of an extension"),
        ({"owner": 5}, "owner=5 is a int; pass a text"),
        ({"locale": 5}, "locale=5 is a int; pass a text"),
        ({"template": 5}, "template=5 is a int; pass a text"),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type_are_refused(local_server: Server, arguments: dict[str, Any], said: str) -> None:
    """Promise: a mistake in the arguments is named before anything is created."""
    with pytest.raises(TypeError, match=said):
        local_server.database(**arguments)


def test_a_template_of_the_server_and_a_locale_are_used(local_server: Server) -> None:
    """Promise: a database can start from an existing one, and have a locale."""
    golden = local_server.database(init=TABLE)
    copy = local_server.database(template=golden.dbname, init="INSERT INTO items VALUES ('more')")
    assert ask(copy, NAMES) == "more seed"
    located = local_server.database(locale="C.UTF-8", init=TABLE)
    assert ask(located, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == "C.UTF-8"


def test_asyncpg_takes_the_options_of_a_dsn(local_server: Server) -> None:
    """Promise: asyncpg applies the parameters of the DSN of a given server, settings of the session as well."""
    database = PostgresDatabase(f"{local_server.dsn}?sslmode=disable&application_name=a%20b")

    async def show_name() -> object:
        async with asyncpg.create_pool(**database.asyncpg(), min_size=1) as pool:
            return await pool.fetchval("SHOW application_name")

    assert asyncio.run(show_name()) == "a b"


@pytest.mark.parametrize(
    ("dsn", "parts"),
    [
        ("postgresql://u:p%40@h:5433/d", ("h", 5433, "u", "p@", "d")),
        ("postgresql://u:p@[::1]:5433/d", ("::1", 5433, "u", "p", "d")),
        ("postgresql://u:p@/d%20b?host=/run/pg&port=5433", ("/run/pg", 5433, "u", "p", "d b")),
        ("postgres://u@a:1,b:2/d?sslmode=require", ("a", 1, "u", "", "d")),
        ("postgresql://", ("here", 77, "me", "", "me")),
    ],
)
def test_the_parts_of_a_dsn(dsn: str, parts: tuple[str, int, str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: each part is the one that a driver would use."""
    for name, value in {"PGHOST": "here", "PGPORT": "77", "PGUSER": "me"}.items():
        monkeypatch.setenv(name, value)
    database = PostgresDatabase(dsn)
    assert (database.host, database.port, database.user, database.password, database.dbname) == parts
    assert "p@" not in repr(database)
    # asyncpg takes no subclass of str.
    assert type(database.password) is str
    host, port, user, password, name = parts
    kwargs = {"host": host, "port": port, "user": user, "password": password}
    assert database.psycopg().items() >= {**kwargs, "dbname": name}.items()
    assert database.asyncpg().items() >= {**kwargs, "database": name}.items()
    django = {"HOST": host, "PORT": str(port), "USER": user, "PASSWORD": password, "NAME": name}
    assert database.django().items() >= django.items()


def test_the_forms_of_a_dsn() -> None:
    """Promise: options of the DSN arrive in each library under the name that it knows."""
    database = PostgresDatabase("postgresql://u:p@h/d?sslmode=require&application_name=a%20b")
    assert database.sqlalchemy_url() == "postgresql+psycopg://u:p@h/d?sslmode=require&application_name=a%20b"
    assert database.sqlalchemy_url("asyncpg") == "postgresql+asyncpg://u:p@h/d?ssl=require&application_name=a+b"
    assert database.psycopg()["sslmode"] == "require"
    assert database.django()["OPTIONS"] == {"sslmode": "require", "application_name": "a b"}
    assert str(database) == database.dsn
