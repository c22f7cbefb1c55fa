"""Tests that a backup that fails leaves nothing that looks like a backup, and removes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, seen_files
from raw_postgres import execute
from small_disk import fill_disk, mount_small_disk
from waiting import becomes_true

from flux_memory.errors import FluxMemoryError
from flux_memory.operations.backup import hidden
from flux_memory.transfer.tempfiles import is_locked


def start_backup(store: Store, directory: Path, *more: str) -> subprocess.Popen[str]:
    """Start the command."""
    command = [sys.executable, "-m", "flux_memory", "backup", str(directory), *store.options(), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_hidden_file(directory: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the backup has begun to write."""
    assert becomes_true(
        lambda: process.poll() is not None or any(name.startswith(".flux") for name in seen_files(directory))
    )


@pytest.mark.parametrize("archive", [(), ("--archive",)], ids=["as it is", "archive"])
def test_a_killed_backup_leaves_no_backup_and_the_next_one_cleans_up(
    store: Store, backups: Path, archive: tuple[str, ...]
) -> None:
    """After kill -9 there is only a hidden file, which the next backup removes."""
    backups.mkdir()
    with start_backup(store, backups, *archive) as process:
        wait_for_hidden_file(backups, process)
        process.kill()
        process.communicate()
    # A child that it was starting shares its lock for a moment longer.
    assert becomes_true(lambda: not any(is_locked(backups / name) for name in seen_files(backups)))
    left = [name for name in seen_files(backups) if not name.startswith(".flux-memory-backup-")]
    assert left == [] or process.returncode == 0
    backup = back_up(store, backups, archive=bool(archive))
    assert [name for name in seen_files(backups) if name.startswith(".")] == []
    assert backup.name in seen_files(backups)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_says_so_and_leaves_nothing(store: Store, backups: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the backup with a sentence, exit code 1 and an empty directory."""
    backups.mkdir()
    with start_backup(store, backups, "--archive") as process:
        wait_for_hidden_file(backups, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the backup ended before the signal arrived")
    assert process.returncode == 1
    assert "Interrupted. No backup was written" in errors
    assert "Traceback" not in errors
    assert seen_files(backups) == []


@pytest.mark.parametrize("archive", [False, True], ids=["as it is", "archive"])
def test_a_full_disk_leaves_the_older_backup_alone(store: Store, *, archive: bool) -> None:
    """On a full disk the backup fails with a sentence, and an older backup is neither damaged nor removed."""
    with mount_small_disk("1m") as disk:
        directory = disk / "backups"
        older = back_up(store, directory, archive=archive)
        names = seen_files(directory)
        content = older.read_bytes()
        filler = fill_disk(disk, leave=0)
        with pytest.raises(FluxMemoryError, match="room"):
            back_up(store, directory, archive=archive)
        assert seen_files(directory) == names
        assert older.read_bytes() == content
        filler.unlink()


def test_a_server_that_ends_the_connections_leaves_nothing(make_store: MakeStore, backups: Path) -> None:
    """If the server closes the connections during a backup, the error is the library's and no file stays."""
    store = make_store("postgres")
    store.use(fill)
    assert store.postgres_dsn is not None
    dsn = store.postgres_dsn

    async def end_connections() -> None:
        await execute(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()",
        )

    backups.mkdir()
    with start_backup(store, backups) as process:
        wait_for_hidden_file(backups, process)
        while process.poll() is None:
            asyncio.run(end_connections())
        _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "FAILED" in errors
    assert "Traceback" not in errors
    assert seen_files(backups) == []


def test_a_directory_that_cannot_hold_backups_is_named(make_store: MakeStore, tmp_path: Path) -> None:
    """A missing parent, perhaps of a disk that is not mounted, is not created; a file is not a directory."""
    store = make_store("sqlite")
    store.use(fill)
    with pytest.raises(FluxMemoryError, match="not mounted"):
        back_up(store, tmp_path / "mnt" / "backups")
    (tmp_path / "file").write_text("")
    with pytest.raises(FluxMemoryError, match="is not a directory"):
        back_up(store, tmp_path / "file")


def test_the_hidden_file_of_a_running_backup_is_kept(tmp_path: Path) -> None:
    """A file of a process at work is not a leftover; one of a killed process is, with its companions."""
    with hidden.hidden_file(tmp_path) as path:
        os.link(path, tmp_path / ".flux-memory-backup-0000")
        lost = tmp_path / ".flux-memory-backup-dead"
        lost.write_text("x")
        lost.with_name(lost.name + "-journal").write_text("x")
        assert hidden.remove_leftovers(tmp_path) == 1
        assert path.exists()
        assert not lost.exists()
    assert [name for name in seen_files(tmp_path) if "dead" in name] == []
