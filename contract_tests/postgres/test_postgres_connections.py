"""Tests how a handle connects to PostgreSQL: addresses, TLS, parameters, and passwords that stay secret."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from raw_postgres import (
    connect,
    create_role,
    reserve_port,
    with_address,
    with_parameter,
    with_user,
)
from waiting import wait_until

from flux_memory import PostgresConversationMemory
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    InvalidInputError,
    SchemaError,
)
from flux_memory.testkit.servers import Server


async def first_error(dsn: str, **arguments: Any) -> FluxMemoryError:
    """Return the error of the first call on this DSN."""
    async with PostgresConversationMemory(dsn, **{"timeout": 5, **arguments}) as memory:
        with pytest.raises(FluxMemoryError) as caught:
            await memory.count_sessions()
    return caught.value


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "no-such-host.invalid"}, "the host is not found; check its name"),
        (
            {"database": "no_such_database"},
            'database "no_such_database" does not exist; create the database, or correct',
        ),
    ],
)
async def test_a_wrong_address_says_what_is_wrong(flux_postgres_dsn: str, change: dict[str, str], says: str) -> None:
    """The message says what to fix; the driver's error is the cause."""
    error = await first_error(with_address(flux_postgres_dsn, **change))  # type: ignore[arg-type]
    assert isinstance(error, BackendUnavailableError)
    assert says in str(error)
    assert error.__cause__ is not None


@pytest.mark.asyncio
async def test_a_port_on_which_nothing_listens(flux_postgres_dsn: str) -> None:
    """A `BackendUnavailableError`, which was certainly not applied, raised at once."""
    with reserve_port() as port:
        error = await first_error(with_address(flux_postgres_dsn, port=port))
    assert isinstance(error, BackendUnavailableError)
    assert "nothing listens there; start the server, check host and port" in str(error)


@pytest.mark.asyncio
async def test_a_missing_socket_is_named() -> None:
    """A wrong socket path is reported as a path, not as a network failure."""
    error = await first_error("postgresql://u:secret@/db?host=/no/such/directory")
    assert isinstance(error, BackendUnavailableError)
    assert "no such socket or file" in str(error)


@pytest.mark.asyncio
async def test_a_server_without_tls_where_tls_is_demanded(flux_postgres_dsn: str) -> None:
    """The DSN's demand for TLS is never dropped silently."""
    error = await first_error(with_parameter(flux_postgres_dsn, "sslmode=require"))
    assert isinstance(error, BackendUnavailableError)
    assert "rejected SSL upgrade" in str(error)
    assert "sslmode in the DSN" in str(error)


@pytest.mark.asyncio
async def test_a_server_that_demands_tls(flux_postgres_server: Server, flux_empty_database: str) -> None:
    """A server that admits a role over TLS only: the message says what to add to the DSN."""
    async with create_role(flux_empty_database) as dsn, connect(flux_postgres_server.dsn) as admin:
        original = await admin.fetchval("SELECT pg_read_file(current_setting('hba_file'))")
        line = f"hostnossl all {urlsplit(dsn).username} all reject\n"
        await write_hba(admin, line + original)
        errors: list[FluxMemoryError] = []

        async def refused() -> bool:
            errors.append(await first_error(dsn))
            return not isinstance(errors[-1], SchemaError)

        try:
            # Until the server has reread the file, the role gets in and lacks the right to create tables.
            await wait_until(refused)
        finally:
            await write_hba(admin, original)
    assert isinstance(errors[-1], BackendUnavailableError)
    assert "no encryption" in str(errors[-1])
    assert "sslmode=require where the server demands TLS" in str(errors[-1])


async def write_hba(admin: Any, text: str) -> None:
    """Replace the server's pg_hba.conf and let the server reload it."""
    path = await admin.fetchval("SELECT current_setting('hba_file')")
    lines = ", ".join("(" + "'" + line.replace("'", "''") + "')" for line in text.splitlines())
    await admin.execute(f"COPY (SELECT * FROM (VALUES {lines}) AS file (line)) TO '{path}' WITH (DELIMITER E'\\x01')")
    await admin.execute("SELECT pg_reload_conf()")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "password", ["s3cr/et", "s3cr@et", "s3cr?et", "s3cr#et", "s3cr:et", "s3cr%et", "s3cr&=et", "s3cr é漢", "s3cr'\"et"]
)
async def test_no_password_shows_with_any_characters(flux_empty_database: str, password: str) -> None:
    """Escaped, such a password works; it shows in no repr, error or traceback, causes included."""
    async with create_role(flux_empty_database, password=password) as dsn:
        with reserve_port() as port:
            refused = with_address(dsn, port=port)
        assert quote(password, safe="") in dsn
        async with connect(dsn) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        wrong = with_user(dsn, str(urlsplit(dsn).username), password + "x")
        # Together: some of them are retried until the deadline.
        errors = await asyncio.gather(
            first_error(dsn),
            first_error(wrong),
            first_error(refused),
            first_error(with_address(dsn, database="no_such_database")),
            first_error(with_address(dsn, host="no-such-host.invalid")),
        )
    assert [type(error) for error in errors] == [SchemaError, *[BackendUnavailableError] * 4]
    assert "check the user and the password in the DSN" in str(errors[1])
    shown = [repr(PostgresConversationMemory(dsn))]
    for error in errors:
        shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
    for text in shown:
        assert "s3cr" not in text
        assert password not in text
    assert ":***@" in shown[0]


@pytest.mark.parametrize("password", ["s3cr/et", "s3cr@et/1", "1#s3cr", "1?s3cr", "s3cr:et@/", "1?s3cr&x=y"])
def test_no_unescaped_password_shows_in_the_refusal(password: str) -> None:
    """A DSN with an unescaped password is refused before any connection, and no part of it is shown."""
    with pytest.raises(InvalidInputError) as caught:
        PostgresConversationMemory(f"postgresql://user:{password}@host/db")
    assert "s3cr" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "arguments",
    [{"min_size": 5, "max_size": 2}, {"min_size": -1}, {"max_size": 0, "min_size": 0}, {"min_size": "2"}]
    + [{"timeout": timeout} for timeout in (0, -1, float("nan"), "5", None, True)],
)
def test_sizes_and_deadlines_that_make_no_sense_are_refused_at_once(arguments: dict[str, Any]) -> None:
    """The error is raised where the mistake is, not at the first call."""
    with pytest.raises(InvalidInputError, match=r"min_size|max_size|timeout"):
        PostgresConversationMemory("postgresql://h/d", **arguments)


def test_a_pool_without_connections_is_refused_by_the_rule_that_it_breaks() -> None:
    """`0 <= min_size <= max_size` holds for a pool of size 0: the message has the other half of the rule."""
    with pytest.raises(InvalidInputError, match=r"and 1 <= max_size$"):
        PostgresConversationMemory("postgresql://h/d", min_size=0, max_size=0)


@pytest.mark.asyncio
async def test_a_parameter_that_the_server_does_not_know(flux_postgres_dsn: str) -> None:
    """An unknown parameter of the DSN goes to the server, which refuses it: the message says so."""
    error = await first_error(with_parameter(flux_postgres_dsn, "no_such_parameter=1"))
    assert isinstance(error, BackendUnavailableError)
    assert "no_such_parameter" in str(error)
    assert "the server does not know a parameter of the DSN; remove it" in str(error)
    error = await first_error(with_parameter(flux_postgres_dsn, "datestyle=nonsense"))
    assert isinstance(error, BackendUnavailableError)
    assert "has an invalid value; correct it" in str(error)
