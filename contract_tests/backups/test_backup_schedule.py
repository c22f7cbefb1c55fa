"""Tests the units and the line for cron of `flux-memory backup schedule`, with systemd's own tool and a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from backup_stores import Store, back_up, fill, run_command, seen_files

from flux_memory.operations.backup.schedule import Schedule

ODD_NAMES = ["plain", 'with space and "quote"', "100% of $HOME", "back\\slash and 'apostrophe'"]


def verify_units(directory: Path) -> None:
    """Fail unless systemd reads each unit without a complaint."""
    tool = shutil.which("systemd-analyze")
    assert tool, "systemd is not installed: apt-get install systemd"
    for unit in sorted(directory.glob("flux-memory-*")):
        done = subprocess.run([tool, "verify", unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    """`systemd-analyze verify` has no complaint, also about paths with spaces, quotes and percent signs."""
    place = tmp_path / name
    place.mkdir()
    (place / "env").write_text("DATABASE_BACKEND=postgres\n")
    units = tmp_path / "units"
    units.mkdir()
    result = run_command(
        *("backup", "schedule", place / "backups", "--sqlite-path", place / "chat.db"),
        *("--environment-file", place / "env", "--account", "root", "--output", units),
    )
    assert result.exit_code == 0, result.output
    assert seen_files(units) == ["flux-memory-backup-chat.service", "flux-memory-backup-chat.timer"]
    verify_units(units)
    again = run_command("backup", "schedule", place / "b", "--sqlite-path", place / "chat.db", "--output", units)
    assert (again.exit_code, "has flux-memory-backup-chat.service already" in again.output) == (1, True)


@pytest.mark.parametrize(
    ("directory", "store", "private"),
    [
        ("/srv/backups", "/srv/chat.db", "yes"),
        ("/var/backups", None, "yes"),
        ("/srv/backups", "/tmp/chat.db", "no"),
        ("/var/tmp/backups", None, "no"),
    ],
)
def test_the_service_finds_files_below_tmp(
    directory: str, store: str | None, private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a directory for temporary files of its own, the backup of a first trial would find no store."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    plan = Schedule.from_options(directory=Path(directory), sqlite_path=store, account="chat", name="chat")
    assert f"\nPrivateTmp={private}\n" in plan.units()["flux-memory-backup-chat.service"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_line_for_cron_makes_a_backup(tmp_path: Path, name: str) -> None:
    """Run as cron runs it, the line reads the environment file and makes a backup, with any characters in its paths."""
    place = tmp_path / name
    place.mkdir()
    store = Store(place / "chat.db", None)
    store.use(fill)
    (place / "env").write_text("FLUX_MEMORY_NOTE='read by the shell'\n")
    line = run_command(
        *("backup", "schedule", place / "backups", "--sqlite-path", place / "chat.db", "--cron", "--at", "23:05"),
        *("--environment-file", place / "env", "--keep-daily", "3"),
    ).output.rstrip("\n")
    assert line.startswith("5 23 * * * ")
    assert not re.search(r"(?<!\\)%", line)
    # cron hands the rest to the shell, with each escaped percent sign as one.
    command = line.removeprefix("5 23 * * * ").replace("\\%", "%")
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(seen_files(place / "backups")) == 2


def test_the_units_have_no_password_and_name_the_store(tmp_path: Path) -> None:
    """A DSN is not an option: its password would be in a file that each user reads."""
    plan = Schedule.from_options(
        directory=tmp_path / "b", environment_file=tmp_path / "env", account="chat", archive=True, keep_daily=7
    )
    service = plan.units()["flux-memory-backup-memory.service"]
    assert f"EnvironmentFile={tmp_path}/env" in service
    assert f"ExecStart={sys.executable} -m flux_memory backup --name memory --keep-daily 7 --archive -- " in service
    assert "User=chat" in service
    assert "ProtectSystem=strict" in service
    refused = run_command("backup", "schedule", tmp_path, "--postgres-dsn", "postgresql://u:hidden-word@h/d")
    assert refused.exit_code == 2
    assert "hidden-word" not in refused.output


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "give --sqlite-path, or --environment-file"),
        (["--sqlite-path", "x", "--at", "24:00"], 1, "is not one of a day"),
        (["--sqlite-path", "x", "--account", "a\nUser=root"], 1, "is not the name of an account"),
        (["--sqlite-path", "a\nb"], 1, "invisible character"),
        (["--sqlite-path", "x", "--name", "../x"], 1, "cannot begin the names"),
        (["--sqlite-path", "x", "--cron", "--output", "/tmp"], 2, "--output is for units"),
        (["--sqlite-path", "x", "--output", "/dev/null/units"], 1, "give --output an existing directory"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], code: int, says: str) -> None:
    """An option that a unit cannot hold is refused with its reason."""
    result = run_command("backup", "schedule", tmp_path / "b", *options)
    assert result.exit_code == code
    assert says in result.output


def test_a_directory_may_be_called_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./schedule is a directory, schedule the command."""
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "chat.db", None)
    store.use(fill)
    assert run_command("backup", "./schedule", *store.options()).exit_code == 0
    assert len(seen_files(tmp_path / "schedule")) == 2
    assert back_up(store, tmp_path / "schedule", name="other").name.startswith("other-")
