"""Translates asyncpg's errors into the library's: those of statements by one table, those of connecting by its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn

import asyncpg

from flux_memory.backends.postgres.call_state import CallState
from flux_memory.backends.postgres.connecting import DRIVER_ERRORS, PREPARED, classify, fatal_error, message_of
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    InvalidInputError,
    MemoryClosedError,
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

_Causes = type[BaseException] | tuple[type[BaseException], ...]
_ADVICE: Final[tuple[tuple[_Causes, type[FluxMemoryError], str], ...]] = (
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
        "the server is a standby, or read-only; connect to the primary, and name standbys in replica_dsn=",
    ),
    (asyncpg.InsufficientPrivilegeError, SchemaError, "grant the role what it lacks"),
    (asyncpg.UndefinedTableError, SchemaError, "the tables are gone; open a new memory to make them"),
    (
        (asyncpg.UndefinedColumnError, asyncpg.UndefinedObjectError, asyncpg.InvalidColumnReferenceError),
        SchemaError,
        "the tables were changed by hand; restore them",
    ),
    (
        (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError),
        BackendUnavailableError,
        PREPARED.advice,
    ),
    (
        asyncpg.InvalidSchemaNameError,
        SchemaError,
        "the role's search_path names no schema that it may use; create one, or grant the role USAGE on it",
    ),
    (asyncpg.PostgresConnectionError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InterfaceError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.InternalClientError, BackendUnavailableError, "the connection was lost; retry"),
    (asyncpg.RaiseError, SchemaError, "a trigger of the database refused it; ask its owner, or change or drop it"),
    (
        asyncpg.IntegrityConstraintViolationError,
        SchemaError,
        "a constraint that flux-memory did not create refused the row; change or drop it",
    ),
    (asyncpg.PostgresError, FluxMemoryError, "look at the server's log"),
    (OSError, BackendUnavailableError, "the connection was lost; retry"),
)
"""Errors of statements, subclasses first: the library's error for each, and the advice in its message."""
_WAITING: Final = (
    "look for locks in pg_stat_activity, or for a pooler in session mode whose pool_size is below the max_size= of all "
    "handles together, or raise timeout="
)

_EXPLAINED_BY_FUNCTION: Final = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedObjectError,
    asyncpg.InternalServerError,
)
_ADVICE_BY_FUNCTION: Final = {
    "check_enable_rls": (
        "a policy may hide rows from the role; connect as a role with BYPASSRLS, or as the owner without FORCE"
    ),
    "ExecWithCheckOptions": (
        "a policy does not let the role store this row; compare the session's user_id with the policies of the table"
    ),
    # Citus reports it without the SQLSTATE of the worker's error.
    "ReportCopyError": (
        "a worker refused a row; if its key is there already, flux-memory migrate --verify names the sessions with "
        "wrong numbers; else change or drop the constraint, or look at the worker's log"
    ),
    "find_option": "a policy or a trigger reads this setting; add it to the DSN, as in ?chat.user_id=ann",
}
"""Advice on a `SchemaError` by the function of the server that refused a statement: its text may be translated."""


@contextmanager
def translate_errors(
    shown: str, timeout: float, state: CallState | None = None, pool: Pool | None = None
) -> Iterator[None]:
    """Translate the errors of the driver and of the network into the library's.

    Args:
        shown: The masked DSN.
        timeout: The deadline in seconds, for the message of a call that passed it.
        state: The state of the call; by default that of a read.
        pool: The pool that the call takes connections from.
    """
    try:
        yield
    except Exception as error:
        translated = translate(error, shown, timeout, state or CallState(writes=False), pool)
        if translated is error:
            raise
        raise translated from error


def translate(error: Exception, shown: str, timeout: float, state: CallState, pool: Pool | None) -> Exception:
    """Return the library's error for one of the driver or of the network, and any other error as it is.

    Args:
        error: The error.
        shown: The masked DSN.
        timeout: The deadline in seconds, for the message of a call that passed it.
        state: The state of the call.
        pool: The pool that the call takes connections from, if any.
    """
    may_be_stored = state.writes and state.unknown
    if isinstance(error, FluxMemoryError):
        if isinstance(error, MemoryClosedError) and may_be_stored:
            return _outcome_unknown(shown, "the connection was closed by close() before the answer")
        return error
    if isinstance(error, TimeoutError):
        _clear_frames(error, asyncpg.__name__)
        return _deadline_error(shown, timeout, state, pool.trouble if pool is not None else None)
    if not isinstance(error, DRIVER_ERRORS):
        return error
    _clear_frames(error, asyncpg.__name__)
    if may_be_stored:
        return _outcome_unknown(shown, f"the connection was lost, and then: {message_of(error)}")
    kind, advice = _advice(error)
    return kind(f"PostgreSQL at {shown}: {message_of(error)}; {advice}")


def not_connected(shown: str, error: Exception) -> FluxMemoryError:
    """Return the library's error for an attempt to connect that failed."""
    _clear_frames(error, asyncpg.__name__)
    configuration = isinstance(error, asyncpg.exceptions.ClientConfigurationError)
    kind = InvalidInputError if configuration else BackendUnavailableError
    return kind(f"PostgreSQL at {shown}: {message_of(error)}; {classify(error).advice}")


def _advice(error: Exception) -> tuple[type[FluxMemoryError], str]:
    # A FATAL refuses the connection, for a parameter of the DSN.
    if fatal_error(error) is not None:
        return BackendUnavailableError, classify(error).advice
    if isinstance(error, _EXPLAINED_BY_FUNCTION):
        advice = _ADVICE_BY_FUNCTION.get(getattr(error, "server_source_function", None) or "")
        if advice is not None:
            return SchemaError, advice
    return next((kind, advice) for cause, kind, advice in _ADVICE if isinstance(error, cause))


def _deadline_error(shown: str, timeout: float, state: CallState, trouble: Exception | None) -> BackendUnavailableError:
    if state.writes and state.unknown:
        return _outcome_unknown(shown, f"did not answer within {timeout:g} s")
    if state.sent or isinstance(state.trouble, TimeoutError):
        what = f"did not answer within {timeout:g} s; {_WAITING}"
    elif trouble is not None:
        what = f"{message_of(trouble)}, again and again for {timeout:g} s; {classify(trouble).advice}"
    elif state.trouble is not None and not state.blocked:
        what = f"{message_of(state.trouble)}, again and again for {timeout:g} s; {_advice(state.trouble)[1]}"
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
        f"PostgreSQL at {shown}: {what}; whether the call took effect is not known. Retry with the same ids; {_WAITING}"
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


def refuse_other_loop() -> NoReturn:
    """Refuse a call on another event loop than that of a borrowed pool.

    Raises:
        FluxMemoryError: Always.
    """
    raise FluxMemoryError(
        "this memory borrows a pool, whose connections live on the event loop of the first call; call it there, or "
        "give it a DSN instead of a pool"
    )
