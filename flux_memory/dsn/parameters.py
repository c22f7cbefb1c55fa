"""Lists the parameters of a DSN that are translated or refused, and the variables that stand in for them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any, Final

from flux_memory.errors import InvalidInputError
from flux_memory.masking import CHOICES

_CLIENT_ENCODINGS: Final = frozenset({"utf8", "utf-8", "unicode"})
_SETTING: Final = re.compile(r"[A-Za-z_]\w*(?:\.\w+)?", re.ASCII)

_REFUSED: Final = {
    **dict.fromkeys(("command_timeout", "pool_timeout", "socket_timeout"), "give timeout= to the memory instead"),
    **dict.fromkeys(
        ("pool_size", "max_size", "max_overflow", "connection_limit"), "give max_size= to the memory instead"
    ),
    "min_size": "give min_size= to the memory instead",
    "load_balance_hosts": "asyncpg has no load balancing; name the hosts in the order to try them",
    "channel_binding": "asyncpg does not negotiate channel binding; use sslmode=verify-full",
    **dict.fromkeys(("service", "servicefile"), "name the host, the user and the database in the DSN"),
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        "asyncpg leaves keepalives to the operating system; set them there",
    ),
    "client_encoding": "the driver always uses UTF8; remove it",
    **dict.fromkeys(("pass", "passwd", "pwd", "pgpassword"), "the password is the parameter 'password'"),
    "hostaddr": "give the address as the host",
    "fallback_application_name": "use application_name",
    **dict.fromkeys(("schema", "currentSchema"), "use search_path"),
    **dict.fromkeys(("ssl", "requiressl", "sslcertmode"), "use sslmode=require or sslmode=verify-full"),
    **dict.fromkeys(("pgbouncer", "prepareThreshold"), "use statement_cache_size=0"),
    **dict.fromkeys(("gssencmode", "sslcompression", "sslsni", "requirepeer", "require_auth"), "asyncpg lacks it"),
    "replication": "a memory needs an ordinary connection; remove it",
}
"""Parameters without an effect: the advice for each."""

_VARIABLES: Final = {
    "sslmode": ("PGSSLMODE", "prefer"),
    "sslnegotiation": ("PGSSLNEGOTIATION", "postgres"),
    "ssl_min_protocol_version": ("PGSSLMINPROTOCOLVERSION", "TLSv1.2"),
    "ssl_max_protocol_version": ("PGSSLMAXPROTOCOLVERSION", "TLSv1.3"),
    "target_session_attrs": ("PGTARGETSESSIONATTRS", "any"),
    "gsslib": ("PGGSSLIB", "gssapi"),
}
"""The parameters of `CHOICES`: the variable that the driver reads instead, and its default."""


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _cache_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(text)
    return int(text)


_COUNT: Final = "a whole number, 0 or more"
_TRANSLATED: Final[dict[str, tuple[str, Callable[[str], float], str]]] = {
    "connect_timeout": ("timeout", _positive, "a number of seconds, more than 0"),
    "statement_cache_size": ("statement_cache_size", _cache_size, _COUNT),
    "prepared_statement_cache_size": ("statement_cache_size", _cache_size, _COUNT),
}
"""Parameters of other drivers: asyncpg's argument for each, its converter, and the expected value in words."""


def translate(given: dict[str, str]) -> dict[str, Any]:
    """Take the parameters that asyncpg takes as arguments out of `given`, and check the others.

    Raises:
        InvalidInputError: A parameter would have no effect, or its value or that of a variable is wrong.
    """
    arguments: dict[str, Any] = {}
    for name, value in [*given.items()]:
        if name == "client_encoding" and value.lower() in _CLIENT_ENCODINGS:
            del given[name]
        elif name in _REFUSED:
            raise InvalidInputError(f"the DSN has the parameter '{name}', which has no effect here; {_REFUSED[name]}")
        elif name in _TRANSLATED:
            argument, convert, wanted = _TRANSLATED[name]
            try:
                arguments[argument] = convert(given.pop(name))
            except ValueError:
                raise InvalidInputError(f"the DSN's parameter '{name}' is not {wanted}; correct it") from None
        elif not _SETTING.fullmatch(name):
            raise InvalidInputError(
                "the DSN has a parameter whose name no setting has; where the password has '&' or '=', write them as "
                "%26, %3D"
            )
    _check_choices(given)
    return arguments


def _check_choices(given: dict[str, str]) -> None:
    """Check parameters with a list of values, and add those of variables: the driver does not read these any more."""
    for name, (variable, default) in _VARIABLES.items():
        if name in given:
            place, value = f"the DSN's parameter '{name}'", given[name]
        elif variable in os.environ:
            # The driver refuses an empty variable; libpq ignores it.
            place, value = f"the variable {variable}", os.environ[variable] or default
        else:
            continue
        given[name] = value.replace("_", "-")
        if given[name] not in CHOICES[name]:
            raise InvalidInputError(f"{place} is none of {', '.join(CHOICES[name])}; correct it")
