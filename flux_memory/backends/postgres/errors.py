"""asyncpg's errors: which of them pass, and what each becomes: one table."""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    InvalidInputError,
    OutcomeUnknownError,
    SchemaError,
)

ROLLED_BACK_FOR_ANOTHER: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
"""The server undid the statement because of another one; run again, it sees what that one did."""

_LASTING: Final = (
    asyncpg.exceptions.ClientConfigurationError,
    ssl.SSLCertVerificationError,
    PermissionError,
)
_PASSING: Final = (
    OSError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.TargetServerAttributeNotMatched,
)


def passes(error: Exception) -> bool:
    """Tell whether an attempt to connect that failed so may succeed later, with nothing mended."""
    # A pooler says everything by this one class: also that its server is not there, or that it has no room.
    refused_for_good = isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)
    return isinstance(error, _PASSING) and not isinstance(error, _LASTING) and not refused_for_good


class Troubled(Protocol):
    """A pool that may be unable to connect."""

    trouble: Exception | None
    """Why the last attempt to connect failed; `None` if it did not."""


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
    (
        asyncpg.InvalidSchemaNameError,
        SchemaError,
        "the role's search_path names no schema that it may use; create one, or grant the role USAGE on it",
    ),
    (
        asyncpg.ProtocolViolationError,
        BackendUnavailableError,
        "the server or a pooler refused the connection's parameters; remove them from the DSN",
    ),
    (asyncpg.exceptions.ClientConfigurationError, InvalidInputError, "mend the DSN"),
    (asyncpg.PostgresConnectionError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InterfaceError, BackendUnavailableError, "the connection was lost; retry"),
    (
        asyncpg.TargetServerAttributeNotMatched,
        BackendUnavailableError,
        "no host of the DSN is what target_session_attrs asks for; promote one, or mend that",
    ),
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
    (
        ssl.SSLCertVerificationError,
        BackendUnavailableError,
        "the server's certificate is not trusted; check sslrootcert in the DSN, and that its host is a name in it",
    ),
    (ssl.SSLError, BackendUnavailableError, "TLS failed; check sslmode and sslrootcert in the DSN"),
    (ConnectionError, BackendUnavailableError, "check the network, and host, port and sslmode in the DSN"),
    (OSError, BackendUnavailableError, "check the network, and the host and port in the DSN"),
)
"""The driver's errors, the special before the general: our error for each, and what to do."""


@contextmanager
def translated(
    shown: str, timeout: float, state: CallState | None = None, pool: Troubled | None = None
) -> Iterator[None]:
    """Turn the driver's errors, and the network's, into ours.

    Args:
        shown: The masked DSN.
        timeout: The deadline in seconds, for the message of a call that did not end by it.
        state: How far the call has got; by default it is taken for a read.
        pool: Where its connections are from.
    """
    try:
        yield
    except FluxMemoryError:
        raise
    except TimeoutError as error:
        _clear_frames(error, asyncpg.__name__)
        trouble = pool.trouble if pool is not None else None
        raise _too_late(shown, timeout, state or CallState(writes=False), trouble) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        _clear_frames(error, asyncpg.__name__)
        if state is not None and state.writes and state.unknown:
            raise _unknown(shown, f"the connection was lost, and then: {_said(error)}") from error
        kind, advice = _advice(error)
        raise kind(f"PostgreSQL at {shown}: {_said(error)}; {advice}") from error


def _said(error: Exception) -> str:
    # The message alone: a DETAIL may quote what is stored, and asyncpg's own HINTs are for who calls it directly. The
    # cause has both.
    return str(error.args[0] if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError) else error)


def _advice(error: Exception) -> tuple[type[FluxMemoryError], str]:
    # asyncpg has one class for what is wrong with a pool, with a connection and with a call.
    if isinstance(error, asyncpg.InterfaceError) and str(error).startswith("pool is "):
        return BackendUnavailableError, "hand in an open one, of 'await asyncpg.create_pool()', and close it last"
    found = ((kind, advice) for cause, kind, advice in _ADVICE if isinstance(error, cause))
    return next(found, (BackendUnavailableError, "see the cause"))


def _too_late(shown: str, timeout: float, state: CallState, trouble: Exception | None) -> BackendUnavailableError:
    if state.writes and state.unknown:
        return _unknown(shown, f"did not answer within {timeout:g} s")
    if trouble is None and not state.blocked:
        trouble = state.trouble
    if state.sent:
        what = f"did not answer within {timeout:g} s; look for locks in pg_stat_activity, or raise timeout="
    elif trouble is not None:
        what = f"{_said(trouble)}, again and again for {timeout:g} s; {_advice(trouble)[1]}"
    elif state.blocked:
        what = (
            f"a lock, or an earlier write to the session, was in the way for {timeout:g} s; look for locks in "
            "pg_stat_activity, or raise timeout="
        )
    else:
        what = f"no connection was free within {timeout:g} s; raise max_size= or timeout=, or find what holds them"
    return BackendUnavailableError(f"PostgreSQL at {shown}: {what}" + ". Nothing was stored" * state.writes)


def _unknown(shown: str, what: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"PostgreSQL at {shown}: {what}; whether the call took effect is not known. "
        "Retry with the same ids, look for locks in pg_stat_activity, or raise timeout="
    )


def _clear_frames(error: BaseException, module: str) -> None:
    """Clear the variables of a package's frames in the tracebacks of an error and its causes: they hold passwords.

    Files and lines stay in the traceback. Frames of other packages are left alone: clearing a suspended frame, such as
    that of a task which caught the error, would end it.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if frame.f_globals.get("__name__", "").partition(".")[0] == module:
                    # It raises where the frame still runs.
                    with suppress(RuntimeError):
                        frame.clear()
            chain += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
