"""Other forms of a checked DSN: the variables that libpq's programs read, another database, a store's identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from flux_memory.dsn import Dsn, SecretText
from flux_memory.errors import BackupError

_VARIABLES: Final = {
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "passfile": "PGPASSFILE",
    "application_name": "PGAPPNAME",
}
"""The variable of libpq for each parameter of a DSN that is not a setting of the server."""
_SOCKET_DIRECTORIES: Final = ("/run/postgresql", "/var/run/postgresql", "/var/pgsql_socket", "/private/tmp", "/tmp")  # noqa: S108 - where servers listen
"""Where the driver looks for a socket if the DSN has no host."""
_CONNECT_SECONDS: Final = 30


def libpq_environment(dsn: Dsn) -> dict[str, str]:
    """Return the environment for `pg_dump` and `pg_restore`: a password is neither an argument nor in a file.

    Raises:
        BackupError: The DSN has a parameter that these programs read from their command line only.
    """
    parameters = _parameters(dsn)
    if "sslpassword" in parameters:
        raise BackupError(
            "the DSN has the parameter 'sslpassword', which pg_dump reads from its command line only, where other "
            "users see it; use a key without a password that only its owner can read, or --archive"
        )
    hosts = [host or _socket_or_localhost(port) for host, port in dsn.addresses]
    environment: dict[str, str] = {
        **{name: SecretText(value) for name, value in os.environ.items()},
        "PGHOST": ",".join(hosts),
        "PGPORT": ",".join(str(port) for _, port in dsn.addresses),
        "PGUSER": str(dsn.arguments["user"]),
        "PGDATABASE": str(dsn.arguments["database"]),
        "PGCONNECT_TIMEOUT": str(_CONNECT_SECONDS),
        "PGCLIENTENCODING": "UTF8",
    }
    if "password" in dsn.arguments:
        environment["PGPASSWORD"] = dsn.arguments["password"]
    settings = [parameters.pop("options", os.environ.get("PGOPTIONS", ""))]
    for name, value in parameters.items():
        if name in _VARIABLES:
            environment[_VARIABLES[name]] = value
        else:
            settings.append(f"-c {name}={_escape_option(value)}")
    if options := " ".join(filter(None, settings)):
        environment["PGOPTIONS"] = options
    # Also what this process inherited, such as POSTGRES_DSN.
    return {name: SecretText(value) for name, value in environment.items()}


def render_dsn(dsn: Dsn, *, database: str, search_path: str | None = None) -> SecretText:
    """Return the text of a DSN with another database and, on request, another search_path."""
    parameters: dict[str, str] = {
        **_parameters(dsn),
        **{name: str(dsn.arguments[name]) for name in ("user", "password") if name in dsn.arguments},
        "dbname": database,
    }
    if any(host for host, _ in dsn.addresses):
        parameters["host"] = ",".join(host for host, _ in dsn.addresses)
    parameters["port"] = ",".join(str(port) for _, port in dsn.addresses)
    if search_path is not None:
        parameters["search_path"] = search_path
    return SecretText(f"postgresql:///?{urlencode(parameters, quote_via=quote)}")


def identify(dsn: Dsn, schema: str) -> str:
    """Return the identity of a memory on a server, without user and password."""
    hosts = ",".join(f"{host}:{port}" for host, port in dsn.addresses)
    return f"postgresql://{hosts}/{dsn.arguments['database']}#{schema}"


def _parameters(dsn: Dsn) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(str(dsn.arguments.get("dsn", ""))).query, keep_blank_values=True))


def _socket_or_localhost(port: int) -> str:
    for directory in _SOCKET_DIRECTORIES:
        if (Path(directory) / f".s.PGSQL.{port}").exists():
            return directory
    return "localhost"


def _escape_option(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
