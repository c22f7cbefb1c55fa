"""Fuzz targets for everything that takes input from outside; each is a hypothesis test without fixtures.

Any input may raise the library's errors only, must not hang, and must not touch rows that it does not name.
Hypothesis runs the targets in the suite; atheris, guided by coverage, runs them through `fuzz_one_input`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import original_application
from fuzz_inputs import (
    BYSTANDER,
    CELLS,
    DSN_PARTS,
    HOSTS,
    LOGINS,
    PASSWORD_FILES,
    QUERIES,
    VALUES,
    VARIABLES,
    WITH_SESSION,
    calls,
    cells,
    lines,
    texts,
    values,
)
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

HANG_SECONDS: Final = 20.0
"""Time after which a call counts as hung."""


@dataclass
class Place:
    """The directory, database, event loop and handles that the targets use."""

    directory: Path = Path()
    dsn: str = ""
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    memories: list[Memory] = field(default_factory=list)

    def open(self, directory: Path, dsn: str) -> None:
        """Open a handle on each backend, and create the bystander session in both."""
        self.directory, self.dsn, self.runner = directory, dsn, asyncio.Runner()
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.memories = [ConversationMemory(self.directory / "api.db"), PostgresConversationMemory(self.dsn)]
        for memory in self.memories:
            await memory.create_session("untouched", session_id=BYSTANDER)
            await memory.add_message(BYSTANDER, "user", "untouched")

    def close(self) -> None:
        """Close the handles and the event loop."""
        for memory in self.memories:
            self.runner.run(memory.close())
        self.runner.close()


place: Final = Place()
"""The caller of the targets opens it."""
tried: Counter[str] = Counter()
"""Number of inputs by target."""

OFTEN: Final = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
_SELDOM: Final = settings(OFTEN, max_examples=max(30, settings().max_examples // 10))
"""Fewer examples, for targets that start a process for each input."""


@OFTEN
@given(calls(), texts)
def public_api(call: tuple[str, dict[str, Any], bool], unknown: str) -> None:
    """Any value for any argument of any method: both backends give the same answer."""
    tried["public_api"] += 1
    method, given_, exists = call
    assume(BYSTANDER not in (unknown, given_.get("session_id")))
    answers = {}
    for memory in place.memories:
        answer = place.runner.run(_bounded(_one_call(memory, method, given_, exists, unknown)))
        answers[type(memory).__name__] = answer
    assert len(set(answers.values())) == 1, answers


async def _one_call(memory: Memory, method: str, given_: dict[str, Any], exists: bool, unknown: str) -> str:
    """Make one call and return its outcome."""
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
    async with asyncio.timeout(HANG_SECONDS):
        return await work


@OFTEN
@given(st.lists(st.one_of(st.sampled_from(DSN_PARTS), texts), max_size=12), st.one_of(st.none(), values))
def dsn_parser(pieces: list[str], other: Any) -> None:
    """Texts that resemble DSNs and texts that do not: accepted or refused, and a password never shows."""
    tried["dsn_parser"] += 1
    written = "".join(pieces)
    with suppress(FluxMemoryError):
        parse_dsn(written if other is None else other)
    # Hypothesis also draws constants from the surrounding code.
    assume(MARKER not in written)
    mask_dsn(written)
    with_password = f"postgresql://user:{MARKER}@{written}"
    assert MARKER not in mask_dsn(with_password)
    try:
        parsed = parse_dsn(with_password)
    except InvalidInputError as error:
        assert MARKER not in f"{error} {error!r}"  # noqa: PT017 - a DSN may also be accepted
    else:
        assert MARKER not in repr(parsed)


@OFTEN
@given(
    *map(st.sampled_from, (LOGINS, HOSTS)),
    st.lists(st.sampled_from(QUERIES), max_size=4).map("&".join),
    st.dictionaries(st.sampled_from(VARIABLES), st.sampled_from(VALUES) | texts, max_size=4),
    st.sampled_from(PASSWORD_FILES),
    st.booleans(),
)
def dsn_and_environment(
    login: str, hosts: str, query: str, environment: dict[str, str], password_file: str, nameless: bool
) -> None:
    """Any DSN with any variables, to a closed port, raises the library's errors only, without a part of a password."""
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
    before = {name: value for name, value in os.environ.items() if name.startswith("PG") or name in VARIABLES}
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
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


async def _refused(dsn: str) -> None:
    """Use an unreachable memory, and search its messages for the password."""
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
    """Any environment and any `.env` file: valid settings, or an error that says what is wrong with them."""
    tried["configuration"] += 1
    home = Path.cwd()
    (place.directory / ".env").write_bytes(name.encode() + b"=" + file)
    before = dict(os.environ)
    os.chdir(place.directory)
    try:
        for key, value in environment.items():
            with suppress(ValueError):  # NUL, which an environment cannot hold
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


def _original() -> bytes:
    path = place.directory / "original.db"
    if not path.exists():
        original_application.make_file_with_data(path, generation=2)
    return path.read_bytes()


@_SELDOM
@given(
    st.lists(st.tuples(st.sampled_from(CELLS), cells), max_size=4),
    st.lists(
        st.tuples(st.one_of(st.integers(0, 120), st.integers(0, 2**15)), st.binary(min_size=1, max_size=8)), max_size=4
    ),
    st.one_of(st.none(), st.none(), st.integers(0, 2**15)),
)
def legacy_file(
    written: list[tuple[tuple[str, str], Any]], overwritten: list[tuple[int, bytes]], length: int | None
) -> None:
    """An original file with odd values and damaged bytes: read in a dry run, then adopted in place."""
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


@_SELDOM
@given(st.lists(lines, max_size=5))
def quarantine_file(written: list[bytes]) -> None:
    """A quarantine file after arbitrary edits: accepted by a dry run, or refused."""
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
