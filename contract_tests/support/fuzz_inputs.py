"""Hypothesis strategies for the fuzz targets: texts, JSON values, calls, parts of DSNs, cells and quarantine lines."""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import strategies as st
from secret_watch import MARKER

BYSTANDER: Final = "bystander"
"""The id of a session that no generated call names."""
NASTY: Final = (
    *("", "\x00", "\ud800", "'; DROP TABLE messages; --", "' OR '1'='1", "$1", "?1", "%s", ":session_id", "{}", "null"),
    *(
        "%(x)s",
        "{0.__class__}",
        "\\x00",
        "\ufeff",
        "e\u0301",
        "\u202e",
        "🏳️‍🌈",
        "a" * 37,
        BYSTANDER + "\x00",
        "\r\n",
        "\\",
    ),
    *("COPY messages TO PROGRAM 'id'", "; SELECT pg_sleep(60); --", "ATTACH DATABASE '/tmp/x' AS x", "../../x", "~"),
)
# Including lone surrogates, which cannot be stored.
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=()), max_size=60))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=20))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(texts, st.integers(), st.none()), inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(st.integers(), max_size=2),
    ),
    max_leaves=12,
)
arguments = st.one_of(texts, texts, values)


def batches() -> st.SearchStrategy[Any]:
    entry = st.dictionaries(
        st.sampled_from(["role", "content", "metadata", "message_id", "x"]), arguments, min_size=1, max_size=5
    )
    return st.one_of(arguments, st.lists(st.one_of(entry, entry, arguments), max_size=4))


CALLS: Final = {
    "create_session": {"title": arguments, "metadata": values, "session_id": arguments, "user_id": arguments},
    "add_message": {"role": arguments, "content": arguments, "metadata": values, "message_id": arguments},
    "add_messages": {"messages": batches()},
    "get_history": {"limit": arguments, "before": arguments},
    "get_sessions": {"limit": arguments, "offset": arguments, "user_id": arguments, "metadata": values},
    "get_session": {},
    "update_session_title": {"title": arguments},
    "delete_session": {},
}
WITH_SESSION: Final = frozenset(CALLS) - {"create_session", "get_sessions"}
REQUIRED: Final = {
    "add_message": ("role", "content"),
    "add_messages": ("messages",),
    "update_session_title": ("title",),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], bool]:
    """A method, its arguments, and whether the session it names exists."""
    method = draw(st.sampled_from(sorted(CALLS)))
    given_ = {
        name: draw(strategy)
        for name, strategy in CALLS[method].items()
        if name in REQUIRED.get(method, ()) or draw(st.booleans())
    }
    return method, given_, draw(st.booleans())


DSN_PARTS: Final = (
    *(
        "postgresql://",
        "postgres://",
        "mysql://",
        "postgresql+asyncpg://",
        "://",
        "@",
        ":",
        "/",
        "?",
        "#",
        "&",
        "=",
        ",",
    ),
    *(
        "%40",
        "%",
        "%zz",
        "[::1]",
        "[",
        "]",
        "user",
        "host",
        "5432",
        "99999",
        "-1",
        "db",
        " ",
        "\n",
        "\x00",
        "ünï",
        "\ud800",
    ),
    *("sslmode=", "verify-full", "connect_timeout=", "nan", "password=", "statement_cache_size=", "options=-c%20x=1"),
)
CELLS: Final = [
    *(("sessions", name) for name in ("id", "title", "created_at", "updated_at", "metadata", "user_id")),
    *(("messages", name) for name in ("id", "session_id", "role", "content", "metadata", "created_at")),
]
cells = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=20),
    st.text(max_size=30),
    st.sampled_from(["2026-02-30T00:00:00", "0000", "9999-12-31T23:59:59.999999-23:59", "1e999", '{"a":' * 200, "[]"]),
)
ODD_OBJECTS: Final = st.sampled_from([[], "", 0, None, {}])
lines = st.one_of(
    st.just(b"[" * 100_000),
    st.text(st.characters(exclude_categories=()), max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=40),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["table", "row", "session", "problems", "id", "title", "base64", "float", "metadata"]),
                inner,
            ),
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {
            "table": st.sampled_from(["sessions", "messages", "x"]),
            "row": ODD_OBJECTS
            | st.dictionaries(
                st.sampled_from(sorted({name for _, name in CELLS} | {"x"})),
                st.one_of(
                    cells.filter(lambda cell: not isinstance(cell, bytes)),
                    st.integers(-(2**70), 2**70),
                    st.dictionaries(
                        st.sampled_from(["base64", "text_base64", "float", "x"]), st.text(max_size=8), max_size=2
                    ),
                ),
            ),
        },
        optional={
            "session": ODD_OBJECTS | st.dictionaries(st.sampled_from(["id", "title", "metadata"]), st.text(max_size=20))
        },
    ).map(lambda value: json.dumps(value).encode()),
)

VARIABLES: Final = (
    *("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE", "HOME"),
    *("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS"),
    *("PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGKRBSRVNAME", "PGGSSLIB", "LOGNAME"),
)
VALUES: Final = (
    *(
        "",
        "5432",
        "1",
        "1,1",
        "abc",
        "0",
        "tcp://10.0.0.1:5432",
        "/",
        "/nowhere",
        "::1",
        "[::1]:1",
        "127.0.0.1",
        "a..b",
    ),
    *("require", "prefer", "disable", "verify-full", "allow", "__class__", "any", "primary", "TLSv1.2", "SSLv3"),
    *("direct", "postgres", "gssapi", "sspi", "\udcff", "x" * 70, "a:b@c", ".", __file__, "FILE", "~"),
)
PASSWORD_FILES: Final = (
    *("", f"*:*:*:*:{MARKER}", f"*:*:*:{MARKER}", MARKER, f"#\n*:*:*:*:{MARKER}\n{MARKER}", f"{MARKER}\udcff"),
    f"127.0.0.1:1:d:u:{MARKER}:{MARKER}",
)
LOGINS: Final = (
    "",
    "u@",
    f"u:{MARKER}@",
    f"u:{MARKER}/",
    f"u:{MARKER}?",
    f"u:{MARKER}",
    f"u;{MARKER}@",
    f"u%3A{MARKER}@",
)
HOSTS: Final = (
    "127.0.0.1:1",
    "127.0.0.1",
    "127.0.0.1:1,[::1]:1",
    "::1",
    "[::1]",
    "h:x",
    "",
    "%2Fnowhere",
    "a..b",
    ":1",
)
QUERIES: Final = (
    *(
        "port=1",
        "port=abc",
        "host=127.0.0.1",
        "host=::1",
        "user=u",
        f"password={MARKER}",
        f"passwd={MARKER}",
        "user=%ff",
    ),
    *(
        "sslmode=require",
        "sslmode=x",
        f"sslmode=require;password={MARKER}",
        "sslrootcert=/nowhere",
        "sslcert=/",
        "a=b@h",
    ),
    *("target_session_attrs=any", "target_session_attrs=x", "connect_timeout=1", "passfile=/nowhere", "passfile=FILE"),
    *(
        "sslkey=%00",
        f"sslpassword={MARKER}",
        f"X-Amz-Signature={MARKER}",
        f"{MARKER}=x",
        MARKER,
        "gsslib=x",
        "krbsrvname=x",
    ),
    *("sslnegotiation=direct", "ssl_min_protocol_version=TLSv1.3", "ssl_max_protocol_version=TLSv1.2", "=", "&", "#"),
)
