"""Checks PostgreSQL DSNs, and the variables that complete them, before they reach the driver."""

from __future__ import annotations

import getpass
import os
import re
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlencode

from flux_memory.dsn.addresses import Address, read_addresses
from flux_memory.dsn.parameters import translate
from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.masking import SCHEMES, AmbiguousDsnError, SecretText, mask_dsn, split_dsn
from flux_memory.records.text import find_unstorable

__all__ = ["Dsn", "SecretText", "mask_dsn", "parse_dsn"]


_ENDS: Final = "'\" "
_FOR_READS: Final = frozenset({"standby", "prefer-standby", "read-only"})
"""Values of target_session_attrs with which the driver prefers a server that accepts no writes."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}")


class Dsn(NamedTuple):
    """A DSN, and the variables that complete it, as arguments of asyncpg."""

    addresses: tuple[Address, ...]
    """The hosts and ports in the order to try them; an empty host stands for the usual sockets and localhost."""
    arguments: dict[str, Any]
    shown: str
    """The DSN as messages show it."""
    reads_only: bool = False
    """Whether it asks for servers that accept no writes."""

    def connecting(self) -> dict[str, Any]:
        """Return the arguments for `asyncpg.connect`, which then reads no address, user or database elsewhere."""
        hosts, ports = zip(*self.addresses, strict=True)
        # The driver takes no subclass of str.
        plain = {name: str(value) if isinstance(value, str) else value for name, value in self.arguments.items()}
        return {**plain, "host": list(hosts) if any(hosts) else None, "port": list(ports)}

    def rotated(self) -> Dsn:
        """Return the DSN with its first host moved to the end."""
        return self._replace(addresses=(*self.addresses[1:], *self.addresses[:1]))


def parse_dsn(dsn: object) -> Dsn:
    """Check a DSN, and complete it from the variables that libpq reads: PGHOST, PGPORT, PGUSER, PGDATABASE and PGSSL*.

    The driver reads PGPASSWORD and the password file at each attempt to connect.

    Raises:
        InvalidInputError: The text is not a PostgreSQL DSN, has a parameter that would have no effect, or a variable in
            its place is wrong. The message never shows a password.
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
    _check_form(dsn)
    try:
        parts = split_dsn(dsn)
    except AmbiguousDsnError as error:
        raise InvalidInputError(str(error)) from None
    given = {name: value for name, text in parts.parameters if (value := _decode(text, "parameter"))}
    names = [given.pop(name, "") for name in ("dbname", "database")]
    user = _choose("user", parts.user, given.pop("user", ""), "PGUSER") or _own_name()
    database = _choose("database", parts.database or "", names[0] or names[1], "PGDATABASE") or user
    password = _choose("password", parts.password or "", given.pop("password", ""))
    addresses = read_addresses(parts.hosts, given.pop("host", ""), given.pop("port", ""))
    arguments = {**translate(given), "user": user, "database": database}
    if password:
        arguments["password"] = SecretText(password)
    if given:
        arguments["dsn"] = SecretText(f"postgresql://?{urlencode(given, safe='/', quote_via=quote)}")
    return Dsn(addresses, arguments, mask_dsn(dsn), given.get("target_session_attrs") in _FOR_READS)


def _check_form(dsn: str) -> None:
    scheme, separator, _ = dsn.partition("://")
    if dsn.strip(_ENDS) != dsn:
        raise InvalidInputError("the DSN begins or ends with a quote or a space; remove those around it")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidInputError("the DSN is not a URL; write postgresql://user:password@host:5432/database")
    if scheme not in SCHEMES:
        driver = re.fullmatch(r"(postgres|postgresql)\+\w+", scheme)
        advice = (
            f"remove '+{scheme.partition('+')[2]}': the driver is always asyncpg"
            if driver
            else "only PostgreSQL is supported: write postgresql://user:password@host:5432/database"
        )
        raise InvalidInputError(f"the DSN has the scheme '{scheme}://'; {advice}")
    if not dsn.isprintable():
        raise InvalidInputError("the DSN has a line break or another invisible character; remove it")


def _choose(what: str, text: str, parameter: str, variable: str = "") -> str:
    """Return a part of the DSN, or else a variable."""
    written = _decode(text, what)
    if written and parameter and written != parameter:
        raise InvalidInputError(f"the DSN has its {what} in two places; leave out the parameter")
    if written or parameter:
        return written or parameter
    value = os.environ.get(variable, "")
    if reason := find_unstorable(value):
        raise InvalidInputError(f"the variable {variable} has {reason}")
    return value


def _decode(text: str, what: str) -> str:
    try:
        value = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInputError(f"the DSN's {what} has percent escapes that are not UTF-8; write '%' as %25") from None
    if reason := find_unstorable(value):
        raise InvalidInputError(f"the DSN's {what} has {reason}")
    return SecretText(value)


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise InvalidInputError(
            "the DSN names no user, and the user of this process has no name; write postgresql://user@host/database, "
            "or set PGUSER"
        ) from None
