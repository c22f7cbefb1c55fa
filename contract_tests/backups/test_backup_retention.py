"""Tests which backups retention keeps: table by table, and never a file that is not a backup of the same store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, run_command, seen_files

from flux_memory.operations.backup import Retention
from flux_memory.operations.backup.manifest import manifest_path

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
"""A Monday."""


@pytest.mark.parametrize(
    ("daily", "weekly", "days", "kept"),
    [
        (None, None, range(5), [0, 1, 2, 3, 4]),
        (0, None, range(5), [0]),
        (0, 0, range(5), [0]),
        (3, None, range(10), [0, 1, 2]),
        (2, 3, range(30), [0, 1, 8]),
        (7, 4, range(40), [0, 1, 2, 3, 4, 5, 6, 8, 15]),
        (2, None, [0, 0.1, 0.2, 5, 9], [0, 5]),
        (None, 2, [0, 3, 20, 40], [0, 3]),
        (3, 0, [50, 60], [50, 60]),
    ],
)
def test_the_newest_of_each_day_and_week_is_kept(
    daily: int | None, weekly: int | None, days: list[float], kept: list[float]
) -> None:
    """The table of what is kept, by age in days; the newest always is."""
    times = {age: NOW - timedelta(days=age) for age in days}
    chosen = Retention(daily, weekly).choose(times.values())
    assert sorted(age for age, time in times.items() if time in chosen) == kept


def age_backup(backup: Path, days: int) -> Path:
    """Make a backup look older, in its name and in its manifest."""
    record = json.loads(manifest_path(backup).read_text())
    then = datetime.fromisoformat(record["created_at"]) - timedelta(days=days)
    name = f"{record['name']}-{then:%Y%m%dT%H%M%SZ}{backup.suffix}"
    older = backup.with_name(name)
    manifest_path(older).write_text(json.dumps(record | {"created_at": then.isoformat()}))
    manifest_path(backup).unlink()
    return backup.rename(older)


@pytest.fixture
def aged(make_store: MakeStore, backups: Path) -> tuple[Store, list[Path]]:
    """A store with backups of ten, five and two days ago."""
    store = make_store("sqlite")
    store.use(fill)
    return store, [age_backup(back_up(store, backups, verify=False), days) for days in (10, 5, 2)]


def test_only_backups_of_the_same_store_and_kind_are_removed(
    aged: tuple[Store, list[Path]], make_store: MakeStore, backups: Path
) -> None:
    """A backup of another store or kind, a file without a manifest and one of another size are all kept."""
    store, (oldest, older, old) = aged
    other = make_store("sqlite")
    other.use(fill)
    kept = [
        age_backup(back_up(other, backups, verify=False), 30),
        age_backup(back_up(store, backups, archive=True, verify=False), 31),
    ]
    (backups / "chat-20200101T000000Z.db").write_text("mine")
    with older.open("ab") as file:
        file.write(b"more")
    newest = back_up(store, backups, verify=False, retention=Retention(daily=2))
    names = seen_files(backups)
    assert oldest.name not in names
    assert manifest_path(oldest).name not in names
    assert {each.name for each in (*kept, older, old, newest)} <= set(names)
    assert "chat-20200101T000000Z.db" in names


def test_a_dry_run_names_what_it_would_remove(aged: tuple[Store, list[Path]], backups: Path) -> None:
    """With --dry-run nothing is written or removed, and the same backups are named that a run removes."""
    store, (oldest, older, _) = aged
    before = seen_files(backups)
    options = [*store.options(), "--keep-daily", "2", "--no-verify"]
    dry = run_command("backup", backups, *options, "--dry-run")
    assert dry.exit_code == 0
    assert [line for line in dry.output.splitlines() if line.startswith("Would")] == [
        f"Would remove {oldest}",
        f"Would remove {older}",
    ]
    assert seen_files(backups) == before
    done = run_command("backup", backups, *options)
    assert [line.replace("Removed", "Would remove") for line in done.output.splitlines() if "emove" in line] == [
        f"Would remove {oldest}",
        f"Would remove {older}",
    ]
    assert not oldest.exists()


def test_a_failed_backup_removes_nothing(aged: tuple[Store, list[Path]], backups: Path) -> None:
    """If the store cannot be read, all older backups stay."""
    store, _ = aged
    before = seen_files(backups)
    assert store.sqlite_path is not None
    store.sqlite_path.write_bytes(b"not a database" * 100)
    assert run_command("backup", backups, *store.options(), "--keep-daily", "0").exit_code == 1
    assert seen_files(backups) == before


def test_a_manifest_without_its_backup_is_removed(aged: tuple[Store, list[Path]], backups: Path) -> None:
    """A run that was killed between the two names leaves a manifest, which the next run removes."""
    store, (oldest, *_) = aged
    oldest.unlink()
    back_up(store, backups, verify=False)
    assert not manifest_path(oldest).exists()
