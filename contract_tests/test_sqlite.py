"""The SQLite backend where it is more than the contract: the file, its pragmas, its thread, corrupt rows."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ordinary_user import ordinary_user
from original_application import rows

from flux_memory import ConversationMemory
from flux_memory.backends import sqlite as backend
from flux_memory.backends.sqlite_worker import SQLiteWorker
from flux_memory.errors import (
    BackendUnavailableError,
    ConflictError,
    FluxMemoryError,
    InvalidInputError,
    MemoryClosedError,
    SchemaError,
    SessionNotFoundError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "chat.db"


@pytest_asyncio.fixture
async def memory(path: Path) -> AsyncIterator[ConversationMemory]:
    """An open handle with the sessions `one` and `two`."""
    async with ConversationMemory(path, timeout=5) as memory:
        for id_ in ("one", "two"):
            await memory.create_session(session_id=id_)
        yield memory


def change(path: Path, sql: str, *values: object) -> None:
    """Write past the library."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql, values)


async def on_the_thread(memory: ConversationMemory, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run work on the very connection that the library uses."""
    return await (await memory._life.opened()).read(work, 5)


@asynccontextmanager
async def thread_held(memory: ConversationMemory) -> AsyncIterator[threading.Event]:
    """Keep the library's thread busy until the event that this yields is set, at the latest to the block's end."""
    held, release = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(30)

    task = asyncio.create_task(on_the_thread(memory, work))
    await asyncio.to_thread(held.wait, 5)
    try:
        yield release
    finally:
        release.set()
        await task


@pytest.mark.asyncio
@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)])
async def test_the_connection_is_durable_and_checked(memory: ConversationMemory, pragma: str, value: object) -> None:
    """An acknowledged write survives a power cut, and no message is without its session: asked of the connection."""
    assert await on_the_thread(memory, lambda db: db.execute(f"PRAGMA {pragma}").fetchone()) == (value,)


@pytest.mark.asyncio
async def test_the_connection_waits_for_locks_within_the_deadline(memory: ConversationMemory) -> None:
    """A lock of another process is waited for, no longer than the call may take."""
    (milliseconds,) = await on_the_thread(memory, lambda db: db.execute("PRAGMA busy_timeout").fetchone())
    assert 4_000 < milliseconds <= 5_000


def test_a_pragma_that_does_not_take_is_an_error() -> None:
    """SQLite ignores what it cannot do; we do not."""
    with closing(sqlite3.connect(":memory:")) as db:
        with pytest.raises(BackendUnavailableError, match="cannot set journal_mode to WAL here, it stays memory"):
            backend._require(db, "journal_mode", "WAL", ("wal",))


@pytest.mark.asyncio
async def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the version that is needed, not a syntax error in the middle of a statement."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    async with ConversationMemory(path) as memory:
        with pytest.raises(FluxMemoryError, match=r"SQLite 3\.35 or newer is needed"):
            await memory.count_sessions()


def test_files_and_directories_are_their_owners_alone(tmp_path: Path) -> None:
    """Conversations are nobody else's business, whatever the umask: every directory made, the file, its journals."""

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


def test_the_mode_of_a_file_that_is_there_is_its_owners_choice(path: Path) -> None:
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
    """`:memory:` makes no file, and no other handle sees it."""
    async with ConversationMemory(":memory:") as one, ConversationMemory(":memory:") as other:
        session = await one.create_session()
        await one.add_message(session, "user", "x")
        assert len(await one.get_history(session)) == 1
        assert await other.count_sessions() == 0
    assert not await asyncio.to_thread(Path(":memory:").exists)


@pytest.mark.asyncio
async def test_a_path_is_text_or_a_path(path: Path) -> None:
    """Both open the same file, and the name may hold what a URL or an SQL statement would stumble over."""
    odd = path.with_name("a b?c=d&'%41;#.db")
    async with ConversationMemory(odd) as one, ConversationMemory(str(odd)) as other:
        await one.create_session()
        assert await other.count_sessions() == 1
    assert odd.name in {each.name for each in await asyncio.to_thread(lambda: list(path.parent.iterdir()))}


@pytest.mark.parametrize("value", [b"chat.db", 5, ["chat.db"]])
def test_a_path_of_another_type_is_refused(value: Any) -> None:
    """A wrong type is an error of the caller, at once."""
    with pytest.raises(InvalidInputError, match="db_path must be a str or a path"):
        ConversationMemory(value)


@pytest.mark.parametrize("value", ["", "a\x00b"])
def test_a_path_that_cannot_be_is_refused(value: str) -> None:
    """SQLite would take the empty path as a temporary database, and lose everything."""
    with pytest.raises(InvalidInputError, match="db_path is empty or has a NUL"):
        ConversationMemory(value)


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def below_a_file(path: Path) -> Path:
    path.touch()
    return path / "chat.db"


def not_a_database(path: Path) -> Path:
    path.write_bytes(b"These are notes, no database. " * 100)
    return path


def damaged(path: Path) -> Path:
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
        (directory, BackendUnavailableError, "is a directory"),
        (below_a_file, BackendUnavailableError, "check the path"),
        (not_a_database, SchemaError, "file is not a database: the file is not a SQLite database; check the path"),
        (damaged, FluxMemoryError, "the file is damaged"),
    ],
)
async def test_a_path_that_cannot_be_used_says_why(
    path: Path, make: Callable[[Path], Path], kind: type[Exception], says: str
) -> None:
    """Nothing is overwritten, every call fails alike, and the driver's error stays in the cause."""
    target = make(path)
    content = path.read_bytes() if path.is_file() else b""
    async with ConversationMemory(target) as memory:
        for _ in range(2):
            with pytest.raises(kind, match=says) as caught:
                await memory.count_sessions()
            assert isinstance(caught.value.__cause__, sqlite3.Error | OSError)
    assert (path.read_bytes() if path.is_file() else b"") == content


@pytest.fixture
def closed_directory() -> Iterator[Path]:
    """A directory that an ordinary user may look into and not write to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        directory.chmod(0o755)


def test_a_directory_without_rights_says_so(closed_directory: Path) -> None:
    """The message names the path and says what to look at."""
    if os.geteuid() != 0:
        closed_directory.chmod(0o555)

    async def use() -> None:
        async with ConversationMemory(closed_directory / "chat.db") as memory:
            await memory.create_session()

    with ordinary_user(), pytest.raises(BackendUnavailableError, match="Permission denied; check the path"):
        asyncio.run(use())


def test_a_file_without_rights_serves_reads_and_says_why_it_takes_no_writes(closed_directory: Path) -> None:
    """The history of a file that belongs to somebody else can be read where its journal allows it."""
    path = closed_directory / "chat.db"

    async def use(write: bool) -> None:
        async with ConversationMemory(path) as memory:
            await (memory.create_session() if write else memory.count_sessions())

    asyncio.run(use(write=True))
    path.chmod(0o444)
    if os.geteuid() != 0:
        closed_directory.chmod(0o555)
    with ordinary_user(), pytest.raises(BackendUnavailableError, match="read-only|cannot be written|journal_mode"):
        asyncio.run(use(write=True))


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["ABORT", "FAIL", "ROLLBACK"])
async def test_a_failing_write_takes_no_neighbour_along(memory: ConversationMemory, path: Path, how: str) -> None:
    """Writes that share a transaction fail one by one: not even a ROLLBACK inside it loses an acknowledged one."""
    change(
        path,
        f"CREATE TRIGGER bad BEFORE INSERT ON messages WHEN new.content = 'bad' "
        f"BEGIN SELECT raise({how}, 'this one is bad'); END",
    )
    contents = [f"good {number}" for number in range(20)]
    contents[7:7] = ["bad"]
    outcomes = await asyncio.gather(
        *(memory.add_message("one", "user", content) for content in contents), return_exceptions=True
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(error) for error in failed] == [FluxMemoryError]
    assert "this one is bad" in str(failed[0])
    assert isinstance(failed[0].__cause__, sqlite3.IntegrityError)
    contents.remove("bad")
    assert [message["content"] for message in await memory.get_history("one")] == contents
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(seq,) for seq in range(1, 21)]


@pytest.mark.asyncio
async def test_refusals_of_ours_share_a_transaction_with_neighbours(memory: ConversationMemory) -> None:
    """A missing session or a taken id is the caller's affair; everybody else's write is stored."""
    await memory.add_message("one", "user", "first", message_id="taken")
    outcomes = await asyncio.gather(
        memory.add_message("one", "user", "second"),
        memory.add_message("none", "user", "x"),
        memory.add_message("one", "user", "x", message_id="taken"),
        memory.create_session(session_id="two"),
        memory.add_message("two", "user", "third"),
        memory.update_session_title("none", "x"),
        return_exceptions=True,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [str, SessionNotFoundError, ConflictError, ConflictError, str, SessionNotFoundError]
    assert [message["content"] for message in await memory.get_history("one")] == ["first", "second"]
    assert [message["content"] for message in await memory.get_history("two")] == ["third"]


@pytest.mark.asyncio
async def test_more_writes_than_one_transaction_takes(memory: ConversationMemory, path: Path) -> None:
    """However many gather, all are stored, in the order in which they were made, each once."""
    contents = [str(number) for number in range(700)]
    await asyncio.gather(*(memory.add_message("one", "user", content) for content in contents))
    assert [message["content"] for message in await memory.get_history("one")] == contents


@pytest.mark.asyncio
async def test_order_when_the_clock_steps_back(memory: ConversationMemory, path: Path) -> None:
    """A clock set back changes neither the order nor lets `created_at` or `updated_at` decrease."""
    future = "2999-01-01T00:00:00.000000+00:00"
    await memory.add_message("one", "user", "before")
    change(path, "UPDATE sessions SET updated_at = ? WHERE id = 'one'", future)
    await memory.add_message("one", "user", "after")
    await memory.add_messages("one", [{"role": "user", "content": "later"}, {"role": "user", "content": "last"}])
    await memory.update_session_title("one", "renamed")
    messages = await memory.get_history("one")
    assert [message["content"] for message in messages] == ["before", "after", "later", "last"]
    assert [message["created_at"] for message in messages[1:]] == [future] * 3
    session = await memory.get_session("one")
    assert session is not None
    assert session["updated_at"] == future
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(1,), (2,), (3,), (4,)]
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        change(path, "UPDATE messages SET seq = 1 WHERE seq = 2")


@pytest.mark.asyncio
async def test_a_lock_that_is_let_go_in_time_is_waited_for(memory: ConversationMemory, path: Path) -> None:
    """Another process that writes for a moment makes a call slower, not fail."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(memory.add_message("one", "user", "patient"))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        other.execute("COMMIT")
        await waiting
    assert len(await memory.get_history("one")) == 1


@pytest.mark.asyncio
async def test_a_lock_that_stays_ends_the_call_and_poisons_nothing(path: Path) -> None:
    """At the deadline the call ends by an error that says that nothing was stored; the next call works."""
    async with ConversationMemory(path, timeout=0.2) as memory:
        session = await memory.create_session()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(
                *(memory.add_message(session, "user", "x") for _ in range(3)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [BackendUnavailableError] * 3
            assert "another process holds the lock; retry, or raise timeout=" in str(outcomes[0])
        await memory.add_message(session, "user", "afterwards")
        assert [message["content"] for message in await memory.get_history(session)] == ["afterwards"]


@pytest.mark.asyncio
async def test_a_thread_that_does_not_answer_ends_the_call(path: Path) -> None:
    """A disk that hangs does not hang the caller; the error does not claim that nothing was stored."""
    async with ConversationMemory(path, timeout=0.1) as memory:
        session = await memory.create_session()
        async with thread_held(memory):
            with pytest.raises(BackendUnavailableError, match="whether the call took effect is not known"):
                await memory.add_message(session, "user", "x")
        assert await memory.count_sessions() == 1


@pytest.mark.asyncio
async def test_a_cancelled_write_is_stored_whole_or_not_at_all(memory: ConversationMemory, path: Path) -> None:
    """A write that is cancelled before its turn leaves nothing; its neighbours are stored; the handle goes on."""
    async with thread_held(memory):
        writes = [asyncio.create_task(memory.add_message("one", "user", str(number))) for number in range(4)]
        reading = asyncio.create_task(memory.get_history("one"))
        for _ in range(5):
            await asyncio.sleep(0)
        for task in (writes[1], writes[3], reading):
            task.cancel()
    await asyncio.gather(*writes, reading, return_exceptions=True)
    assert [task.cancelled() for task in (*writes, reading)] == [False, True, False, True, True]
    assert [message["content"] for message in await memory.get_history("one")] == ["0", "2"]
    assert rows(path, "SELECT seq FROM messages ORDER BY seq") == [(1,), (2,)]


CORRUPT_MESSAGES = [
    ("metadata", '{"half": '),
    ("metadata", "[1]"),
    ("metadata", b'{"a": "\xff"}'),
    ("content", b"\xff\xfe"),
    ("role", b"\xc3"),
    ("created_at", "2026-99-99T00:00:00.000000+00:00"),
    ("created_at", "yesterday"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("column", "value"), CORRUPT_MESSAGES)
async def test_a_corrupt_message_is_named_and_hides_nothing_else(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """Bad JSON, bad UTF-8, an impossible time: the error names the row, the rest of the store can be read."""
    await memory.add_message("one", "user", "good")
    await memory.add_message("one", "user", "bad", message_id="broken")
    newest = await memory.add_message("one", "user", "newest")
    await memory.add_message("two", "user", "elsewhere")
    change(path, f"UPDATE messages SET {column} = CAST(? AS TEXT) WHERE id = 'broken'", value)
    with pytest.raises(FluxMemoryError, match="message 'broken' of session 'one' cannot be read"):
        await memory.get_history("one")
    assert [message["id"] for message in await memory.get_history("one", 1)] == [newest]
    assert [message["content"] for message in await memory.get_history("one", before="broken")] == ["good"]
    assert [message["content"] for message in await memory.get_history("two")] == ["elsewhere"]
    assert {session["id"] for session in await memory.get_sessions()} == {"one", "two"}
    await memory.add_message("one", "user", "still works")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metadata", "{"),
        ("metadata", b'{"a": "\xff"}'),
        ("title", b"\xff"),
        ("user_id", b"\xff"),
        ("created_at", "never"),
        ("updated_at", "0000-00-00T00:00:00.000000+00:00"),
    ],
)
async def test_a_corrupt_session_is_named_and_hides_nothing_else(
    memory: ConversationMemory, path: Path, column: str, value: str | bytes
) -> None:
    """A listing that meets it names it; others, its own messages and every other way to a session work."""
    healthy = await memory.create_session(session_id="healthy", metadata={"a": 1}, user_id="ann")
    await memory.add_message("one", "user", "kept")
    change(path, f"UPDATE sessions SET {column} = CAST(? AS TEXT) WHERE id = 'one'", value)
    for look in (memory.get_session("one"), memory.get_sessions()):
        with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
            await look
    assert [message["content"] for message in await memory.get_history("one")] == ["kept"]
    assert [session["id"] for session in await memory.get_sessions(metadata={"a": 1})] == [healthy]
    assert [session["id"] for session in await memory.get_sessions(user_id="ann")] == [healthy]
    assert await memory.count_sessions() == 3
    await memory.delete_session("one")
    assert len(await memory.get_sessions()) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("value", ["garbage", b"\xff", b"2026-02-05T12:00:00.000000+00:00"])
async def test_a_corrupt_time_is_not_passed_on_to_new_messages(
    memory: ConversationMemory, path: Path, value: str | bytes
) -> None:
    """An add to a session whose time cannot be read fails and names it; it acknowledges nothing unreadable."""
    change(path, "UPDATE sessions SET updated_at = ? WHERE id = 'one'", value)
    with pytest.raises(FluxMemoryError, match="session 'one' cannot be read"):
        await memory.add_message("one", "user", "x")
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]
    await memory.add_message("two", "user", "x")


@pytest.mark.asyncio
@pytest.mark.parametrize("value", ["{", None, b"\xff"])
async def test_a_retry_of_a_message_that_became_corrupt_is_an_error_of_ours(
    memory: ConversationMemory, path: Path, value: str | bytes | None
) -> None:
    """It cannot be told whether it is the same; a driver's or a parser's exception does not escape."""
    await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    change(path, "UPDATE messages SET metadata = CAST(? AS TEXT) WHERE id = 'm'", value)
    with pytest.raises(FluxMemoryError):
        await memory.add_message("one", "user", "x", {"a": 1}, message_id="m")
    assert rows(path, "SELECT count(*) FROM messages") == [(1,)]


@pytest.mark.asyncio
async def test_metadata_that_is_null_counts_as_empty(memory: ConversationMemory, path: Path) -> None:
    """The original's column allows NULL, and somebody may write it by hand."""
    change(path, "UPDATE sessions SET metadata = NULL WHERE id = 'one'")
    assert (await memory.get_session("one") or {})["metadata"] == {}
    assert await memory.get_sessions(metadata={"a": 1}) == []


@pytest.mark.asyncio
async def test_every_call_after_close_says_so(path: Path) -> None:
    """Also those that would not have needed the database, and before their arguments are looked at."""
    memory = ConversationMemory(path)
    await memory.create_session()
    await memory.close()
    await memory.close()
    for call in (
        memory.create_session(),
        memory.add_message("s", "", ""),
        memory.add_messages("s", []),
        memory.get_history("s", -1),
        memory.get_sessions(),
        memory.get_session("s"),
        memory.count_sessions(),
        memory.update_session_title("s", ""),
        memory.delete_session("s"),
        memory.clear_all(),
    ):
        with pytest.raises(MemoryClosedError):
            await call


@pytest.mark.asyncio
async def test_closing_while_calls_are_in_flight_loses_none(path: Path) -> None:
    """What was begun before `close()` is answered and stored, and the thread is gone afterwards."""
    memory = ConversationMemory(path)
    session = await memory.create_session()
    threads = set(threading.enumerate())
    writes = [asyncio.create_task(memory.add_message(session, "user", str(number))) for number in range(50)]
    await asyncio.sleep(0)
    await asyncio.gather(*(memory.close() for _ in range(3)))
    assert len(await asyncio.gather(*writes)) == 50
    assert rows(path, "SELECT count(*) FROM messages") == [(50,)]
    assert len(set(threading.enumerate()) & threads) == len(threads) - 1


@pytest.mark.asyncio
async def test_a_failed_opening_leaves_no_thread(path: Path) -> None:
    """However often it is tried."""
    not_a_database(path)
    before = threading.active_count()
    async with ConversationMemory(path) as memory:
        for _ in range(3):
            with pytest.raises(SchemaError):
                await memory.count_sessions()
    deadline = asyncio.get_running_loop().time() + 5
    while threading.active_count() > before and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert threading.active_count() <= before


def test_a_second_event_loop_is_a_clear_error(path: Path) -> None:
    """It neither hangs nor writes; closing there lets go of the file."""
    memory = ConversationMemory(path)
    session = asyncio.run(memory.create_session())
    with pytest.raises(FluxMemoryError, match="another event loop"):
        asyncio.run(memory.add_message(session, "user", "x"))
    asyncio.run(memory.close())
    assert rows(path, "SELECT count(*) FROM messages") == [(0,)]


def test_an_event_loop_that_ends_before_its_calls_breaks_nothing(path: Path) -> None:
    """The answer has nobody left to hear it; the thread goes on and the handle can be closed."""
    memory = ConversationMemory(path)
    release = threading.Event()

    async def leave() -> None:
        session = await memory.create_session()
        asyncio.create_task(on_the_thread(memory, lambda _: release.wait(30)))
        asyncio.create_task(memory.add_message(session, "user", "x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    release.set()
    asyncio.run(memory.close())
    assert rows(path, "SELECT count(*) FROM sessions") == [(1,)]


LEFT_WHILE_OPENING = """
import asyncio, sys
from flux_memory import ConversationMemory

memory = ConversationMemory(sys.argv[1])

async def main():
    task = asyncio.create_task(memory.count_sessions())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_program_that_ends_while_opening_ends_quietly(path: Path) -> None:
    """No traceback of a thread that talks to a loop that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT_WHILE_OPENING, str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.asyncio
async def test_a_worker_whose_thread_hangs_is_left_behind() -> None:
    """Closing waits a bounded time, also for a disk that does not answer."""
    worker = SQLiteWorker(lambda: sqlite3.connect(":memory:", check_same_thread=False))
    await worker.open()
    release = threading.Event()
    hanging = asyncio.create_task(worker.read(lambda _: release.wait(30), 30))
    await asyncio.sleep(0)
    await asyncio.wait_for(worker.finish(0.05), 5)
    release.set()
    await hanging
    await asyncio.to_thread(worker._thread.join, 5)
    assert not worker._thread.is_alive()


@pytest.mark.asyncio
async def test_an_error_keeps_its_cause_and_names_the_file(memory: ConversationMemory, path: Path) -> None:
    """A table dropped by hand: our error on top, the driver's below, the path in the message."""
    change(path, "DROP TABLE messages")
    with pytest.raises(FluxMemoryError, match="no such table: messages") as caught:
        await memory.get_history("one")
    assert str(path) in str(caught.value)
    assert "sqlite3.OperationalError" in "".join(traceback.format_exception(caught.value))
