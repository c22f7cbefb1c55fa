"""Tests that a restore which is killed or interrupted leaves its target as it was, or as the backup is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, restore

ROUNDS = 4


def start_restore(path: Path, store: Store, *more: str) -> subprocess.Popen[str]:
    """Start the command."""
    command = [sys.executable, "-m", "flux_memory", "restore", str(path), *store.options(), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("target_engine", ["sqlite", "postgres"])
@pytest.mark.parametrize("user", [None, "user-0"], ids=["all", "one user"])
def test_a_killed_restore_is_all_or_nothing(
    make_store: MakeStore, backups: Path, target_engine: str, user: str | None
) -> None:
    """After kill -9 at any moment, the target has its own rows or those of the backup, and the next run ends well."""
    source, target = make_store("sqlite"), make_store(target_engine)
    source.use(lambda memory: fill(memory, messages=60))
    target.use(lambda memory: fill(memory, users=1, messages=60, seed=9))
    backup = back_up(source, backups, archive=True)
    options = ["--replace", "--yes", *(["--user", user] if user else [])]
    rng = random.Random(os.environ.get("FLUX_MEMORY_TRANSFER_SEED", "7"))
    before, after = target.rows(user), source.rows(user)
    for _ in range(ROUNDS):
        with start_restore(backup, target, *options) as process:
            time.sleep(rng.uniform(0.3, 1.5))
            process.kill()
            process.communicate()
        assert target.rows(user) in (before, after)
    restore(backup, target, user=user, replace=True)
    assert target.rows(user) == after


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_leaves_no_file(make_store: MakeStore, backups: Path, number: signal.Signals) -> None:
    """An interrupted restore into a new file leaves no file, hidden ones included, and says what happened."""
    source, target = make_store("sqlite"), make_store("sqlite")
    source.use(lambda memory: fill(memory, users=20, messages=200))
    backup = back_up(source, backups, archive=True, verify=False)
    assert target.sqlite_path is not None
    with start_restore(backup, target) as process:
        assert process.stdout is not None
        # It has installed its handlers by the time of its first words.
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        assert target.rows() == source.rows()
    else:
        assert process.returncode == 1
        assert "Interrupted." in errors
        assert "Traceback" not in errors
        assert [*target.sqlite_path.parent.iterdir()] == []
