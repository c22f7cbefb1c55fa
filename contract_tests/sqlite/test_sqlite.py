"""Tests the file of the SQLite backend: its pragmas, its permissions, and paths that cannot be used."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ordinary_user import become_ordinary_user
from raw_sqlite import run_on_worker
from unusable_paths import make_directory, make_file_as_parent, write_notes

from flux_memory import ConversationMemory
from flux_memory.backends.sqlite import opening
from flux_memory.errors import (
    BackendUnavailableError,
    FluxMemoryError,
    InvalidInputError,
    SchemaError,
)


@pytest.mark.asyncio
@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)])
async def test_the_connection_is_durable_and_checked(memory: ConversationMemory, pragma: str, value: object) -> None:
    """An acknowledged write survives a power cut, and every message has its session: read from the connection."""
    assert await run_on_worker(memory, lambda db: db.execute(f"PRAGMA {pragma}").fetchone()) == (value,)


def test_a_pragma_that_does_not_take_is_an_error() -> None:
    """SQLite silently ignores a pragma that it cannot apply; the library raises."""
    says = "cannot set journal_mode to WAL here, it stays memory"
    with closing(sqlite3.connect(":memory:")) as db, pytest.raises(BackendUnavailableError, match=says):
        opening._require(db, "journal_mode", "WAL", ("wal",))


@pytest.mark.asyncio
async def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the required version, instead of a syntax error in some statement."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 35, 4))
    async with ConversationMemory(path) as memory:
        with pytest.raises(FluxMemoryError, match=r"SQLite 3\.35\.5 or newer is needed"):
            await memory.count_sessions()


def test_files_and_directories_are_their_owners_alone(tmp_path: Path) -> None:
    """Only the owner can read conversations, under any umask: created directories, the file, its journals."""

    async def modes() -> dict[str, int]:
        async with ConversationMemory(tmp_path / "a" / "b" / "chat.db") as memory:
            await memory.create_session()
            return {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "a").rglob("*")} | {
                "a": stat.S_IMODE((tmp_path / "a").stat().st_mode)
            }

    before = os.umask(0)
    try:
        found = asyncio.run(modes())
    finally:
        os.umask(before)
    assert found == {"a": 0o700, "b": 0o700, "chat.db": 0o600, "chat.db-wal": 0o600, "chat.db-shm": 0o600}


def test_the_mode_of_an_existing_file_is_kept(path: Path) -> None:
    """A file that was shared on purpose stays shared."""
    path.touch()
    path.chmod(0o640)

    async def use() -> None:
        async with ConversationMemory(path) as memory:
            await memory.create_session()

    asyncio.run(use())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.asyncio
async def test_a_store_in_memory_is_the_handles_own() -> None:
    """`:memory:` creates no file, and no other handle sees it."""
    async with ConversationMemory(":memory:") as one, ConversationMemory(":memory:") as other:
        session = await one.create_session()
        await one.add_message(session, "user", "x")
        assert len(await one.get_history(session)) == 1
        assert await other.count_sessions() == 0
    assert not await asyncio.to_thread(Path(":memory:").exists)


@pytest.mark.asyncio
async def test_a_path_is_text_or_a_path(path: Path) -> None:
    """Both open the same file, and its name may contain characters that are special in URLs or SQL."""
    odd = path.with_name("a b?c=d&'%41;#.db")
    async with ConversationMemory(odd) as one, ConversationMemory(str(odd)) as other:
        await one.create_session()
        assert await other.count_sessions() == 1
    assert odd.name in {each.name for each in await asyncio.to_thread(lambda: list(path.parent.iterdir()))}


class _PathOfBytes:
    def __fspath__(self) -> bytes:
        return b"chat.db"


@pytest.mark.parametrize("value", [b"chat.db", 5, ["chat.db"], _PathOfBytes()])
def test_a_path_of_another_type_is_refused(value: Any) -> None:
    """A wrong type raises when the handle is created."""
    with pytest.raises(InvalidInputError, match="db_path must be a str or a path"):
        ConversationMemory(value)


@pytest.mark.parametrize("value", ["", "a\x00b", "a\ud800b"])
def test_a_path_that_cannot_be_is_refused(value: str) -> None:
    """SQLite would open the empty path as a temporary database and lose everything."""
    with pytest.raises(InvalidInputError, match="db_path is empty, has a NUL or a lone surrogate"):
        ConversationMemory(value)


@pytest.mark.parametrize(
    "value", ["sqlite:///chat.db", "sqlite+aiosqlite:///./data/sqlite.db", "postgresql://u:secret@h/d"]
)
def test_a_url_is_no_path(value: str) -> None:
    """The URL of a setting, given as the path, would create a directory of that name with an empty memory in it."""
    with pytest.raises(InvalidInputError, match="db_path is a URL; give the path alone") as caught:
        ConversationMemory(value)
    assert "secret" not in str(caught.value)


def read_content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def write_damaged(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(100000))")
    content = bytearray(path.read_bytes())
    content[100:200] = b"\xff" * 100
    path.write_bytes(content)
    return path


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (make_directory, BackendUnavailableError, "is a directory"),
        (make_file_as_parent, BackendUnavailableError, "check the path"),
        (write_notes, SchemaError, "file is not a database: the file is not a SQLite database; check the path"),
        (write_damaged, FluxMemoryError, "the file is damaged"),
    ],
)
async def test_a_path_that_cannot_be_used_says_why(
    path: Path, make: Callable[[Path], Path], kind: type[Exception], says: str
) -> None:
    """Nothing is overwritten, every call fails in the same way, and the cause is the driver's error."""
    target = make(path)
    content = read_content(path)
    async with ConversationMemory(target) as memory:
        for _ in range(2):
            with pytest.raises(kind, match=says) as caught:
                await memory.count_sessions()
            assert isinstance(caught.value.__cause__, sqlite3.Error | OSError)
    assert read_content(path) == content


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory that an ordinary user can list but not write to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        directory.chmod(0o755)


def test_a_directory_without_rights_says_so(closed_directory: Path) -> None:
    """The message names the path and says what to check."""
    if os.geteuid() != 0:
        closed_directory.chmod(0o555)

    async def use() -> None:
        async with ConversationMemory(closed_directory / "chat.db") as memory:
            await memory.create_session()

    with become_ordinary_user(), pytest.raises(BackendUnavailableError, match="Permission denied; check the path"):
        asyncio.run(use())


def test_a_file_without_rights_says_why_it_takes_no_writes(closed_directory: Path) -> None:
    """The error for another user's file says that it is read-only and what to check."""
    path = closed_directory / "chat.db"

    async def use() -> None:
        async with ConversationMemory(path) as memory:
            await memory.create_session()

    asyncio.run(use())
    path.chmod(0o444)
    if os.geteuid() != 0:
        closed_directory.chmod(0o555)
    with (
        become_ordinary_user(),
        pytest.raises(BackendUnavailableError, match="the file or its directory is read-only; check who owns them"),
    ):
        asyncio.run(use())


@pytest.mark.asyncio
async def test_a_foreign_file_is_left_unchanged(tmp_path: Path) -> None:
    """A refused file keeps its journal mode and every byte."""
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE sessions (token TEXT)")
        db.commit()
    before = path.read_bytes()
    async with ConversationMemory(path) as memory:
        with pytest.raises(SchemaError, match="'sessions' or 'messages' that is not conversation memory"):
            await memory.count_sessions()
    assert path.read_bytes() == before
