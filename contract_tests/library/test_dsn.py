"""Tests DSNs: the accepted ones, the refused ones with their reasons, and that no password is ever shown."""

from __future__ import annotations

import getpass
import os
import traceback
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_memory.dsn import Dsn, mask_dsn, parse_dsn
from flux_memory.errors import InvalidInputError, InvalidTypeError

IAM_TOKEN: Final = (
    "db.example.com:5432/?Action=connect&DBUser=u&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=secret%2Fus"
    "&X-Amz-Expires=900&X-Amz-Security-Token=secret%2B&X-Amz-Signature=secret"
)
"""A temporary password of a cloud, as its tools print it."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without the variables of libpq, and with a user's name."""
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOGNAME", "me")
    return monkeypatch


SOCKETS: Final = [("", 5432)]
READ: Final[dict[str, tuple[list[tuple[str, int]], dict[str, Any]]]] = {
    "postgresql://user:secret@host:5432/database": (
        [("host", 5432)],
        {"user": "user", "password": "secret", "database": "database"},
    ),
    "postgres://user@host/database": ([("host", 5432)], {"user": "user", "database": "database"}),
    "postgresql://u:p%40ss%2Fword@h/d": ([("h", 5432)], {"user": "u", "password": "p@ss/word", "database": "d"}),
    "postgresql://u:a:b@h/d": ([("h", 5432)], {"user": "u", "password": "a:b", "database": "d"}),
    "postgresql://u:[a]@h/d": ([("h", 5432)], {"user": "u", "password": "[a]", "database": "d"}),
    "postgresql:///d?host=/run&user=u": ([("/run", 5432)], {"user": "u", "database": "d"}),
    "postgresql://u:p@/d?host=/tmp&port=5433": ([("/tmp", 5433)], {"user": "u", "password": "p", "database": "d"}),
    "postgresql://%2Ftmp:5433/d": ([("/tmp", 5433)], {"user": "me", "database": "d"}),
    "postgresql://one:1,two:2/d?target_session_attrs=read-write": (
        [("one", 1), ("two", 2)],
        {"user": "me", "database": "d", "dsn": "postgresql://?target_session_attrs=read-write"},
    ),
    "postgresql://one,two/d?port=1,2": ([("one", 1), ("two", 2)], {"user": "me", "database": "d"}),
    "postgresql://one:7,two/d": ([("one", 7), ("two", 5432)], {"user": "me", "database": "d"}),
    "postgresql://u@[::1]:5432/d?sslmode=verify-full&sslrootcert=/etc/ca.pem": (
        [("::1", 5432)],
        {"user": "u", "database": "d", "dsn": "postgresql://?sslmode=verify-full&sslrootcert=/etc/ca.pem"},
    ),
    "postgresql:///d?host=::1": ([("::1", 5432)], {"user": "me", "database": "d"}),
    "postgresql://": (SOCKETS, {"user": "me", "database": "me"}),
    "postgresql:///?port=7": ([("", 7)], {"user": "me", "database": "me"}),
    "postgresql://h?dbname=d&user=u%40t&password=a+b": (
        [("h", 5432)],
        {"user": "u@t", "password": "a+b", "database": "d"},
    ),
    "postgresql://h/d?connect_timeout=5": ([("h", 5432)], {"user": "me", "database": "d", "timeout": 5.0}),
    "postgresql://h/d?statement_cache_size=0": (
        [("h", 5432)],
        {"user": "me", "database": "d", "statement_cache_size": 0},
    ),
    "postgresql://h/d?prepared_statement_cache_size=0&application_name=a%20b&&sslmode=": (
        [("h", 5432)],
        {
            "user": "me",
            "database": "d",
            "statement_cache_size": 0,
            "dsn": "postgresql://?application_name=a%20b",
        },
    ),
    "postgresql://h/d?client_encoding=utf8": ([("h", 5432)], {"user": "me", "database": "d"}),
    "postgresql://h/d?sslmode=verify_full": (
        [("h", 5432)],
        {"user": "me", "database": "d", "dsn": "postgresql://?sslmode=verify-full"},
    ),
}
"""The addresses and the other arguments of the driver, by DSN."""


@pytest.mark.parametrize("dsn", READ)
def test_a_dsn_is_read_as_by_libpq(dsn: str) -> None:
    """TCP, Unix sockets, several hosts, IPv6, TLS, and parameters of other drivers."""
    addresses, arguments = READ[dsn]
    parsed = parse_dsn(dsn)
    assert (list(parsed.addresses), parsed.arguments) == (addresses, arguments)
    assert not {"host", "port"} & arguments.keys()


VARIABLES: Final[dict[str, tuple[str, dict[str, str], Any]]] = {
    "a port of Kubernetes, not needed": ("postgresql://u@h:7/d", {"PGPORT": "tcp://10.0.0.1:5432"}, [("h", 7)]),
    "a port beside the parameter": ("postgresql://u@h/d?port=7", {"PGPORT": "tcp://10.0.0.1:5432"}, [("h", 7)]),
    "a port beside two hosts": ("postgresql://a:1,b:2/d", {"PGPORT": "x"}, [("a", 1), ("b", 2)]),
    "a port": ("postgresql://u@h/d", {"PGPORT": "7"}, [("h", 7)]),
    "two ports": ("postgresql://a,b/d", {"PGPORT": "7,8"}, [("a", 7), ("b", 8)]),
    "no port": ("postgresql://u@h/d", {"PGPORT": ""}, [("h", 5432)]),
    "a host": ("postgresql:///d", {"PGHOST": "db"}, [("db", 5432)]),
    "a bare IPv6 host": ("postgresql:///d", {"PGHOST": "fe80::1%eth0"}, [("fe80::1%eth0", 5432)]),
    "a socket": ("postgresql:///d", {"PGHOST": "/run/pg", "PGPORT": "7"}, [("/run/pg", 7)]),
    "an empty host": ("postgresql:///d", {"PGHOST": ""}, SOCKETS),
    "a user": ("postgresql://h/d", {"PGUSER": "ann"}, {"user": "ann"}),
    "a user not needed": ("postgresql://u@h/d", {"PGUSER": "\udcff"}, {"user": "u"}),
    "a database": ("postgresql://u@h", {"PGDATABASE": "chat"}, {"database": "chat"}),
    "an empty database": ("postgresql://u@h", {"PGDATABASE": ""}, {"database": "u"}),
    "TLS": ("postgresql://u@h/d", {"PGSSLMODE": "require"}, {"dsn": "postgresql://?sslmode=require"}),
    "TLS not needed": (
        "postgresql://u@h/d?sslmode=prefer",
        {"PGSSLMODE": "x"},
        {"dsn": "postgresql://?sslmode=prefer"},
    ),
    "empty TLS": ("postgresql://u@h/d", {"PGSSLMODE": ""}, {"dsn": "postgresql://?sslmode=prefer"}),
    "an empty session": (
        "postgresql://u@h/d",
        {"PGTARGETSESSIONATTRS": ""},
        {"dsn": "postgresql://?target_session_attrs=any"},
    ),
    "a service not needed": ("postgresql://u@h/d", {"PGSERVICE": "prod"}, [("h", 5432)]),
}
"""A DSN, variables, and the resulting addresses or some of the resulting arguments."""


@pytest.mark.parametrize("world", VARIABLES)
def test_variables_complete_a_dsn(environment: pytest.MonkeyPatch, world: str) -> None:
    """As in libpq: the DSN overrides a variable, an empty one is unset, and an unneeded one may hold anything."""
    dsn, variables, expected = VARIABLES[world]
    for name, value in variables.items():
        environment.setenv(name, value)
    parsed = parse_dsn(dsn)
    if isinstance(expected, list):
        assert list(parsed.addresses) == expected
    else:
        assert {name: parsed.arguments.get(name) for name in expected} == expected


REFUSED_VARIABLES: Final = {
    "a port of Kubernetes": ({"PGPORT": "tcp://10.0.0.1:5432"}, "the variable PGPORT is not a port"),
    "a port that is a word": ({"PGPORT": "abc"}, "unset it, or write the port in the DSN"),
    "a port out of range": ({"PGPORT": "65536"}, "the variable PGPORT"),
    "too many ports": ({"PGPORT": "1,2,3"}, "the numbers of ports and hosts differ"),
    "an empty host in a list": (
        {"PGHOST": "one,"},
        "the variable PGHOST has an empty host name or an invalid port; correct it",
    ),
    "a host that is a URL": ({"PGHOST": "tcp://10.0.0.1:5432"}, "the variable PGHOST"),
    "a host that IDNA refuses": ({"PGHOST": f"{'a' * 64}.example"}, "the variable PGHOST has an invalid host name"),
    "a host that is not text": ({"PGHOST": "h\udcff"}, "the variable PGHOST has an invalid host name"),
    "a user that is not text": ({"PGUSER": "u\udcff"}, "the variable PGUSER has a lone surrogate"),
    "a database that is not text": ({"PGDATABASE": "d\udcff"}, "the variable PGDATABASE has a lone surrogate"),
    "a mode of TLS": ({"PGSSLMODE": "yes"}, "the variable PGSSLMODE is none of disable, allow"),
    "an attribute of the driver's class": ({"PGSSLMODE": "__class__"}, "the variable PGSSLMODE is none of"),
    "a version of TLS": ({"PGSSLMINPROTOCOLVERSION": "SSLv3"}, "PGSSLMINPROTOCOLVERSION is none of TLSv1, TLSv1.1"),
    "a negotiation": ({"PGSSLNEGOTIATION": "fast"}, "the variable PGSSLNEGOTIATION is none of postgres, direct"),
    "a session": ({"PGTARGETSESSIONATTRS": "master"}, "the variable PGTARGETSESSIONATTRS is none of any, primary"),
    "a library": ({"PGGSSLIB": "x"}, "the variable PGGSSLIB is none of gssapi, sspi"),
    "a service": ({"PGSERVICE": "prod"}, "service files are not read; write the host in the DSN, or unset it"),
}


@pytest.mark.parametrize("world", REFUSED_VARIABLES)
def test_a_wrong_variable_is_named(environment: pytest.MonkeyPatch, world: str) -> None:
    """The mistake is in the shell, so the message does not blame the DSN."""
    variables, says = REFUSED_VARIABLES[world]
    for name, value in variables.items():
        environment.setenv(name, value)
    dsn = "postgresql://" if {"PGHOST", "PGSERVICE"} & variables.keys() else "postgresql://h"
    with pytest.raises(InvalidInputError) as caught:
        parse_dsn(dsn)
    assert says in str(caught.value)
    assert not any(len(value) > 5 and value in str(caught.value) for value in variables.values())


@pytest.mark.parametrize(
    "raised", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username"), ImportError()]
)
def test_a_process_without_a_user_name_needs_one_in_the_dsn(environment: pytest.MonkeyPatch, raised: Exception) -> None:
    """A container may run as a user id without an entry in /etc/passwd."""

    def nameless() -> str:
        raise raised

    environment.setattr(getpass, "getuser", nameless)
    with pytest.raises(InvalidInputError, match="the DSN names no user, and the user of this process has no name"):
        parse_dsn("postgresql://h/d")
    assert parse_dsn("postgresql://u@h/d").arguments["user"] == "u"


@pytest.mark.parametrize(
    ("parameter", "advice"),
    [
        ("command_timeout=5", "give timeout= to the memory"),
        ("pool_size=5", "give max_size= to the memory"),
        ("min_size=5", "give min_size= to the memory"),
        ("keepalives=1", "operating system"),
        ("load_balance_hosts=random", "no load balancing"),
        ("service=prod", "name the host"),
        ("channel_binding=require", "sslmode=verify-full"),
        ("client_encoding=latin1", "the driver always uses UTF8"),
        ("client_encoding=auto", "the driver always uses UTF8"),
        ("hostaddr=10.0.0.1", "give the address as the host"),
        ("passwd=secret", "the password is the parameter 'password'"),
        ("pwd=secret", "the password is the parameter 'password'"),
        ("pgbouncer=true", "use statement_cache_size=0"),
        ("schema=chat", "use search_path"),
        ("ssl=true", "use sslmode=require"),
        ("replication=database", "a memory needs an ordinary connection"),
    ],
)
def test_a_parameter_without_effect_is_refused_with_advice(parameter: str, advice: str) -> None:
    """No parameter is ignored silently."""
    with pytest.raises(InvalidInputError, match=rf"parameter '{parameter.split('=', maxsplit=1)[0]}'.*{advice}"):
        parse_dsn(f"postgresql://h/d?{parameter}")


@pytest.mark.parametrize(
    "parameter", ["connect_timeout=soon", "connect_timeout=-1", "connect_timeout=nan", "connect_timeout=0"]
)
def test_an_invalid_number_is_refused(parameter: str) -> None:
    """A deadline is a positive number of seconds."""
    with pytest.raises(InvalidInputError, match="'connect_timeout' is not a number of seconds, more than 0"):
        parse_dsn(f"postgresql://h/d?{parameter}")


@pytest.mark.parametrize("size", ["-1", "many", "1.5"])
def test_an_invalid_cache_size_is_refused(size: str) -> None:
    """A cache size is an integer of 0 or more."""
    with pytest.raises(InvalidInputError, match="'statement_cache_size' is not a whole number, 0 or more"):
        parse_dsn(f"postgresql://h/d?statement_cache_size={size}")


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql+asyncpg://u:secret@h/d", "remove '+asyncpg': the driver is always asyncpg"),
        ("postgres+psycopg2://u:secret@h/d", "remove '+psycopg2'"),
        ("mysql://u:secret@h/d", "scheme 'mysql://'; only PostgreSQL is supported"),
        ("host=h password=secret", "is not a URL; write postgresql://"),
        ("", "is not a URL"),
        ("'postgresql://u:secret@h/d'", "begins or ends with a quote or a space; remove those around it"),
        ('"postgresql://u:secret@h/d"', "begins or ends with a quote"),
        (" postgresql://u:secret@h/d", "begins or ends with a quote or a space"),
        ("postgresql://u:secret@h/d ", "begins or ends with a quote or a space"),
        ("postgresql://u:secret@h/d'", "begins or ends with a quote or a space"),
        ("postgresql://u:secret@h/d\r", "a line break"),
        ("postgresql://u:secret:99/?a=b@host/d", "an unescaped '@'"),
        ("postgresql://u:secret:99/d", "an invalid port"),
        ("postgresql://u:99/?a=secret@host/d", "an unescaped '@'"),
        (f"postgresql://u:{IAM_TOKEN}@db.example.com:5432/d", "an unescaped '@'"),
        (f"postgresql://u@db.example.com/d?password={IAM_TOKEN}", "a parameter after its password"),
        (f"postgresql://u@db.example.com/d?user=u&password={IAM_TOKEN}&sslmode=require", "after its password"),
        ("postgresql://u@h/d?password=secret&secret=x", "a parameter after its password that may be a part of it"),
        ("postgresql://u@h/d?sslpassword=secret&secret=x&sslmode=require", "a parameter after its password"),
        ("postgresql://u@h/d?x-secret=1", "a parameter whose name no setting has"),
        ("postgresql://u:secret@h/d?port=abc", "parameter 'port' is not a port"),
        ("postgresql://u:secret@h/d?port=1,2", "the numbers of ports and hosts differ"),
        ("postgresql://u:secret@h:1/d?port=2", "ports in two places"),
        ("postgresql://u:secret@h/d?host=/tmp", "hosts in two places"),
        ("postgresql://u:secret@h/d?user=v", "its user in two places"),
        ("postgresql://u:secret@h/d?password=other", "its password in two places"),
        ("postgresql://u:secret@h/d?dbname=e", "its database in two places"),
        ("postgresql://u:secret@::1/d", "an IPv6 address without brackets"),
        ("postgresql://u:secret@fe80::1:5432/d", "an IPv6 address without brackets"),
        ("postgresql://u:secret@::1,::2/d", "an IPv6 address without brackets"),
        ("postgresql://u:secret@[h]/d", "not an IPv6 address"),
        ("postgresql://u:secret@[::1]x/d", "an invalid port"),
        ("postgresql://u:secret@a..b/d", "an invalid host name"),
        ("postgresql://u:secret%00@h/d", "the DSN's password has a NUL"),
        ("postgresql://u:secret%ff@h/d", "the DSN's password has percent escapes that are not UTF-8"),
        ("postgresql://u:secret@h/d?sslrootcert=%00", "the DSN's parameter has a NUL"),
        ("postgresql://u:secret@h/d?sslmode", "a parameter without a value"),
        ("postgresql://u:secret@h/d?sslmode=require;password=secret", "parameter 'sslmode' is none of"),
        ("postgresql://u:secret@h/d?target_session_attrs=master", "'target_session_attrs' is none of any"),
        ("postgresql://u:secret@h/d? password=secret", "a parameter whose name no setting has"),
        ("host=h password=secret options=http://x", "is not a URL"),
        ("postgresql://u:secret@h:port/d", "an invalid port"),
        ("postgresql://u:secret@h:99999/d", "an invalid port"),
        ("postgresql://u:secret@h:0/d", "an invalid port"),
        (f"postgresql://u:secret@h:{'9' * 5000}/d", "an invalid port"),
        ("postgresql://u:secret@h:5432,/d", "an empty host name"),
        ("postgresql://u:secret@[::1/d", "an invalid port"),
        ("postgresql://u:sec\nret@h/d", "a line break"),
        ("postgresql://u:secret\x00@h/d", "invisible character"),
        ("postgresql://u:secret\ud800@h/d", "invisible character"),
    ],
)
def test_a_wrong_dsn_is_refused_with_advice_and_without_its_password(dsn: str, says: str) -> None:
    """The message says what to write, and shows no part of the text that may be a password."""
    with pytest.raises(InvalidInputError) as caught:
        parse_dsn(dsn)
    assert says in str(caught.value)
    assert "secret" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "password",
    [
        "12/secret",
        "12#secret",
        "12?secret",
        "12/s@secret",
        "a:b/secret",
        "12?secret&x=y",
        "12/?port=1&secret=y",
        "12@secret",
    ],
)
def test_a_password_with_an_unescaped_character_is_refused(password: str) -> None:
    """Such a DSN would name another host or database; the message says how to escape the character."""
    with pytest.raises(InvalidInputError, match="write them as %2F") as caught:
        parse_dsn(f"postgresql://user:{password}@host/db")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("value", [None, b"postgresql://h/d", 5])
def test_a_dsn_of_another_type_is_a_type_error(value: object) -> None:
    """A DSN is a str; bytes are not decoded."""
    with pytest.raises(InvalidTypeError, match="dsn must be a str"):
        parse_dsn(value)


@given(
    st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["postgresql://", "postgres://u:qTok1q", ""])
)
def test_no_text_at_all_breaks_the_parser(text: str, start: str) -> None:
    """Any text is either accepted or refused with an error of the library, and can be masked."""
    mask_dsn(start + text)
    refusal = ""
    try:
        parse_dsn(start + text + "@h/d")
    except InvalidInputError as error:
        refusal = repr(error)
    assert "qTok1q" not in refusal


def test_the_first_host_goes_last() -> None:
    """When a host does not answer, the next one is tried first; the rest of the DSN stays."""
    parsed = parse_dsn("postgresql://u:p@one:5432,[::1]:5433,three/d?application_name=b")
    rotated: Dsn = parsed.rotated()
    assert rotated == parsed._replace(addresses=(("::1", 5433), ("three", 5432), ("one", 5432)))
    assert rotated.connecting()["host"] == ["::1", "three", "one"]
    assert rotated.connecting()["port"] == [5433, 5432, 5432]
    alone = parse_dsn("postgresql:///d")
    assert alone.rotated() == alone
    assert alone.connecting()["host"] is None
