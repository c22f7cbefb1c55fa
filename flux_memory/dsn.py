"""PostgreSQL DSNs: checked before they reach a driver, and shown without their passwords."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from flux_memory.errors import InvalidInputError, InvalidTypeError

_MASK: Final = "***"
_SECRETS: Final = frozenset({"password", "sslpassword", "passfile"})

_TRANSLATED: Final = {
    "connect_timeout": ("timeout", float),
    "statement_cache_size": ("statement_cache_size", int),
    "prepared_statement_cache_size": ("statement_cache_size", int),
}
"""Parameters of other drivers: asyncpg's argument for each."""

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


class Dsn(NamedTuple):
    """A DSN that asyncpg can take."""

    url: str
    arguments: dict[str, Any]
    """Arguments for `asyncpg.connect` that stood in the DSN as parameters it does not read."""


def parse(dsn: object) -> Dsn:
    """Check a DSN and take out of it what asyncpg wants as arguments.

    Raises:
        InvalidInputError: It is not a PostgreSQL DSN, or has a parameter that would not do what it says. The message
            never shows a password.
    """
    if not isinstance(dsn, str):
        raise InvalidTypeError(f"dsn must be a str, not {type(dsn).__name__}")
    scheme, separator, _ = dsn.partition("://")
    if not separator:
        raise InvalidInputError("the DSN is not a URL; write postgresql://user:password@host:5432/database")
    if scheme not in {"postgresql", "postgres"}:
        driver = re.fullmatch(r"(postgres|postgresql)\+\w+", scheme)
        advice = (
            f"remove '+{scheme.partition('+')[2]}': the driver is always asyncpg"
            if driver
            else "only PostgreSQL is spoken here: write postgresql://user:password@host:5432/database"
        )
        raise InvalidInputError(f"the DSN has the scheme '{scheme:.40}://'; {advice}")
    parts = urlsplit(dsn)
    _check_ports(parts.netloc.rpartition("@")[2])
    kept: list[tuple[str, str]] = []
    arguments: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _REFUSED:
            raise InvalidInputError(f"the DSN has the parameter '{name}', which has no effect here; {_REFUSED[name]}")
        if name in _TRANSLATED:
            argument, convert = _TRANSLATED[name]
            try:
                arguments[argument] = convert(value)
            except ValueError:
                raise InvalidInputError(f"the DSN's parameter '{name}' must be a number") from None
        else:
            kept.append((name, value))
    return Dsn(parts._replace(query=urlencode(kept, quote_via=quote)).geturl(), arguments)


def masked(dsn: str) -> str:
    """Return a DSN that can be shown: every password in it is `***`."""
    scheme, separator, rest = dsn.partition("://")
    if not separator:
        return _MASK
    authority_end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    if "@" in rest[authority_end:]:
        # A password with an unescaped '/' or '?' or '#': everything up to the last '@' may be part of it.
        authority_end = rest.rfind("@") + len(rest[rest.rfind("@") :].split("/")[0].split("?")[0])
    authority, tail = rest[:authority_end], rest[authority_end:]
    userinfo, at, hosts = authority.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    shown = f"{scheme}://{user}{colon and f':{_MASK}'}{at}{hosts}{tail}"
    return re.sub(rf"(?i)([?&](?:{'|'.join(_SECRETS)})=)[^&#]*", rf"\g<1>{_MASK}", shown)


def _check_ports(hosts: str) -> None:
    for host in hosts.split(","):
        port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
        if port and not unquote(port).isdecimal():
            raise InvalidInputError(
                "the DSN's port is not a number; where the password has '/', '@', ':', '#' or '?', write them as "
                "%2F, %40, %3A, %23 or %3F"
            )
