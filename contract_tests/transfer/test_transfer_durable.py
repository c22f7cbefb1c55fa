"""Tests that the files of a migration are durable before it reports success, and absent if they cannot be."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from original_application import make_file_with_data
from transfer_memories import insert_message, move

from flux_memory.cli.migrate import migrate as command
from flux_memory.errors import MigrationError
from flux_memory.transfer import OnInvalid, Plan, Report, Status, migrate, migrate_back
from flux_memory.transfer.tempfiles import publish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux names the file of a descriptor")


class SyncLog:
    """Records the order of links and of syncs of files and directories."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self.fails = False
        """Whether syncs of directories fail."""
        self.has_links = True
        self.before_directory: Callable[[], object] = lambda: None
        self._link, self._fsync = os.link, os.fsync
        monkeypatch.setattr(os, "link", self.link)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def link(self, source: Path, target: Path) -> None:
        if not self.has_links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
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


@dataclass
class FileWriter:
    """A migration that writes the file `made`, beside its source."""

    write: Callable[[], Coroutine[Any, Any, Report]]
    disk: SyncLog
    directory: Path

    def files(self) -> list[str]:
        """Return the names of the files beside the source, and its own."""
        return sorted(file.name for file in self.directory.iterdir())


@pytest.fixture(params=["to SQLite", "quarantine"])
def writer(
    request: pytest.FixtureRequest, path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> FileWriter:
    """A migration back to SQLite, or one that writes a quarantine file for an orphan."""
    make_file_with_data(path)
    assert move(path, flux_empty_database).status is Status.IDENTICAL
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "orphan", "nowhere")
    made = path.with_name("made")

    async def write() -> Report:
        if request.param == "to SQLite":
            return await migrate_back(flux_empty_database, made)
        return await migrate(
            Plan(
                sqlite_path=path,
                postgres_dsn=flux_empty_database,
                on_invalid=OnInvalid.QUARANTINE,
                quarantine_file=made,
            )
        )

    return FileWriter(write, SyncLog(monkeypatch), path.parent)


def test_file_and_directory_are_synced_before_success_is_reported(writer: FileWriter) -> None:
    """A power cut after the report loses neither the file nor its name."""
    assert asyncio.run(writer.write()).status is not Status.DIFFERENT
    assert writer.disk.events == [("sync", "unproven"), ("link", "made"), ("sync", "directory")]
    assert writer.files() == ["chat.db", "made"]


def test_a_file_whose_directory_cannot_be_synced_is_removed(writer: FileWriter) -> None:
    """The same command can then be run again."""
    writer.disk.fails = True
    with pytest.raises(MigrationError, match="cannot be written"):
        asyncio.run(writer.write())
    assert writer.files() == ["chat.db"]
    writer.disk.fails = False
    assert asyncio.run(writer.write()).status is not Status.DIFFERENT


def test_a_file_system_without_hard_links_gets_the_file(writer: FileWriter) -> None:
    """The file is renamed there, and an existing one is not replaced."""
    writer.disk.has_links = False
    assert asyncio.run(writer.write()).status is not Status.DIFFERENT
    assert writer.disk.events == [("sync", "unproven"), ("sync", "directory")]
    assert writer.files() == ["chat.db", "made"]
    taken = writer.directory / "made"
    unproven = writer.directory / "unproven"
    unproven.touch()
    with pytest.raises(FileExistsError):
        publish(unproven, taken)


def test_a_call_that_is_cancelled_at_the_last_moment_leaves_no_file(writer: FileWriter) -> None:
    """A cancelled run leaves no file behind that would block the same command."""

    async def run() -> None:
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(cancelled.set)
            assert cancelled.wait(10)

        writer.disk.before_directory = cancel
        task = asyncio.create_task(writer.write())
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert writer.files() == ["chat.db"]


def test_a_report_is_durable_before_the_command_ends(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is the record of the proof."""
    make_file_with_data(path)
    disk = SyncLog(monkeypatch)
    written = path.with_name("report.json")
    result = CliRunner().invoke(
        command, ["--sqlite-path", str(path), "--postgres-dsn", flux_empty_database, "--report", str(written), "--yes"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["status"] == "identical"
    assert disk.events[-2:] == [("sync", "report.json"), ("sync", "directory")]
