"""Changes a part of a DSN."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit


def with_database(dsn: str, name: str) -> str:
    """Return the DSN of another database on the same server."""
    return _changed(dsn, {"database", "dbname"}, path=f"/{quote(name, safe='')}")


def with_login(dsn: str, user: str, password: str) -> str:
    """Return the DSN with another role and its password."""
    places = urlsplit(dsn).netloc.rpartition("@")[2]
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return _changed(dsn, {"user", "password", "passfile"}, netloc=f"{login}@{places}")


def database_of(dsn: str) -> str:
    """Return the name of the DSN's database."""
    return urlsplit(dsn).path.removeprefix("/")


def _changed(dsn: str, replaced: set[str], **parts: str) -> str:
    before = urlsplit(dsn)
    query = [(key, value) for key, value in parse_qsl(before.query) if key not in replaced]
    return urlunsplit(before._replace(query=urlencode(query, safe="/,"), **parts))
