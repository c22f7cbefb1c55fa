"""asyncpg's errors turned into ours: one table."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from flux_memory.errors import BackendUnavailableError, FluxMemoryError, InvalidInputError, SchemaError

ROLLED_BACK_FOR_ANOTHER: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
)
"""The server undid the statement because another one came first; run again, it sees what that one did."""

_Causes = type[BaseException] | tuple[type[BaseException], ...]
_ADVICE: Final[tuple[tuple[_Causes, type[FluxMemoryError], str], ...]] = (
    (asyncpg.InvalidPasswordError, BackendUnavailableError, "check the user and the password in the DSN"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        BackendUnavailableError,
        "check the user in the DSN, sslmode=require where the server demands TLS, and the server's pg_hba.conf",
    ),
    (
        asyncpg.InvalidCatalogNameError,
        BackendUnavailableError,
        "create the database, or mend its name in the DSN",
    ),
    (asyncpg.TooManyConnectionsError, BackendUnavailableError, "lower max_size=, or raise max_connections"),
    (asyncpg.CannotConnectNowError, BackendUnavailableError, "the server is starting or stopping; retry"),
    (
        asyncpg.DiskFullError,
        BackendUnavailableError,
        "the server's disk is full; nothing was stored. Make room",
    ),
    (asyncpg.InsufficientResourcesError, BackendUnavailableError, "the server lacks resources; retry later"),
    (asyncpg.OperatorInterventionError, BackendUnavailableError, "the server ended the call; retry"),
    (asyncpg.LockNotAvailableError, BackendUnavailableError, "a lock was not to be had; retry"),
    (asyncpg.TransactionRollbackError, BackendUnavailableError, "the server rolled the call back; retry"),
    (
        asyncpg.ReadOnlySQLTransactionError,
        BackendUnavailableError,
        "the server is read-only; connect to the primary",
    ),
    (asyncpg.InsufficientPrivilegeError, SchemaError, "grant the role what it lacks"),
    (asyncpg.UndefinedTableError, SchemaError, "the tables are gone; open a new memory to make them"),
    (asyncpg.UndefinedColumnError, SchemaError, "the tables were changed by hand; put them back"),
    (
        asyncpg.UndefinedObjectError,
        InvalidInputError,
        "the server does not know a parameter of the DSN; remove it",
    ),
    (
        asyncpg.CantChangeRuntimeParamError,
        InvalidInputError,
        "a parameter of the DSN cannot be set; remove it",
    ),
    (
        asyncpg.InvalidParameterValueError,
        InvalidInputError,
        "a parameter of the DSN has a wrong value; mend it",
    ),
    (
        (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError),
        BackendUnavailableError,
        "a pooler in transaction mode stands between: add ?statement_cache_size=0 to the DSN",
    ),
    (asyncpg.InvalidSchemaNameError, SchemaError, "the role's search_path names no schema that exists; create one"),
    (
        asyncpg.ProtocolViolationError,
        BackendUnavailableError,
        "the server or a pooler refused the connection's parameters; remove them from the DSN",
    ),
    (asyncpg.exceptions.ClientConfigurationError, InvalidInputError, "mend the DSN"),
    (asyncpg.PostgresConnectionError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InterfaceError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InternalClientError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.PostgresError, FluxMemoryError, "see the cause"),
    (
        ConnectionRefusedError,
        BackendUnavailableError,
        "nothing listens there; start the server, check host and port",
    ),
    (socket.gaierror, BackendUnavailableError, "the host is not found; check its name in the DSN"),
    (
        FileNotFoundError,
        BackendUnavailableError,
        "there is no such socket or file; check the paths in the DSN",
    ),
    (ssl.SSLError, BackendUnavailableError, "TLS failed; check sslmode and sslrootcert in the DSN"),
    (ConnectionError, BackendUnavailableError, "check the network, and host, port and sslmode in the DSN"),
    (OSError, BackendUnavailableError, "check the network, and the host and port in the DSN"),
)
"""The driver's errors, the special before the general: our error for each, and what to do."""


@contextmanager
def translated(shown: str, timeout: float) -> Iterator[None]:
    """Turn the driver's errors, and the network's, into ours.

    Args:
        shown: The masked DSN.
        timeout: The deadline in seconds, for the message of a call that did not end by it.
    """
    try:
        yield
    except FluxMemoryError:
        raise
    except TimeoutError as error:
        raise BackendUnavailableError(
            f"PostgreSQL at {shown} did not answer within {timeout} s; whether the call took effect is not known. "
            "Look for locks in pg_stat_activity, or raise timeout= or max_size="
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        kind, advice = next((kind, advice) for cause, kind, advice in _ADVICE if isinstance(error, cause))
        raise kind(f"PostgreSQL at {shown}: {error}; {advice}") from error
