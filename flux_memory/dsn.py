"""Checks PostgreSQL DSNs before they reach the driver, and masks their passwords for messages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from flux_memory.errors import InvalidInputError, InvalidTypeError

_MASK: Final = "***"
_SECRETS: Final = frozenset({"password", "sslpassword", "passfile"})
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}")
_PARAMETER: Final = re.compile(r"[?&](?P<name>[^=&]*)=(?P<value>[^&]*)")
_ESCAPE: Final = (
    "where the password has '/', '@', ':', '#', '?', '[' or ']', write them as %2F, %40, %3A, %23, %3F, %5B, %5D"
)

_REFUSED: Final = {
    "command_timeout": "give timeout= to the memory instead",
    "pool_timeout": "give timeout= to the memory instead",
    "pool_size": "give max_size= to the memory instead",
    "max_size": "give max_size= to the memory instead",
    "min_size": "give min_size= to the memory instead",
    "max_overflow": "give max_size= to the memory instead",
    "load_balance_hosts": "asyncpg has no load balancing; name the hosts in the order to try them",
    "channel_binding": "asyncpg does not negotiate channel binding; use sslmode=verify-full",
    "service": "name the host, the user and the database in the DSN",
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        "asyncpg leaves keepalives to the operating system; set them there",
    ),
}


class SecretText(str):
    """A text that holds a secret, such as a DSN with a password. Its repr is `'***'`, also in a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Dsn(NamedTuple):
    """A DSN that asyncpg can take."""

    url: SecretText
    arguments: dict[str, Any]
    """Arguments for `asyncpg.connect`, from parameters of the DSN that asyncpg does not read."""


def parse_dsn(dsn: object) -> Dsn:
    """Check a DSN, and move the parameters that asyncpg takes as arguments out of it.

    Raises:
        InvalidInputError: The text is not a PostgreSQL DSN, or has a parameter that would have no effect. The message
            never shows a password.
    """
    if not isinstance(dsn, str):
        raise InvalidTypeError(f"dsn must be a str, not {type(dsn).__name__}")
    dsn = SecretText(dsn)
    try:
        return _parse(dsn)
    except InvalidInputError as error:
        # The variables of the parser's frames hold the password.
        raise error.with_traceback(None) from None


def _parse(dsn: str) -> Dsn:
    scheme, separator, _ = dsn.partition("://")
    if dsn.startswith(("'", '"', " ")):
        raise InvalidInputError("the DSN begins with a quote or a space; remove those around it")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidInputError("the DSN is not a URL; write postgresql://user:password@host:5432/database")
    if scheme not in {"postgresql", "postgres"}:
        driver = re.fullmatch(r"(postgres|postgresql)\+\w+", scheme)
        advice = (
            f"remove '+{scheme.partition('+')[2]}': the driver is always asyncpg"
            if driver
            else "only PostgreSQL is supported: write postgresql://user:password@host:5432/database"
        )
        raise InvalidInputError(f"the DSN has the scheme '{scheme}://'; {advice}")
    if not dsn.isprintable():
        raise InvalidInputError("the DSN has a line break or another invisible character; remove it")
    try:
        parts = urlsplit(dsn)
    except ValueError:
        # The error's message quotes the password.
        raise InvalidInputError(f"the DSN cannot be read; {_ESCAPE}") from None
    _check_unescaped(parts)
    _check_hosts(parts.netloc.rpartition("@")[2])
    kept: list[tuple[str, str]] = []
    arguments: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _REFUSED:
            raise InvalidInputError(f"the DSN has the parameter '{name}', which has no effect here; {_REFUSED[name]}")
        if name in _TRANSLATED:
            argument, convert, wanted = _TRANSLATED[name]
            try:
                arguments[argument] = convert(value)
            except ValueError:
                raise InvalidInputError(f"the DSN's parameter '{name}' is not {wanted}; correct it") from None
        else:
            kept.append((name, value))
    address = dsn.partition("?")[0]
    url = f"{address}?{urlencode(kept, safe='/', quote_via=quote)}" if kept else address
    return Dsn(SecretText(url), arguments)


def mask_dsn(dsn: str) -> str:
    """Return a DSN in which every password is `***`."""
    scheme, separator, rest = dsn.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return _MASK
    hidden = [found.span("value") for found in _PARAMETER.finditer(rest) if unquote(found["name"]).lower() in _SECRETS]
    # The password may have an unescaped '/', '?', '#', ':' or '@', so it may reach from the first ':' to the last '@'.
    colon, at = rest.find(":"), rest.rfind("@")
    if 0 <= colon < at:
        hidden.append((colon + 1, at))
    shown, end = f"{scheme}://", 0
    for begin, stop in sorted(hidden):
        if begin >= end:
            shown += rest[end:begin] + _MASK
        end = max(end, stop)
    return shown + rest[end:]


def rotate_hosts(url: SecretText) -> SecretText:
    """Return a DSN from `parse_dsn` with its first host moved to the end."""
    scheme, separator, rest = url.partition("://")
    end = next((at for at, character in enumerate(rest) if character in "/?"), len(rest))
    user, at, hosts = rest[:end].rpartition("@")
    first, comma, others = hosts.partition(",")
    return SecretText(f"{scheme}{separator}{user}{at}{others},{first}{rest[end:]}") if comma else url


def _check_unescaped(parts: SplitResult) -> None:
    """Raise `InvalidInputError` if a character of the password was read as the end of the host."""
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    # asyncpg ends the password at the first '@', and would look up the rest as a host name.
    if parts.fragment or parts.netloc.count("@") > 1 or any("@" in text for text in (parts.path, *names)):
        raise InvalidInputError(f"the DSN has an unescaped '@' or '#'; {_ESCAPE}")


def _check_hosts(hosts: str) -> None:
    for host in hosts.split(",") if hosts else ():
        _, colon, port = host.rpartition("]")[2].rpartition(":")
        if not host or (colon and port and not _is_port(unquote(port))):
            raise InvalidInputError(f"the DSN has an empty host name or an invalid port; {_ESCAPE}")


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _cache_size(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


_COUNT: Final = "a whole number, 0 or more"
_TRANSLATED: Final[dict[str, tuple[str, Callable[[str], float], str]]] = {
    "connect_timeout": ("timeout", _positive, "a number of seconds, more than 0"),
    "statement_cache_size": ("statement_cache_size", _cache_size, _COUNT),
    "prepared_statement_cache_size": ("statement_cache_size", _cache_size, _COUNT),
}
"""Parameters of other drivers: asyncpg's argument for each, its converter, and the expected value in words."""
