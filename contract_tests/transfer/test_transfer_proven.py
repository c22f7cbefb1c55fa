"""A proof cannot be forged, and files are durable before a run reports success."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from original_application import make_file, make_file_with_data
from raw_postgres import execute, role, rows
from transfer_memories import add, add_session, everything, move

from flux_memory import FluxMemoryError
from flux_memory.cli.migrate import migrate as command
from flux_memory.errors import MigrationError
from flux_memory.transfer import Mode, OnInvalid, Plan, Report, Status, migrate, migrate_back, to_sqlite
from flux_memory.transfer.rows.pgcopy import GROUP_MESSAGES
from flux_memory.transfer.target import verify

DIGESTS = """
SELECT
    messages.seq,
    sha256(record_send(ROW(seq, created_at, id::text, role, content, metadata))),
    sha256(record_send(ROW(seq, created_at, id::text, role, 'forged'::text, metadata)))
FROM messages
ORDER BY seq
"""
FORGE = "UPDATE messages SET content = 'forged' WHERE seq = ANY ('{{{}}}')"


def summing_to_nothing(vectors: dict[int, int]) -> set[int]:
    """Return which vectors have 0 as their XOR, by Gaussian elimination; 257 of 256 bits are enough."""
    basis: dict[int, tuple[int, set[int]]] = {}
    for name, vector in vectors.items():
        left, used = vector, {name}
        while left:
            top = left.bit_length()
            if top not in basis:
                basis[top] = left, used
                break
            left, used = left ^ basis[top][0], used ^ basis[top][1]
        else:
            return used
    raise AssertionError("there are too few")


def test_no_choice_of_altered_messages_is_called_identical(path: Path, flux_empty_database: str) -> None:
    """Different messages with the same XOR of digests do not pass as equal: the combined digest is not a linear sum."""
    dsn = flux_empty_database
    with closing(make_file(path)) as db:
        db.execute("BEGIN")
        add_session(db, "one")
        for number in range(300):
            add(db, f"m{number:03}", "one")
        db.execute("COMMIT")
    assert move(path, dsn).status is Status.IDENTICAL
    digests = asyncio.run(rows(dsn, DIGESTS))
    forged = summing_to_nothing({seq: int.from_bytes(own) ^ int.from_bytes(other) for seq, own, other in digests})
    assert len(forged) > 50
    asyncio.run(execute(dsn, FORGE.format(",".join(map(str, forged)))))
    report = move(path, dsn, mode=Mode.VERIFY)
    assert report.status is Status.DIFFERENT
    assert report.verification is not None
    assert report.verification.differences == {"message differs": len(forged)}


@pytest.mark.parametrize("messages", [0, 1, GROUP_MESSAGES - 1, GROUP_MESSAGES, 2 * GROUP_MESSAGES + 1])
def test_both_sides_digest_a_long_session_alike(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    """Digests alone prove equal sessions of any length; rows are compared only in sessions that differ."""
    with closing(make_file(path)) as db:
        db.execute("BEGIN")
        add_session(db, "one")
        for number in range(messages):
            add(db, f"m{number:05}", "one")
        db.execute("COMMIT")

    def compare_rows(*_: object) -> None:
        raise AssertionError("the digests differ")

    monkeypatch.setattr(verify, "_compare_session", compare_rows)
    assert move(path, flux_empty_database).status is Status.IDENTICAL


class Disk:
    """Records syncs of files and directories, and links, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self.fails = False
        """Whether a sync of a directory fails."""
        self.before_directory: Callable[[], object] = lambda: None
        self._link, self._fsync = os.link, os.fsync
        monkeypatch.setattr(os, "link", self.link)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def link(self, source: Path, target: Path) -> None:
        self._link(source, target)
        self.events.append(("link", target.name))

    def fsync(self, descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.before_directory()
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            name = "directory"
        self._fsync(descriptor)
        self.events.append(("sync", name.rpartition(".")[2] if name.endswith(".unproven") else name))


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the file of a descriptor")


@needs_proc
@pytest.mark.parametrize("kind", ["way back", "quarantine"])
def test_a_file_has_its_name_on_the_disk_before_it_is_spoken_of(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """File and directory are synced before success is reported, so a power cut loses neither."""
    made = path.with_name("made")
    make(path, flux_empty_database)
    disk = Disk(monkeypatch)
    assert produce(kind, path, flux_empty_database, made) is not Status.DIFFERENT
    assert disk.events == [("sync", "unproven"), ("link", "made"), ("sync", "directory")]
    assert sorted(file.name for file in path.parent.iterdir()) == ["chat.db", "made"]


@needs_proc
@pytest.mark.parametrize("kind", ["way back", "quarantine"])
def test_a_name_that_cannot_be_put_on_the_disk_is_not_there(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A file whose directory cannot be synced is removed, so that the same command can be run again."""
    made = path.with_name("made")
    make(path, flux_empty_database)
    disk = Disk(monkeypatch)
    disk.fails = True
    with pytest.raises(MigrationError, match="cannot be written"):
        produce(kind, path, flux_empty_database, made)
    assert [file.name for file in path.parent.iterdir()] == ["chat.db"]
    disk.fails = False
    assert produce(kind, path, flux_empty_database, made) is not Status.DIFFERENT


@needs_proc
@pytest.mark.parametrize("kind", ["way back", "quarantine"])
def test_a_call_that_is_cancelled_at_the_last_moment_leaves_no_file(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A cancelled run leaves no file behind that would block the same command."""
    made = path.with_name("made")
    make(path, flux_empty_database)
    disk = Disk(monkeypatch)

    async def run() -> None:
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(cancelled.set)
            assert cancelled.wait(10)

        disk.before_directory = cancel
        task = asyncio.create_task(producing(kind, path, flux_empty_database, made))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert [file.name for file in path.parent.iterdir()] == ["chat.db"]


def make(path: Path, dsn: str) -> None:
    """Create a memory on both sides, with one more orphan in the file."""
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        add(db, "orphan", "nowhere")


async def producing(kind: str, path: Path, dsn: str, made: Path) -> Report:
    if kind == "way back":
        return await migrate_back(dsn, made)
    return await migrate(
        Plan(sqlite_path=path, postgres_dsn=dsn, on_invalid=OnInvalid.QUARANTINE, quarantine_file=made)
    )


def produce(kind: str, path: Path, dsn: str, made: Path) -> Status:
    return asyncio.run(producing(kind, path, dsn, made)).status


@needs_proc
def test_a_report_is_on_the_disk(path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report, the record of the proof, is durable before the command ends."""
    make_file_with_data(path)
    disk = Disk(monkeypatch)
    written = path.with_name("report.json")
    result = CliRunner().invoke(
        command, ["--sqlite-path", str(path), "--postgres-dsn", flux_empty_database, "--report", str(written), "--yes"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["status"] == "identical"
    assert disk.events[-2:] == [("sync", "report.json"), ("sync", "directory")]


@pytest.mark.parametrize("damage", ["UPDATE messages SET seq = seq + 100", "UPDATE sessions SET message_count = 9"])
def test_the_way_back_checks_the_numbers_in_its_file(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Wrong counters in the new file are found, although its content is right; the library continues from them."""
    make_file_with_data(path)
    assert move(path, flux_empty_database).status is Status.IDENTICAL
    finish = to_sqlite._finish

    def finish_badly(db: sqlite3.Connection) -> None:
        finish(db)
        db.execute(damage)

    monkeypatch.setattr(to_sqlite, "_finish", finish_badly)
    report = asyncio.run(migrate_back(flux_empty_database, path.with_name("back.db")))
    assert report.status is Status.DIFFERENT
    assert not path.with_name("back.db").exists()


def test_rows_that_a_policy_hides_are_not_missed_in_silence(path: Path, flux_empty_database: str) -> None:
    """A policy that hides rows is an error: otherwise a part would be proven, or a table with rows taken for empty."""
    dsn = flux_empty_database
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    before = everything(dsn)
    statements = [
        f"ALTER TABLE {table} {what}"
        for table in ("sessions", "messages")
        for what in ("OWNER TO {role}", "ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY")
    ]

    async def run() -> None:
        async with role(dsn, grants=("GRANT ALL ON SCHEMA public TO {role}",)) as own:
            name = own.partition("://")[2].partition(":")[0]
            owned = (statement.format(role=name) for statement in statements)
            await execute(dsn, f"GRANT SELECT ON flux_memory_schema TO {name}", *owned)
            try:
                for work in (
                    migrate_back(own, path.with_name("back.db")),
                    migrate(Plan(sqlite_path=path, postgres_dsn=own)),
                    migrate(Plan(sqlite_path=path, postgres_dsn=own, mode=Mode.VERIFY)),
                ):
                    with pytest.raises(FluxMemoryError, match="row-level security"):
                        await work
            finally:
                await execute(
                    dsn, *(f"ALTER TABLE {table} OWNER TO CURRENT_USER" for table in ("sessions", "messages"))
                )

    asyncio.run(run())
    assert everything(dsn) == before
    assert not path.with_name("back.db").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE messages SET seq = seq + 100 WHERE session_id = 'one'",
        "UPDATE messages SET seq = 0 WHERE id = 'm3'",
        "UPDATE sessions SET message_count = 9 WHERE id = 'one'",
    ],
)
def test_the_guide_numbers_messages_anew(path: Path, flux_empty_database: str, damage: str) -> None:
    """Wrong seq numbers are found, and the guide's remedy fixes them."""
    dsn = flux_empty_database
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    before = everything(dsn)
    asyncio.run(execute(dsn, damage))
    assert move(path, dsn, mode=Mode.VERIFY).status is Status.DIFFERENT
    guide = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
    remedy = guide.partition("### Numbering messages anew")[2].partition("```sql\n")[2].partition("```")[0]
    asyncio.run(execute(dsn, remedy.replace("'ID'", "'one'")))
    assert move(path, dsn, mode=Mode.VERIFY).status is Status.IDENTICAL
    assert everything(dsn) == before
