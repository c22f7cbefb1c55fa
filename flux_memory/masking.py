"""Splits PostgreSQL DSNs, and masks each part that is not known to be harmless."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

_MASK: Final = "***"
ESCAPE: Final = (
    "where the password has '/', '@', ':', '#', '?', '&', '=', '[' or ']', write them as %2F, %40, %3A, %23, %3F, %26, "
    "%3D, %5B, %5D"
)
SCHEMES: Final = ("postgresql", "postgres")
_PARTS: Final = re.compile(r"(?P<netloc>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?", re.DOTALL)
_IN_TEXT: Final = re.compile(r"postgres(?:ql)?://[^\s\"'<>`]*[^\s\"'<>`.,;:)\]}]", re.IGNORECASE)
"""A DSN in prose, without the punctuation after it."""
_USER: Final = re.compile(r"[\w.@+-]*")
_HOSTS: Final = re.compile(r"(?:(?:[\w./%-]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::\d*)?(?:,(?!$)|$))*")
_DATABASE: Final = re.compile(r"[\w.-]*")

_WORDS: Final = re.compile(r"[\w.,$+-]+")
_PATHS: Final = re.compile(r"[\w.,:/~@+-]+")
_NUMBERS: Final = re.compile(r"[\d.,]+[a-z]{0,3}")
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    **dict.fromkeys(
        ("ssl_min_protocol_version", "ssl_max_protocol_version"), ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
    ),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
    "gsslib": ("gssapi", "sspi"),
}
"""The parameters that have a list of values."""
_HARMLESS: Final[dict[str, re.Pattern[str]]] = {
    **dict.fromkeys(("host", "sslrootcert", "sslcert", "sslkey", "sslcrl"), _PATHS),
    "user": _USER,
    **dict.fromkeys(("dbname", "database", "application_name", "search_path", "timezone", "krbsrvname"), _WORDS),
    **dict.fromkeys(
        (
            *("port", "connect_timeout", "statement_cache_size", "prepared_statement_cache_size", "statement_timeout"),
            *("lock_timeout", "idle_in_transaction_session_timeout", "work_mem"),
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(("synchronous_commit", "default_transaction_read_only", "jit"), re.compile("on|off|local")),
}
"""Other parameters that a message may show, if they look as expected. Each other parameter may be a password."""
_SECRETS: Final = ("password", "sslpassword", "passfile")
"""Parameters that a message may name, but never with their value."""


class SecretText(str):
    """A text that holds a secret, such as a DSN with a password. Its repr is `'***'`, also in a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class AmbiguousDsnError(ValueError):
    """The text is not a DSN, or its parts are not certain; the message never shows them."""


class DsnParts(NamedTuple):
    """The parts of a DSN as written, with their percent escapes."""

    scheme: str
    user: str
    password: SecretText | None
    hosts: str
    database: str | None
    parameters: tuple[tuple[str, SecretText], ...]


def split_dsn(dsn: str) -> DsnParts:
    """Return the parts of a DSN.

    Raises:
        AmbiguousDsnError: The text is not a PostgreSQL DSN, or a character of the password may end a part.
    """
    scheme, _, rest = dsn.partition("://")
    found = _PARTS.fullmatch(rest)
    if scheme not in SCHEMES or found is None:
        raise AmbiguousDsnError("the DSN is not a URL; write postgresql://user:password@host:5432/database")
    login, _, hosts = found["netloc"].rpartition("@")
    if "@" in login or "@" in (found["path"] or "") or found["fragment"]:
        raise AmbiguousDsnError(f"the DSN has an unescaped '@' or '#'; {ESCAPE}")
    user, colon, password = login.partition(":")
    parameters: list[tuple[str, SecretText]] = []
    for part in (found["query"] or "").split("&"):
        name, equals, value = part.partition("=")
        if not part:
            continue
        if not equals and part != _MASK:
            raise AmbiguousDsnError(f"the DSN has a parameter without a value, or a part of the password; {ESCAPE}")
        # An '@' after the query's beginning may be the one before the host.
        if "@" in name or ("@" in value and unquote(name) not in {"user", *_SECRETS}):
            raise AmbiguousDsnError(f"the DSN has an unescaped '@' or '#'; {ESCAPE}")
        if any(known in _SECRETS for known, _ in parameters) and unquote(name) not in {*CHOICES, *_HARMLESS, *_SECRETS}:
            raise AmbiguousDsnError(
                "the DSN has a parameter after its password that may be a part of it; write the password last, and its "
                "'&' and '=' as %26 and %3D"
            )
        parameters.append((unquote(name), SecretText(value)))
    database = found["path"] and found["path"][1:]
    return DsnParts(scheme, user, SecretText(password) if colon else None, hosts, database, tuple(parameters))


def mask_dsn(dsn: str) -> str:
    """Return a DSN with `***` for each part that is not known to be harmless."""
    try:
        parts = split_dsn(dsn)
    except AmbiguousDsnError:
        scheme = dsn.partition("://")[0]
        return f"{scheme}://{_MASK}" if scheme in SCHEMES else _MASK
    login = _shown(parts.user, _USER) + (f":{_MASK}" if parts.password is not None else "")
    hosts = parts.hosts if _HOSTS.fullmatch(parts.hosts) else _MASK
    database = "" if parts.database is None else f"/{_shown(parts.database, _DATABASE)}"
    parameters = "&".join(map(_mask_parameter, parts.parameters))
    return f"{parts.scheme}://{login}{'@' if login else ''}{hosts}{database}{'?' if parameters else ''}{parameters}"


def mask_dsns(text: str) -> str:
    """Return a text in which each DSN is masked."""
    return _IN_TEXT.sub(lambda found: mask_dsn(found[0]), text)


def _mask_parameter(parameter: tuple[str, str]) -> str:
    name, value = parameter
    if name in CHOICES:
        return f"{name}={value if value in CHOICES[name] else _MASK}"
    if name in _HARMLESS:
        return f"{name}={_shown(value, _HARMLESS[name])}"
    # An unknown name may itself be a part of the password.
    return f"{name}={_MASK}" if name in _SECRETS else _MASK


def _shown(text: str, harmless: re.Pattern[str]) -> str:
    return text if harmless.fullmatch(unquote(text)) and "@" not in text else _MASK
