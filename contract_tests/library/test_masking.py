"""Masks: only the known harmless parts of a DSN are shown, wherever it stands."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_memory.dsn import mask_dsn
from flux_memory.masking import mask_dsns

SPECIAL = st.text(st.sampled_from("/@?#:&=%+,;[]$ '\"\\é漢") | st.characters(codec="utf-8"), max_size=3)
TOKENS = ("qTok1q", "qTok2q", "qTok3q")
SHOWN: Final = {
    "postgresql://user:secret@host:5432/db?sslmode=require": "postgresql://user:***@host:5432/db?sslmode=require",
    "postgresql://user@host:5432/db": "postgresql://user@host:5432/db",
    "postgresql://user:@host/db": "postgresql://user:***@host/db",
    "postgresql://u%40tenant@h/d-b_1?application_name=a.b": "postgresql://u%40tenant@h/d-b_1?application_name=a.b",
    "postgresql:///db?host=/tmp&password=secret&port=1": "postgresql:///db?host=/tmp&password=***&port=1",
    "postgresql://h/?connect_timeout=5": "postgresql://h/?connect_timeout=5",
    "postgresql://h": "postgresql://h",
    "postgresql://h/db?PassWord=secret": "postgresql://h/db?***",
    "postgresql://h/db?p%61ssword=secret": "postgresql://h/db?password=***",
    "postgresql://h/db?password=": "postgresql://h/db?password=***",
    "postgresql://h/db?sslpassword=ab&passfile=/x": "postgresql://h/db?sslpassword=***&passfile=***",
    "postgresql://u@h:5432/db?password=a@b": "postgresql://u@h:5432/db?password=***",
    "postgresql://u:p@[::1]:5432/db": "postgresql://u:***@[::1]:5432/db",
    "postgresql://u:p@one:1,two:2/db": "postgresql://u:***@one:1,two:2/db",
    # Mistakes, after which a secret stands in another place.
    "postgresql://u:a?password=b@h/db": "postgresql://***?password=***",
    "postgresql://u:secret/x@h/db": "postgresql://***",
    "postgresql://u@secret@h/db": "postgresql://***",
    "postgresql://u:secret": "postgresql://***",
    "postgresql://user;secret@h/db": "postgresql://***@h/db",
    "postgresql://user%3Asecret@h/db": "postgresql://***@h/db",
    "postgresql://user,secret@h/db": "postgresql://***@h/db",
    "postgresql://user%20secret@h/db": "postgresql://***@h/db",
    "postgresql://u@h/db;password=secret": "postgresql://u@h/***",
    "postgresql://u@h/db&password=secret": "postgresql://u@h/***",
    "postgresql://u@h/db?sslmode=require;password=secret": "postgresql://u@h/db?sslmode=***",
    "postgresql://u@h/db?port=1;password=secret": "postgresql://u@h/db?port=***",
    "postgresql://u@h/db?application_name=x%20password=secret": "postgresql://u@h/db?application_name=***",
    "postgresql://u@h/db?options=-c%20x.key=secret": "postgresql://u@h/db?***",
    **{
        f"postgresql://u@h/db?sslmode=require&{name}=secret": "postgresql://u@h/db?sslmode=require&***"
        for name in ("pass", "passwd", "pwd", "pgpassword", "PGPASSWORD", " password", "password ", "passwo", "token")
    },
    "host=h password=secret": "***",
    "user:secret@host postgresql://x": "***",
    "mysql://u:secret@h/d": "***",
}


@pytest.mark.parametrize("dsn", SHOWN)
def test_the_mask_shows_only_harmless_parts(dsn: str) -> None:
    """The mask shows harmless parts only: any other part may be a password in a wrong place."""
    assert mask_dsn(dsn) == SHOWN[dsn]
    assert "secret" not in mask_dsn(dsn)


PROSE: Final = {
    "at postgresql://u:secret@h/d: refused": "at postgresql://u:***@h/d: refused",
    "(postgres://u:secret@h:1/d), then": "(postgres://u:***@h:1/d), then",
    "'postgresql://u@h/d?passwd=secret'.": "'postgresql://u@h/d?***'.",
    "postgresql://u:secret@h/d postgresql://v;secret@h": "postgresql://u:***@h/d postgresql://***@h",
    "POSTGRESQL://u:secret@h/d": "***",
    "at postgresql://u:***@h/d?***: refused": "at postgresql://u:***@h/d?***: refused",
    "postgresql:// alone": "postgresql:// alone",
}


@pytest.mark.parametrize("text", PROSE)
def test_a_dsn_in_a_text_is_masked_where_it_stands(text: str) -> None:
    """Reports quote reasons of failures; a masked DSN stays as it is."""
    assert mask_dsns(text) == PROSE[text]


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
