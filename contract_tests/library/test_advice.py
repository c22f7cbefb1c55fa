"""Errors name the mistake: causes that look alike, and the advice that each of them needs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections import UserString
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from ordinary_user import become_ordinary_user, make_traversable
from raw_postgres import reserve_port

from flux_memory import BackendUnavailableError, ConversationMemory, InvalidInputError, PostgresConversationMemory
from flux_memory.cli import main
from flux_memory.cli.failure import causes, in_number
from flux_memory.errors import FluxMemoryError
from flux_memory.records.metadata import encode_metadata
from flux_memory.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty directory, and an environment without our variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_BACKEND", "DATABASE_URL", "POSTGRES_DSN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"FLUX_MEMORY_{name}", raising=False)
    return monkeypatch


@pytest.mark.parametrize("end", ["\r", "\n", " ", "\t", '"', "'", "\u00a0", "\ufeff", "\u200b", "\x00"])
@pytest.mark.parametrize("url", ["sqlite:///{}chat.db", "{}sqlite:///chat.db", "sqlite:///chat.db{}"])
def test_a_url_with_a_hidden_character_opens_no_other_file(url: str, end: str) -> None:
    """Shells, files from Windows and pastes add such characters; a file with that name would be a new, empty store."""
    settings = Settings(database_url=url.format(end))
    if end in " \"'" and url == "sqlite:///{}chat.db":
        assert settings.sqlite_path == f"{end}chat.db"
    else:
        with pytest.raises(InvalidInputError, match="quote or a space, or has an invisible character"):
            _ = settings.sqlite_path


@pytest.mark.parametrize("name", ["a%20", "%27a%27", "a%09", "a b.db"])
def test_a_name_that_is_meant_can_be_escaped(name: str) -> None:
    """Escapes reach every file name."""
    assert Settings(database_url=f"sqlite:///{name}").sqlite_path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_hides_no_setting(tmp_path: Path, mark: bytes) -> None:
    """Editors on Windows write a mark, which would become a part of the first name."""
    (tmp_path / ".env").write_bytes(mark + b"DATABASE_BACKEND=postgres\r\nPOSTGRES_DSN=postgresql://h/d\r\n")
    settings = load_settings()
    assert (settings.database_backend, settings.require_postgres_dsn()) == ("postgres", "postgresql://h/d")


def closed_file(directory: Path) -> Path:
    """A file of another user."""
    path = directory / "chat.db"
    path.write_bytes(b"")
    path.chmod(0o600)
    return path


def closed_directory(directory: Path) -> Path:
    """A file in another user's directory."""
    (directory / "private").mkdir(mode=0o700)
    return directory / "private" / "chat.db"


def closed_log(directory: Path, suffix: str) -> Path:
    """A file with a log of another user's process beside it."""
    path = directory / "chat.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE sessions (id TEXT)")
    db.close()
    path.chmod(0o666)
    (directory / f"chat.db{suffix}").write_bytes(b"" if suffix == "-shm" else b"\0" * 32)
    (directory / f"chat.db{suffix}").chmod(0o600)
    return path


CLOSED: Final[dict[str, tuple[Callable[[Path], Path], str]]] = {
    "a file of another user": (closed_file, "this user may not use .*chat.db; check who owns it, and its mode"),
    "a directory of another user": (closed_directory, "private.* check|Permission denied"),
    "a log of another user": (lambda directory: closed_log(directory, "-wal"), "this user may not use .*chat.db-wal"),
    "an index of another user": (lambda directory: closed_log(directory, "-shm"), "this user may not use .*-shm|lost"),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("world", CLOSED)
def test_a_file_that_this_user_may_not_open_is_named(tmp_path: Path, world: str) -> None:
    """SQLite has one message for all of these; the advice names the file to look at."""
    make, says = CLOSED[world]
    tmp_path.chmod(0o777)
    path = make(tmp_path)
    memory = ConversationMemory(path, timeout=5)
    with make_traversable(tmp_path), become_ordinary_user():
        with pytest.raises(BackendUnavailableError, match=says):
            asyncio.run(memory.count_sessions())
        asyncio.run(memory.close())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.asyncio
async def test_the_home_of_another_user_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container may keep HOME=/root and run as another user; the error does not blame the network."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    environment.setenv("HOME", str(home))
    with reserve_port() as port:
        memory = PostgresConversationMemory(f"postgresql://u:p@127.0.0.1:{port}/d", timeout=5)
        with become_ordinary_user(), pytest.raises(BackendUnavailableError, match=r"HOME, where \.postgresql is"):
            await memory.count_sessions()
        await memory.close()


class Foreign:
    """Types of other packages with the names of built-in ones."""

    bool = type("bool", (), {"__module__": "numpy"})
    dict = type("dict", (), {"__module__": "strange"})
    str = UserString


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Foreign.bool(), "is a numpy.bool, which JSON does not have; convert it"),
        (Foreign.dict(), "is a strange.dict, which"),
        (Foreign.str("a"), "is a collections.UserString, which"),
        (Decimal(1), "is a decimal.Decimal, which"),
        (Fraction(1), "is a fractions.Fraction, which"),
        (b"", "is a bytes, which"),
        (object(), "is a object, which"),
    ],
)
def test_a_type_of_another_package_is_named_with_it(value: object, named: str) -> None:
    """NumPy's `bool` is not Python's."""
    with pytest.raises(InvalidInputError) as caught:
        encode_metadata({"a": value})
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\ud83d\ude00", "a surrogate pair at offset 0, which is one character cut in two"),
        ("ab\ud800\udc00", "a surrogate pair at offset 2"),
        ("\udbff\udfff.", "a surrogate pair at offset 0"),
        ("\ud83d", "a lone surrogate at offset 0"),
        ("\ude00\ud83d", "a lone surrogate at offset 0"),
        ("a\ud83d\ud83d\ude00", "a lone surrogate at offset 1"),
    ],
)
def test_a_surrogate_pair_is_not_called_lone(text: str, says: str) -> None:
    """A pair is one character in two halves, which can be joined; a lone surrogate cannot."""
    with pytest.raises(InvalidInputError) as caught:
        encode_metadata({"a": text})
    assert says in str(caught.value)
    if "pair" in says:
        assert encode_metadata({"a": text.encode("utf-16", "surrogatepass").decode("utf-16")})


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Moved 1 sessions, 1 messages", "Moved 1 session, 1 message"),
        ("Moved 1,001 sessions, 11 messages", "Moved 1,001 sessions, 11 messages"),
        ("Found 21 sessions, 0 messages", "Found 21 sessions, 0 messages"),
        ("Contents    1 sessions, 2 messages", "Contents    1 session, 2 messages"),
        ("Moving: 1 rows in 0.1 s", "Moving: 1 row in 0.1 s"),
        ("1 sessions, 1 entries of feedback", "1 session, 1 entry of feedback"),
    ],
)
def test_one_is_singular(line: str, shown: str) -> None:
    """The terminal shows "1 session"."""
    assert in_number(line) == shown


def test_the_command_shows_the_words_of_a_cause() -> None:
    """A terminal shows no traceback."""
    error = FluxMemoryError("it failed")
    error.__cause__ = ValueError("the words\nDETAIL: stored data")
    error.__cause__.__cause__ = OSError(5, "Input/output error")
    assert causes(error) == ["ValueError: the words", "OSError: [Errno 5] Input/output error"]
    quoting = FluxMemoryError("it failed: the words; do this")
    quoting.__cause__ = ValueError("the words")
    assert causes(quoting) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["{}"],
        ["check", "{}"],
        ["check", "--timeout", "{}"],
        ["check", "--postgres-dsn", "a", "{}"],
        ["migrate", "{}"],
        ["migrate", "--on-invalid", "{}"],
        ["migrate", "--assume-timezone", "{}"],
        ["contract", "diff", "{}", "x"],
        ["contract", "{}"],
    ],
)
@pytest.mark.parametrize(
    "dsn", ["postgresql://u:secret@h/d", "postgres://u;secret@h/d", "postgresql://h/d?pass=secret"]
)
def test_a_dsn_in_a_wrong_place_of_the_command_line_is_masked(arguments: list[str], dsn: str) -> None:
    """Usage errors quote arguments, and logs of deployments keep them."""
    result = CliRunner().invoke(main, [each.format(dsn) for each in arguments])
    assert result.exit_code in {1, 2}
    assert "***" in result.output or "://" not in result.output
    assert "secret" not in result.output


WITHOUT_LOCKS: Final = """
import sys
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
from flux_memory.cli import run
sys.argv = ["flux-memory", *sys.argv[1:]]
run()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate", "--sqlite-path", "chat.db", "--postgres-dsn", "postgresql://u@127.0.0.1:1/d"],
        ["migrate", "--to-sqlite", "chat.db", "--postgres-dsn", "postgresql://u@127.0.0.1:1/d"],
        ["migrate", "--retry", "chat.jsonl", "--postgres-dsn", "postgresql://u@127.0.0.1:1/d"],
        ["migrate", "--dry-run", "--sqlite-path", "chat.db", "--postgres-dsn", "postgresql://u@127.0.0.1:1/d"],
    ],
)
def test_a_migration_without_file_locks_is_refused_in_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    """Windows lacks some modules of Unix."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED  a migration needs the file locks of Linux or macOS")
    assert "Traceback" not in done.stderr


def test_the_rest_works_without_the_modules_of_unix(tmp_path: Path) -> None:
    """The library and the check import nothing of them."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, "check", "--full", "--sqlite-path", "chat.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("OK\n")


def test_the_check_is_in_the_singular(tmp_path: Path) -> None:
    """The command prints "1 session" for one."""

    async def fill() -> None:
        async with ConversationMemory(tmp_path / "chat.db") as memory:
            await memory.add_message(await memory.create_session(), "user", "x")

    asyncio.run(fill())
    result: Any = CliRunner().invoke(main, ["check", "--sqlite-path", str(tmp_path / "chat.db")])
    assert "Contents    1 session, 1 message\n" in result.output
