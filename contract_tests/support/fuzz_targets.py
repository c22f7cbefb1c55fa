"""What is fuzzed: everything that takes input from outside. Each target is a hypothesis test without fixtures.

Whatever comes in: no error but the library's own, no hang, and nothing that was asked of one row touches another.
Hypothesis runs them in the suite, and atheris, which is guided by coverage, through `fuzz_one_input`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import original_application
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from secret_watch import MARKER

from flux_memory import (
    ConversationMemory,
    FluxMemoryError,
    InvalidInputError,
    Memory,
    PostgresConversationMemory,
)
from flux_memory.dsn import mask_dsn, parse_dsn
from flux_memory.settings import load_settings
from flux_memory.transfer import Mode, Plan, migrate

SECONDS: Final = 20.0
"""Longer than that is a hang."""
BYSTANDER: Final = "bystander"
"""A session that no call names."""


@dataclass
class Place:
    """Where the targets work; an event loop and handles that live as long."""

    directory: Path = Path()
    dsn: str = ""
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    memories: list[Memory] = field(default_factory=list)

    def open(self, directory: Path, dsn: str) -> None:
        """Open a handle on each backend, with the bystander in both."""
        self.directory, self.dsn, self.runner = directory, dsn, asyncio.Runner()
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.memories = [ConversationMemory(self.directory / "api.db"), PostgresConversationMemory(self.dsn)]
        for memory in self.memories:
            await memory.create_session("untouched", session_id=BYSTANDER)
            await memory.add_message(BYSTANDER, "user", "untouched")

    def close(self) -> None:
        """Close the handles and the loop."""
        for memory in self.memories:
            self.runner.run(memory.close())
        self.runner.close()


place: Final = Place()
"""Opened by whoever runs the targets."""
tried: Counter[str] = Counter()
"""Inputs that each target got."""

OFTEN: Final = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
_SELDOM: Final = settings(OFTEN, max_examples=max(30, settings().max_examples // 10))
"""For targets that start a process for each input."""

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
# Surrogates too, which are no text that can be stored.
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


def _batch() -> st.SearchStrategy[Any]:
    entry = st.dictionaries(
        st.sampled_from(["role", "content", "metadata", "message_id", "x"]), arguments, min_size=1, max_size=5
    )
    return st.one_of(arguments, st.lists(st.one_of(entry, entry, arguments), max_size=4))


CALLS: Final = {
    "create_session": {"title": arguments, "metadata": values, "session_id": arguments, "user_id": arguments},
    "add_message": {"role": arguments, "content": arguments, "metadata": values, "message_id": arguments},
    "add_messages": {"messages": _batch()},
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
    """A method, its arguments, and whether the session it names is one that exists."""
    method = draw(st.sampled_from(sorted(CALLS)))
    given_ = {
        name: draw(strategy)
        for name, strategy in CALLS[method].items()
        if name in REQUIRED.get(method, ()) or draw(st.booleans())
    }
    return method, given_, draw(st.booleans())


@OFTEN
@given(calls(), texts)
def public_api(call: tuple[str, dict[str, Any], bool], unknown: str) -> None:
    """Any value for any argument of any method, on both backends, which answer alike."""
    tried["public_api"] += 1
    method, given_, exists = call
    assume(BYSTANDER not in (unknown, given_.get("session_id")))
    answers = {}
    for memory in place.memories:
        answer = place.runner.run(_bounded(_one_call(memory, method, given_, exists, unknown)))
        answers[type(memory).__name__] = answer
    assert len(set(answers.values())) == 1, answers


async def _one_call(memory: Memory, method: str, given_: dict[str, Any], exists: bool, unknown: str) -> str:
    """Make one call and return how it ended."""
    own = await memory.create_session()
    session = ((own if exists else unknown),) if method in WITH_SESSION else ()
    made = own
    try:
        answer = await getattr(memory, method)(*session, **given_)
        made = answer if method == "create_session" else own
        outcome = "none" if answer is None else type(answer).__name__
        if method == "add_message":
            (stored,) = await memory.get_history(own)
            assert (stored["role"], stored["content"]) == (given_["role"], given_["content"])
        elif method == "create_session":
            found = await memory.get_session(made)
            assert found is not None
            assert found["title"] == given_.get("title", "")
    except FluxMemoryError as error:
        outcome = type(error).__name__
    for each in {own, made}:
        await memory.delete_session(each)
    assert await memory.count_sessions() == 1
    history = await memory.get_history(BYSTANDER)
    assert [message["content"] for message in history] == ["untouched"]
    return outcome


async def _bounded(work: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await work


_PIECES: Final = (
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


@OFTEN
@given(st.lists(st.one_of(st.sampled_from(_PIECES), texts), max_size=12), st.one_of(st.none(), values))
def dsn_parser(pieces: list[str], other: Any) -> None:
    """Texts like DSNs and unlike them: read or refused, and a password in its place is never shown."""
    tried["dsn_parser"] += 1
    written = "".join(pieces)
    with suppress(FluxMemoryError):
        parse_dsn(written if other is None else other)
    # Hypothesis takes constants from the code around, too.
    assume(MARKER not in written)
    mask_dsn(written)
    with_password = f"postgresql://user:{MARKER}@{written}"
    assert MARKER not in mask_dsn(with_password)
    try:
        parsed = parse_dsn(with_password)
    except InvalidInputError as error:
        assert MARKER not in f"{error} {error!r}"  # noqa: PT017 - taking it is fine, too
    else:
        assert MARKER not in repr(parsed)


_VARIABLES: Final = (
    *("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE", "HOME"),
    *("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGSSLNEGOTIATION", "PGTARGETSESSIONATTRS"),
    *("PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGKRBSRVNAME", "PGGSSLIB", "LOGNAME"),
)
_VALUES: Final = (
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
_PASSWORD_FILES: Final = (
    *("", f"*:*:*:*:{MARKER}", f"*:*:*:{MARKER}", MARKER, f"#\n*:*:*:*:{MARKER}\n{MARKER}", f"{MARKER}\udcff"),
    f"127.0.0.1:1:d:u:{MARKER}:{MARKER}",
)
_LOGINS: Final = (
    "",
    "u@",
    f"u:{MARKER}@",
    f"u:{MARKER}/",
    f"u:{MARKER}?",
    f"u:{MARKER}",
    f"u;{MARKER}@",
    f"u%3A{MARKER}@",
)
_HOSTS: Final = (
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
_QUERIES: Final = (
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


@OFTEN
@given(
    *map(st.sampled_from, (_LOGINS, _HOSTS)),
    st.lists(st.sampled_from(_QUERIES), max_size=4).map("&".join),
    st.dictionaries(st.sampled_from(_VARIABLES), st.sampled_from(_VALUES) | texts, max_size=4),
    st.sampled_from(_PASSWORD_FILES),
    st.booleans(),
)
def dsn_and_environment(
    login: str, hosts: str, query: str, environment: dict[str, str], password_file: str, nameless: bool
) -> None:
    """Any DSN beside any variables, to a port at which nothing listens: an error of ours, and no part of a password."""
    tried["dsn_and_environment"] += 1
    assume(MARKER not in "".join(environment.values()))
    # No name is looked up.
    assume(
        environment.get("PGHOST", "") in {"", "/nowhere", "::1", "[::1]:1", "127.0.0.1", "a..b", "tcp://10.0.0.1:5432"}
    )
    file = place.directory / "passwords"
    file.write_bytes(password_file.encode(errors="surrogateescape"))
    file.chmod(0o600)
    dsn = f"postgresql://{login}{hosts}/d{'?' * bool(query)}{query}".replace("FILE", str(file))
    before = {name: value for name, value in os.environ.items() if name.startswith("PG") or name in _VARIABLES}
    for name in before:
        del os.environ[name]
    names = {} if nameless else {"LOGNAME": "u"}
    try:
        # Closed ports, unless a variable says otherwise.
        for name, value in {
            "PGPORT": "1",
            "PGPASSWORD": MARKER,
            "PGPASSFILE": str(file),
            **names,
            **environment,
        }.items():
            with suppress(ValueError):  # NUL, which no environment can hold
                os.environ[name] = value.replace("FILE", str(file))
        if not password_file:
            os.environ.pop("PGPASSFILE", None)
        elif environment.get("PGPASSWORD") is None:
            os.environ.pop("PGPASSWORD", None)
        place.runner.run(_bounded(_refused(dsn)))
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


async def _refused(dsn: str) -> None:
    """Use a memory that cannot be reached, and look at all that it says."""
    said = [mask_dsn(dsn)]
    try:
        async with PostgresConversationMemory(dsn, timeout=0.05) as memory:
            said.append(repr(memory))
            await memory.count_sessions()
    except FluxMemoryError as error:
        said += [str(error), repr(error)]
        said += [f"{cause} {cause!r}" for cause in (error.__cause__, error.__context__) if cause is not None]
    assert MARKER not in "".join(said), dsn


_NAMES: Final = ("DATABASE_BACKEND", "DATABASE_URL", "POSTGRES_DSN")


@OFTEN
@given(
    st.dictionaries(st.sampled_from([*_NAMES, *(f"FLUX_MEMORY_{name}" for name in _NAMES)]), texts),
    st.one_of(st.binary(max_size=200), texts.map(lambda text: text.encode(errors="surrogatepass"))),
    st.sampled_from(_NAMES),
)
def configuration(environment: dict[str, str], file: bytes, name: str) -> None:
    """Any environment and any `.env`: settings, or an error that says what is wrong with them."""
    tried["configuration"] += 1
    home = Path.cwd()
    (place.directory / ".env").write_bytes(name.encode() + b"=" + file)
    before = dict(os.environ)
    os.chdir(place.directory)
    try:
        for key, value in environment.items():
            with suppress(ValueError):  # NUL, which no environment can hold
                os.environ[key] = value
        with suppress(FluxMemoryError):
            found = load_settings()
            ConversationMemory(found.sqlite_path)
        with suppress(FluxMemoryError):
            PostgresConversationMemory(load_settings().require_postgres_dsn())
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(before)
        (place.directory / ".env").unlink()


_CELLS: Final = [
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


def _original() -> bytes:
    path = place.directory / "original.db"
    if not path.exists():
        original_application.make_file_with_data(path, generation=2)
    return path.read_bytes()


@_SELDOM
@given(
    st.lists(st.tuples(st.sampled_from(_CELLS), cells), max_size=4),
    st.lists(
        st.tuples(st.one_of(st.integers(0, 120), st.integers(0, 2**15)), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    st.one_of(st.none(), st.none(), st.integers(0, 2**15)),
)
def legacy_file(
    written: list[tuple[tuple[str, str], Any]], overwritten: list[tuple[int, bytes]], length: int | None
) -> None:
    """An original application's file with odd values and damaged bytes: read by a dry run, then adopted in place."""
    tried["legacy_file"] += 1
    path = place.directory / "legacy.db"
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(_original())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (table, column), value in written:
            with suppress(sqlite3.IntegrityError):
                db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = 1", (value,))
    content = bytearray(path.read_bytes())
    for offset, damage in overwritten:
        content[offset : offset + len(damage)] = damage
    path.write_bytes(content[:length])
    before = path.read_bytes()
    with suppress(FluxMemoryError):
        place.runner.run(_bounded(migrate(Plan(sqlite_path=path, postgres_dsn=place.dsn, mode=Mode.PREFLIGHT))))
    assert path.read_bytes() == before
    place.runner.run(_bounded(_adopt(path)))


async def _adopt(path: Path) -> None:
    async with ConversationMemory(path, timeout=5) as memory:
        with suppress(FluxMemoryError):
            session = await memory.create_session()
            await memory.add_message(session, "user", "one")
            for row in await memory.get_sessions(None):
                await memory.get_history(row["id"])


_OBJECT: Final = st.sampled_from([[], "", 0, None, {}])
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
            "row": _OBJECT
            | st.dictionaries(
                st.sampled_from(sorted({name for _, name in _CELLS} | {"x"})),
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
            "session": _OBJECT | st.dictionaries(st.sampled_from(["id", "title", "metadata"]), st.text(max_size=20))
        },
    ).map(lambda value: json.dumps(value).encode()),
)


@_SELDOM
@given(st.lists(lines, max_size=5))
def quarantine_file(written: list[bytes]) -> None:
    """A quarantine file that people, or something else, have edited: loaded as far as a dry run goes, or refused."""
    tried["quarantine_file"] += 1
    path = place.directory / "quarantine.jsonl"
    path.write_bytes(b"\n".join(written))
    with suppress(FluxMemoryError):
        place.runner.run(
            _bounded(migrate(Plan(sqlite_path=path, postgres_dsn=place.dsn, mode=Mode.PREFLIGHT, retry=True)))
        )


TARGETS: Final[dict[str, Callable[[], None]]] = {
    target.__name__: target
    for target in (public_api, dsn_parser, dsn_and_environment, configuration, legacy_file, quarantine_file)
}
