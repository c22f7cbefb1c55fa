"""Opens connections, and classifies why an attempt failed: by its phase, then the SQLSTATE, then the server's words."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Any, Final, NamedTuple

import asyncpg

from flux_memory.dsn import Dsn
from flux_memory.errors import InvalidInputError


class Refusal(NamedTuple):
    """Why there is no session."""

    advice: str
    passes: bool
    """Whether a later attempt may succeed without a fix."""


_CREDENTIALS: Final = Refusal("check the user and the password in the DSN", passes=False)
_RULES: Final = Refusal(
    "check the user in the DSN, sslmode=require where the server demands TLS, and the server's pg_hba.conf or list of "
    "allowed addresses",
    passes=False,
)
_DATABASE: Final = Refusal("create the database, or correct its name in the DSN", passes=False)
_TENANT: Final = Refusal(
    "the pooler knows no such database, user or endpoint; copy the DSN from the provider's console again", passes=False
)
_STOPPED: Final = Refusal("the provider has stopped this database; start it, or raise its quota", passes=False)
_UNKNOWN_SETTING: Final = Refusal("the server does not know a parameter of the DSN; remove it", passes=False)
_PARAMETERS: Final = Refusal(
    "the server or a pooler refused the connection's parameters; remove them from the DSN", passes=False
)
_FULL: Final = Refusal(
    "all connections of the server or the pooler are in use; lower max_size=, or raise max_connections or the pooler's "
    "pool size",
    passes=True,
)
PREPARED: Final = Refusal(
    "a pooler in transaction mode stands between: add ?statement_cache_size=0 to the DSN; or one in session mode lacks "
    "server_reset_query",
    passes=False,
)
_NOT_READY: Final = Refusal("the server, or a pooler before it, is not ready; retry, and look at its log", passes=True)
_CLOSED: Final = Refusal(
    "look at the log of the server or pooler, and that it is PostgreSQL which listens at the DSN's host and port",
    passes=True,
)
_METHOD: Final = Refusal(
    "the driver lacks the method of authentication that the server demands; use scram-sha-256 in its pg_hba.conf",
    passes=False,
)
_FOREIGN: Final = Refusal("the answer is not that of a PostgreSQL server; check host and port in the DSN", passes=False)

_CODES: Final = (
    ("25P0", Refusal("a time limit of the server on transactions ended the session; raise it", passes=True)),
    ("28P01", _CREDENTIALS),
    ("28", _RULES),
    ("3D000", _DATABASE),
    ("53300", _FULL),
    ("53", Refusal("the server lacks resources; retry later", passes=True)),
    ("57P03", Refusal("the server is starting or stopping; retry", passes=True)),
    ("57", Refusal("the server ended the call; retry", passes=True)),
    ("42501", Refusal("grant the role CONNECT on the database", passes=False)),
    ("42704", _UNKNOWN_SETTING),
    ("55P02", Refusal("a parameter of the DSN cannot be set; remove it", passes=False)),
    ("22", Refusal("a parameter of the DSN has an invalid value; correct it", passes=False)),
)
"""SQLSTATEs, or their beginnings, that mean the same from every server."""
_TEXTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), refusal)
    for pattern, refusal in (
        (r"prepared statement", PREPARED),
        (
            r"(password|sasl|md5|scram|certificate) auth|auth failed|(wrong|invalid) password|auth\w* error",
            _CREDENTIALS,
        ),
        (r"no such user|role .*(does not exist|not found)|no credentials|failed to auth", _CREDENTIALS),
        (r"no such database|database .*(does not exist|not found|is disabled)", _DATABASE),
        (r"(is|been) (disabled|suspended|paused|archived)|exceeded the .*quota", _STOPPED),
        (r"(servers?|nodes?).{0,12}down|become active|\bidle\b|circuit breaker", _NOT_READY),
        (r"max\w*[ _-]?(client|connection|pool)|too many|no more connections|pool.?size|limit reached", _FULL),
        (r"check ?out|acquir|query_wait|connection from the pool|all .*connections", _FULL),
        (r"allow.?list|not allowed|pg_hba|\b(ssl|tls)\b.*required|requires? (ssl|tls)", _RULES),
        (r"tenant|endpoint|no pool configured|invalid pool|route|project", _TENANT),
        (r"startup parameter|configuration parameter", _PARAMETERS),
    )
)
"""Words of poolers, which give many errors one SQLSTATE: PgBouncer 08P01, Supavisor and Neon XX000, pgcat 58000."""
_CLASSES: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Refusal], ...]] = (
    (asyncpg.exceptions.ClientConfigurationError, Refusal("correct the parameters of TLS in the DSN", passes=False)),
    (
        asyncpg.TargetServerAttributeNotMatched,
        Refusal("no host of the DSN matches target_session_attrs; promote one, or change that parameter", passes=True),
    ),
    (
        ConnectionRefusedError,
        Refusal("nothing listens there; start the server, check host and port", passes=True),
    ),
    (socket.gaierror, Refusal("the host is not found; check its name in the DSN", passes=True)),
    (
        FileNotFoundError,
        Refusal("there is no such socket or file; check the paths in the DSN and in PGSSL* variables", passes=True),
    ),
    (
        PermissionError,
        Refusal(
            "this user may not open the socket, or a file of TLS; check their permissions, and that HOME, where "
            ".postgresql is looked for, is this user's",
            passes=False,
        ),
    ),
    (
        ssl.SSLCertVerificationError,
        Refusal(
            "the server's certificate is not trusted; check sslrootcert in the DSN, and that its host is a name in it",
            passes=False,
        ),
    ),
    (ssl.SSLError, Refusal("TLS failed; check sslmode and sslrootcert in the DSN", passes=True)),
    (
        TimeoutError,
        Refusal(
            "check the network, and host and port in the DSN; a pooler waits like this for a server that it cannot "
            "reach",
            passes=True,
        ),
    ),
    (ConnectionError, Refusal("check the network, and host, port and sslmode in the DSN", passes=True)),
    (OSError, Refusal("check the network, and the host and port in the DSN", passes=True)),
    ((asyncpg.InterfaceError, asyncpg.InternalClientError), _FOREIGN),
)
"""Errors of the driver and of the system, subclasses first."""
DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Every exception that the driver raises by design."""
_FATAL: Final = frozenset({"FATAL", "PANIC"})


async def connect(target: Dsn, *, timeout: float, **arguments: Any) -> Any:  # noqa: ASYNC109 - the driver's
    """Open a connection.

    Args:
        target: The DSN.
        timeout: Seconds for all of its hosts.
        arguments: Further arguments of `asyncpg.connect`.

    Raises:
        InvalidInputError: The driver refuses a value that only the driver reads, such as a password file.
        TimeoutError: No host let the client in within `timeout`.
    """
    try:
        return await asyncpg.connect(**{**target.connecting(), **arguments, "timeout": timeout})
    except TimeoutError as error:
        raise TimeoutError(f"no connection within {timeout:.3g} s") from error
    except DRIVER_ERRORS:
        raise
    except ValueError as error:
        # Its message and its variables may hold a password.
        kind = type(error).__name__
    except Exception as error:
        raise asyncpg.InternalClientError(f"{type(error).__name__} in the driver") from error
    raise InvalidInputError(
        f"the driver cannot use PGPASSWORD, the password file (PGPASSFILE, ~/.pgpass) or a parameter of TLS ({kind}); "
        "correct it, or write the password in the DSN"
    )


def fatal_error(error: BaseException | None) -> asyncpg.PostgresError | None:
    """Return the error with which the server ended or refused the session; `None` for any other error."""
    # The driver wraps an error that arrives before the session is ready.
    for one in (error, getattr(error, "__cause__", None)):
        severities = {getattr(one, "severity_en", None), getattr(one, "severity", None)}
        if isinstance(one, asyncpg.PostgresError) and severities & _FATAL:
            return one
    return None


def classify(error: Exception) -> Refusal:
    """Return why an attempt to connect failed, or why the server ended a session."""
    refused = fatal_error(error) or error
    words = message_of(refused)
    if isinstance(refused, asyncpg.PostgresError):
        # Some poolers call it an ERROR. Without a severity it comes from the driver.
        if not getattr(refused, "severity", None):
            return _CLOSED
        by_code = (
            refusal for code, refusal in _CODES if str(getattr(refused, "sqlstate", None) or "").startswith(code)
        )
        by_text = (refusal for pattern, refusal in _TEXTS if pattern.search(words))
        return next(by_code, None) or next(by_text, _NOT_READY)
    if isinstance(error, asyncpg.InterfaceError) and words.startswith("pool is "):
        return Refusal("pass an open one, from 'await asyncpg.create_pool()', and close it last", passes=False)
    if isinstance(error, asyncpg.InterfaceError) and "authentication" in words.lower():
        return _METHOD
    return next((refusal for kind, refusal in _CLASSES if isinstance(error, kind)), _NOT_READY)


def message_of(error: Exception) -> str:
    """Return an error's message: without DETAIL, which may quote stored data, and HINT, which is for direct callers."""
    # The cause has both.
    words = str(error.args[0] if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError) else error)
    return words or type(error).__name__
