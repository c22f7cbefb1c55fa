"""Refusals of servers, poolers and providers before a session exists are about reaching the database."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from refusing_server import Refusing, error, message, refusing

from flux_memory import BackendUnavailableError, OutcomeUnknownError, PostgresConversationMemory
from flux_memory.backends.postgres.connecting import classify, message_of
from flux_memory.dsn import parse_dsn
from flux_memory.transfer import migrate_back


class World(NamedTuple):
    """An answer in place of a session."""

    code: str
    text: str
    advice: str
    passes: bool = False
    """Whether it may pass without a fix, so that the call retries."""
    severity: str = "FATAL"


CREDENTIALS: Final = "check the user and the password in the DSN"
DATABASE: Final = "create the database, or correct its name in the DSN"
RULES: Final = "pg_hba.conf or list of allowed addresses"
TENANT: Final = "the pooler knows no such database, user or endpoint"
STOPPED: Final = "the provider has stopped this database"
PARAMETERS: Final = "refused the connection's parameters; remove them from the DSN"
PREPARED: Final = "add ?statement_cache_size=0 to the DSN"
FULL: Final = "all connections of the server or the pooler are in use; lower max_size="
NOT_READY: Final = "the server, or a pooler before it, is not ready; retry"

WORLDS: Final = {
    # PostgreSQL itself.
    "password": World("28P01", 'password authentication failed for user "user"', CREDENTIALS),
    "role": World("28000", 'role "user" does not exist', RULES),
    "rules": World("28000", 'no pg_hba.conf entry for host "::1", user "user", database "chat", no encryption', RULES),
    "database": World("3D000", 'database "chat" does not exist', DATABASE),
    "right to connect": World("42501", 'permission denied for database "chat"', "grant the role CONNECT"),
    "unknown setting": World("42704", 'unrecognized configuration parameter "x"', "does not know a parameter"),
    "wrong setting": World("22023", 'invalid value for parameter "TimeZone": "x"', "has an invalid value; correct it"),
    "fixed setting": World("55P02", 'parameter "port" cannot be changed now', "cannot be set; remove it"),
    "starting": World("57P03", "the database system is starting up", "is starting or stopping; retry", passes=True),
    "full": World("53300", "sorry, too many clients already", FULL, passes=True),
    "out of memory": World("53200", "out of memory", "the server lacks resources; retry later", passes=True),
    "translated": World("28P01", "Passwort-Authentifizierung fehlgeschlagen", CREDENTIALS),
    # PgBouncer.
    "PgBouncer: password": World("08P01", "password authentication failed", CREDENTIALS),
    "PgBouncer: SASL": World("08P01", "SASL authentication failed", CREDENTIALS),
    "PgBouncer: user": World("08P01", "no such user: user", CREDENTIALS),
    "PgBouncer: role of the server": World("08P01", 'role "user" does not exist', CREDENTIALS),
    "PgBouncer: database": World("08P01", "no such database: chat", DATABASE),
    "PgBouncer: database of the server": World("08P01", 'database "chat" does not exist', DATABASE),
    "PgBouncer: switched off": World("08P01", 'database "chat" is disabled', DATABASE),
    "PgBouncer: cached": World(
        "08P01",
        "server login has been failing, cached error: password authentication failed (server_login_retry)",
        CREDENTIALS,
    ),
    "PgBouncer: server away": World(
        "08P01", "server login has been failing, try again later (server_login_retry)", NOT_READY, passes=True
    ),
    "PgBouncer: setting": World("08P01", "unsupported startup parameter: search_path", PARAMETERS),
    "PgBouncer: options": World("08P01", "unsupported startup parameter in options: x", PARAMETERS),
    "PgBouncer: TLS": World("08P01", "SSL required", RULES),
    "PgBouncer: clients": World("08P01", "no more connections allowed (max_client_conn)", FULL, passes=True),
    "PgBouncer: waited": World("08P01", "query_wait_timeout", FULL, passes=True),
    "PgBouncer: server down": World("08P01", "client_login_timeout (server down)", NOT_READY, passes=True),
    "a time limit": World("25P04", "terminating connection due to transaction timeout", "a time limit", passes=True),
    "PgBouncer: ends": World("57P01", "the database system is shutting down", "the server ended the call", passes=True),
    # Supavisor.
    "Supavisor: tenant": World("XX000", "Tenant or user not found", TENANT),
    "Supavisor: address": World("XX000", "Address not in tenant allow_list: {10, 0, 0, 1}", RULES),
    "Supavisor: TLS": World("XX000", "SSL connection is required", RULES),
    "Supavisor: clients": World("XX000", "Max client connections reached", FULL, passes=True),
    "Supavisor: pools": World("XX000", "Max pools count reached", FULL, passes=True),
    "Supavisor: session mode": World(
        "XX000",
        "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
        FULL,
        passes=True,
    ),
    "Supavisor: checkout": World(
        "XX000", "Unable to check out process from the pool due to timeout", FULL, passes=True
    ),
    "Supavisor: handler": World("XX000", "DbHandler exited", NOT_READY, passes=True),
    "Supavisor: slow login": World("08006", "connection failure during authentication", NOT_READY, passes=True),
    "Supavisor: statements": World(
        "XX000", "max prepared statements limit reached. Limit: 100 per connection", PREPARED
    ),
    "Supavisor: breaker": World(
        "XX000", "Circuit breaker open: Unable to establish connection to upstream database", NOT_READY, passes=True
    ),
    # Neon.
    "Neon: compute": World("XX000", "Couldn't connect to compute node", NOT_READY, passes=True),
    "Neon: control plane": World("XX000", "Control plane request failed", NOT_READY, passes=True),
    "Neon: permit": World("53300", "Failed to acquire permit to connect to the database.", FULL, passes=True),
    "Neon: disabled": World("XX000", "The endpoint has been disabled. Enable it using Neon API and retry.", STOPPED),
    "Neon: quota": World("XX000", "Your account or project has exceeded the compute time quota.", STOPPED),
    "Neon: endpoint": World("08P01", "Endpoint ID is not specified. Either please upgrade the client library", TENANT),
    "Neon: waking": World("XX000", "timed out while waiting for endpoint to become active", NOT_READY, passes=True),
    # pgcat, Odyssey, Pgpool-II, RDS Proxy, and one that is not known.
    "pgcat: pool": World("58000", 'No pool configured for database: "chat", user: "user"', TENANT),
    "pgcat: busy": World("58000", "could not get connection from the pool", FULL, passes=True),
    "pgcat: down": World("58000", "could not get connection from the pool - AllServersDown", NOT_READY, passes=True),
    "pgcat: password": World("28P01", 'password authentication failed for user "user"', CREDENTIALS),
    "Odyssey: route": World("08P01", "odyssey: c1: route for 'chat.user' is not found", TENANT),
    "Pgpool: nodes": World(
        "57000", "all backend nodes are down, pgpool requires at least one valid node", "ended the call", passes=True
    ),
    "RDS Proxy: busy": World("08006", "Timed-out waiting to acquire database connection", FULL, passes=True),
    "no FATAL, but before a session": World("XX000", "Tenant or user not found", TENANT, severity="ERROR"),
    "no FATAL, and it passes": World("58000", "the pool is empty", NOT_READY, passes=True, severity="ERROR"),
    "unknown words": World("XX000", "the flux capacitor is cold", NOT_READY, passes=True),
    "unknown code": World("ZZ999", "no", NOT_READY, passes=True),
}


async def refusal(server: Refusing) -> str:
    """Return the message of a memory that gives up, or that is refused for the second time."""
    memory = PostgresConversationMemory(server.dsn, timeout=60)
    call = asyncio.create_task(memory.create_session())
    again = asyncio.create_task(server.again.wait())
    await asyncio.wait([call, again], return_when=asyncio.FIRST_COMPLETED)
    for task in (again, call):
        task.cancel()
    with suppress(asyncio.CancelledError):
        with pytest.raises(BackendUnavailableError) as caught:
            await call
        await memory.close()
        assert not isinstance(caught.value, OutcomeUnknownError)
        return str(caught.value)
    trouble = memory._pool.trouble
    # Or closing would wait for the opening.
    memory._life._grace = 0
    await memory.close()
    assert trouble is not None
    return f"{message_of(trouble)}; {classify(trouble).advice}"


@pytest.mark.asyncio
@pytest.mark.parametrize("name", WORLDS)
async def test_a_refusal_is_about_reaching_the_database(name: str) -> None:
    """A refusal that needs a fix is raised at once, any other is retried; the message has the server's words."""
    world = WORLDS[name]
    async with refusing(error(world.code, world.text, world.severity)) as server:
        said = await refusal(server)
    assert world.text in said
    assert world.advice in said
    assert (server.refused > 1) == world.passes


@pytest.mark.asyncio
@pytest.mark.parametrize("after_login", [False, True], ids=["instead of a session", "instead of the first answer"])
@pytest.mark.parametrize("name", ["PgBouncer: server away", "Supavisor: session mode"])
async def test_the_deadline_names_the_refusal(name: str, after_login: bool) -> None:
    """A pooler may accept the client before it has a server, and end the session at its first statement."""
    world = WORLDS[name]
    async with refusing(error(world.code, world.text), after_login=after_login) as server:
        memory = PostgresConversationMemory(server.dsn, timeout=1.5)
        with pytest.raises(BackendUnavailableError, match="again and again for") as caught:
            await memory.count_sessions()
        await memory.close()
    assert world.text in str(caught.value)
    assert world.advice in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["PgBouncer: password", "Supavisor: tenant", "pgcat: pool", "Neon: compute"])
async def test_a_migration_gets_the_same_advice(name: str, tmp_path: Path) -> None:
    """A migration connects by the same function."""
    world = WORLDS[name]
    async with refusing(error(world.code, world.text)) as server:
        with pytest.raises(BackendUnavailableError) as caught:
            await migrate_back(server.dsn, tmp_path / "chat.db")
    assert world.text in str(caught.value)
    assert world.advice in str(caught.value)


STRANGERS: Final = {
    "nothing": b"",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "MySQL": b"J\0\0\0\n8.0.33\0",
    "noise": bytes(range(256)),
    "an error without fields": message("E", b"\0"),
    "an error that is not text": message("E", b"SFATAL\0CXX000\0M\xff\xfe\0\0"),
    "a length below zero": b"R\xff\xff\xff\xfb",
    "a length without end": b"R\x7f\xff\xff\xff",
    "an unknown method": message("R", b"\0\0\0\x63"),
    "Kerberos": message("R", b"\0\0\0\x07"),
    "an unknown SASL": message("R", b"\0\0\0\x0aFOO\0\0"),
    "a broken SCRAM": message("R", b"\0\0\0\x0aSCRAM-SHA-256\0\0") + message("R", b"\0\0\0\x0bgarbage"),
    "a newer protocol": message("v", b"\0\0\0\0\0\0\0\0"),
}
"""Answers of programs that are not PostgreSQL."""


@pytest.mark.asyncio
@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_at_the_port_raises_no_error_of_the_driver(name: str) -> None:
    """The message names the host and the port, or the method that the driver lacks."""
    async with refusing(STRANGERS[name]) as server:
        said = await refusal(server)
    assert "host and port" in said or "pg_hba.conf" in said


@pytest.mark.asyncio
async def test_calls_go_on_when_a_full_pooler_has_room(flux_memory_postgres_dsn: str) -> None:
    """A refusal that passes is retried within the deadline, and the caller does not notice it."""
    busy = WORLDS["Supavisor: clients"]
    async with refusing(error(busy.code, busy.text)) as server:
        memory = PostgresConversationMemory(server.dsn, timeout=60)
        call = asyncio.create_task(memory.count_sessions())
        await server.again.wait()
        # The pooler has room: the address is that of a server now.
        memory._pool._target = parse_dsn(flux_memory_postgres_dsn)  # type: ignore[union-attr]
        assert await call == 0
        await memory.close()
