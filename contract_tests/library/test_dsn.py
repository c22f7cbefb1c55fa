"""Tests DSNs: the accepted ones, the refused ones with their reasons, and that no password is ever shown."""

from __future__ import annotations

import traceback
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_memory.dsn import mask_dsn, parse_dsn, rotate_hosts
from flux_memory.errors import InvalidInputError, InvalidTypeError

SPECIAL = st.text(st.sampled_from("/@?#:&=%+,;[]$ '\"\\é漢") | st.characters(codec="utf-8"), max_size=3)
TOKENS = ("qTok1q", "qTok2q", "qTok3q")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:secret@host:5432/database",
        "postgres://user@host/database",
        "postgresql://user:p%40ss%2Fword@host/database",
        "postgresql:///database?host=/var/run/postgresql&user=me",
        "postgresql://user:secret@/database?host=/tmp&port=5433",
        "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql://u:p@[::1]:5432/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://",
    ],
)
def test_a_valid_dsn_passes_unchanged(dsn: str) -> None:
    """A valid DSN reaches the driver unchanged: TCP, Unix sockets, several hosts, IPv6, TLS."""
    url, arguments = parse_dsn(dsn)
    assert url == dsn
    assert arguments == {}


@pytest.mark.parametrize(
    ("query", "arguments", "left"),
    [
        ("connect_timeout=5", {"timeout": 5.0}, ""),
        ("statement_cache_size=0", {"statement_cache_size": 0}, ""),
        (
            "prepared_statement_cache_size=0&application_name=a%20b",
            {"statement_cache_size": 0},
            "?application_name=a%20b",
        ),
    ],
)
def test_parameters_of_other_drivers_become_arguments(query: str, arguments: dict[str, float], left: str) -> None:
    """Parameters that the server would refuse are translated if the library has an equivalent."""
    assert parse_dsn(f"postgresql://h/d?{query}") == (f"postgresql://h/d{left}", arguments)


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
        ("'postgresql://u:secret@h/d'", "begins with a quote or a space; remove those around it"),
        ('"postgresql://u:secret@h/d"', "begins with a quote"),
        (" postgresql://u:secret@h/d", "begins with a quote or a space"),
        ("host=h password=secret options=http://x", "is not a URL"),
        ("postgresql://u:secret@h:port/d", "an invalid port"),
        ("postgresql://u:secret@h:99999/d", "an invalid port"),
        ("postgresql://u:secret@h:0/d", "an invalid port"),
        (f"postgresql://u:secret@h:{'9' * 5000}/d", "an invalid port"),
        ("postgresql://u:secret@h:5432,/d", "an empty host name"),
        ("postgresql://u:secret@[::1/d", "the DSN cannot be read"),
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
        "sec[ret",
        "sec]ret[",
        "12/s@secret",
        "se\u2100cret",
        "a:b/secret",
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


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://user:secret@host:5432/db?sslmode=require", "postgresql://user:***@host:5432/db?sslmode=require"),
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("postgresql://user:@host/db", "postgresql://user:***@host/db"),
        ("postgresql:///db?host=/tmp&password=secret&port=1", "postgresql:///db?host=/tmp&password=***&port=1"),
        ("postgresql://h/db?PassWord=secret", "postgresql://h/db?PassWord=***"),
        ("postgresql://h/db?p%61ssword=secret", "postgresql://h/db?p%61ssword=***"),
        ("postgresql://h/db?password=", "postgresql://h/db?password=***"),
        ("postgresql://h/db?sslpassword=a#b&passfile=/x", "postgresql://h/db?sslpassword=***&passfile=***"),
        ("postgresql://u@h:5432/db?password=a@b", "postgresql://u@h:***"),
        ("postgresql://u:a?password=b@h/db", "postgresql://u:***"),
        ("postgresql://u:p@[::1]:5432/db", "postgresql://u:***@[::1]:5432/db"),
        ("postgresql://u:p@one:1,two:2/db", "postgresql://u:***@one:1,two:2/db"),
        ("host=h password=secret", "***"),
        ("user:secret@host postgresql://x", "***"),
    ],
)
def test_the_mask_shows_a_dsn_without_its_password(dsn: str, shown: str) -> None:
    """Everything that helps to find a mistake is shown, and no password; in doubt the mask hides more."""
    assert mask_dsn(dsn) == shown


@given(
    st.lists(SPECIAL, min_size=len(TOKENS) + 1, max_size=len(TOKENS) + 1),
    st.booleans(),
    st.sampled_from(["", "?sslmode=require", "?user=a@b"]),
)
def test_no_part_of_a_password_is_shown(between: list[str], escaped: bool, query: str) -> None:
    """No piece of a password gets through the mask, with any characters, raw or escaped."""
    password = between[0] + "".join(token + special for token, special in zip(TOKENS, between[1:], strict=True))
    written = quote(password, safe="") if escaped else password
    shown = mask_dsn(f"postgresql://user:{written}@host:5432/db{query}")
    assert not any(token in shown for token in TOKENS)
    shown = mask_dsn(
        f"postgresql://user@host:5432/db{query or '?a=b'}&password={quote(password, safe='@:/?#=')}&port=1"
    )
    assert not any(token in shown for token in TOKENS)


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


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@one:5432,two:5433,three/d?a=b", "postgresql://u:p@two:5433,three,one:5432/d?a=b"),
        ("postgresql://one,[::1]:5433", "postgresql://[::1]:5433,one"),
        ("postgresql://u@one?host=/run", "postgresql://u@one?host=/run"),
        ("postgresql:///d?host=one,two", "postgresql:///d?host=one,two"),
    ],
)
def test_the_first_host_goes_last(dsn: str, expected: str) -> None:
    """When a host does not answer, the next one is tried first; the rest of the DSN stays."""
    assert rotate_hosts(dsn) == expected
