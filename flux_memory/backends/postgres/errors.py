"""Translates asyncpg's errors into the library's, by one table, and knows which of them are transient."""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    InvalidInputError,
    OutcomeUnknownError,
    SchemaError,
)

if TYPE_CHECKING:
    from flux_memory.backends.postgres.retry import Pool

ROLLED_BACK_FOR_ANOTHER: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
"""The server rolled the statement back because of another one; a retry sees the changes of that one."""

_PERMANENT: Final = (
    asyncpg.exceptions.ClientConfigurationError,
    ssl.SSLCertVerificationError,
    PermissionError,
)
_TRANSIENT: Final = (
    OSError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    asyncpg.TargetServerAttributeNotMatched,
)


def is_transient(error: Exception) -> bool:
    """Return whether an attempt to connect with this error may succeed later, without a fix."""
    # A pooler uses this one class for every error, also for a server that is down and for a full pool.
    refused_for_good = isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in str(error)
    return isinstance(error, _TRANSIENT) and not isinstance(error, _PERMANENT) and not refused_for_good


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
        "create the database, or correct its name in the DSN",
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
    (asyncpg.LockNotAvailableError, BackendUnavailableError, "another transaction holds a lock; retry"),
    (asyncpg.TransactionRollbackError, BackendUnavailableError, "the server rolled the call back; retry"),
    (
        asyncpg.ReadOnlySQLTransactionError,
        BackendUnavailableError,
        "the server is read-only; connect to the primary",
    ),
    (asyncpg.InsufficientPrivilegeError, SchemaError, "grant the role what it lacks"),
    (asyncpg.UndefinedTableError, SchemaError, "the tables are gone; open a new memory to make them"),
    (asyncpg.UndefinedColumnError, SchemaError, "the tables were changed by hand; restore them"),
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
        "a parameter of the DSN has an invalid value; correct it",
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
    (asyncpg.exceptions.ClientConfigurationError, InvalidInputError, "correct the DSN"),
    (asyncpg.PostgresConnectionError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InterfaceError, BackendUnavailableError, "the connection was lost; retry"),
    (
        asyncpg.TargetServerAttributeNotMatched,
        BackendUnavailableError,
        "no host of the DSN matches target_session_attrs; promote one, or change that parameter",
    ),
    (asyncpg.InternalClientError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.RaiseError, SchemaError, "a trigger of the database refused it; ask its owner, or change or drop it"),
    (
        asyncpg.IntegrityConstraintViolationError,
        SchemaError,
        "a constraint that flux-memory did not create refused the row; change or drop it",
    ),
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
"""asyncpg's errors, subclasses first: the library's error for each, and the advice in its message."""

_ADVICE_BY_FUNCTION: Final = {
    "check_enable_rls": (
        "a policy may hide rows from the role; connect as a role with BYPASSRLS, or as the owner without FORCE"
    ),
    "ExecWithCheckOptions": (
        "a policy does not let the role store this row; compare the session's user_id with the policies of the table"
    ),
    "find_option": "a policy or a trigger reads this setting; add it to the DSN, as in ?chat.user_id=ann",
}
"""Advice on a `SchemaError` by the function of the server that refused a statement: its text may be translated."""


@contextmanager
def translated(shown: str, timeout: float, state: CallState | None = None, pool: Pool | None = None) -> Iterator[None]:
    """Translate the errors of the driver and of the network into the library's.

    Args:
        shown: The masked DSN.
        timeout: The deadline in seconds, for the message of a call that passed it.
        state: The state of the call; by default that of a read.
        pool: The pool that the call takes connections from.
    """
    try:
        yield
    except FluxMemoryError:
        raise
    except TimeoutError as error:
        _clear_frames(error, asyncpg.__name__)
        trouble = pool.trouble if pool is not None else None
        raise _deadline_error(shown, timeout, state or CallState(writes=False), trouble) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        _clear_frames(error, asyncpg.__name__)
        if state is not None and state.writes and state.unknown:
            raise _outcome_unknown(shown, f"the connection was lost, and then: {_message(error)}") from error
        kind, advice = _advice(error)
        raise kind(f"PostgreSQL at {shown}: {_message(error)}; {advice}") from error


def _message(error: Exception) -> str:
    # Only the message: a DETAIL may quote stored data, and asyncpg's HINTs address its direct callers. The cause has
    # both.
    return str(error.args[0] if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError) else error)


def _advice(error: Exception) -> tuple[type[FluxMemoryError], str]:
    # asyncpg has one class for the errors of pools, connections and calls.
    if isinstance(error, asyncpg.InterfaceError) and str(error).startswith("pool is "):
        return BackendUnavailableError, "pass an open one, from 'await asyncpg.create_pool()', and close it last"
    if isinstance(error, asyncpg.InsufficientPrivilegeError | asyncpg.UndefinedObjectError):
        advice = _ADVICE_BY_FUNCTION.get(error.server_source_function or "")
        # A FATAL refuses the connection, for a parameter of the DSN.
        if advice is not None and error.severity_en != "FATAL":
            return SchemaError, advice
    found = ((kind, advice) for cause, kind, advice in _ADVICE if isinstance(error, cause))
    return next(found, (BackendUnavailableError, "see the cause"))


def _deadline_error(shown: str, timeout: float, state: CallState, trouble: Exception | None) -> BackendUnavailableError:
    if state.writes and state.unknown:
        return _outcome_unknown(shown, f"did not answer within {timeout:g} s")
    if trouble is None and not state.blocked:
        trouble = state.trouble
    if state.sent:
        what = f"did not answer within {timeout:g} s; look for locks in pg_stat_activity, or raise timeout="
    elif trouble is not None:
        what = f"{_message(trouble)}, again and again for {timeout:g} s; {_advice(trouble)[1]}"
    elif state.blocked:
        what = (
            f"a lock, or an earlier write to the session, was in the way for {timeout:g} s; look for locks in "
            "pg_stat_activity, or raise timeout="
        )
    else:
        what = f"no connection was free within {timeout:g} s; raise max_size= or timeout=, or find their users"
    return BackendUnavailableError(f"PostgreSQL at {shown}: {what}" + ". Nothing was stored" * state.writes)


def _outcome_unknown(shown: str, what: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"PostgreSQL at {shown}: {what}; whether the call took effect is not known. "
        "Retry with the same ids, look for locks in pg_stat_activity, or raise timeout="
    )


def _clear_frames(error: BaseException, module: str) -> None:
    """Clear the variables of a package's frames in the tracebacks of an error and its causes: they hold passwords.

    Files and lines stay in the traceback. Frames of other packages stay as they are: clearing a suspended frame, such
    as that of a task which caught the error, would end it.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if frame.f_globals.get("__name__", "").partition(".")[0] == module:
                    # A frame that still runs raises.
                    with suppress(RuntimeError):
                        frame.clear()
            chain += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
