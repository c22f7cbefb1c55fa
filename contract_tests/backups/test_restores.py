"""Tests that each kind of backup restores into each engine, whole and for one user, and replaces nothing unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, back_up, fill, restore

from flux_memory import Memory
from flux_memory.errors import BackupError
from flux_memory.operations.restore import Outcome


@pytest.mark.parametrize("target_engine", ["sqlite", "postgres"])
@pytest.mark.parametrize("archive", [False, True], ids=["as it is", "archive"])
def test_each_backup_restores_into_each_engine(
    store: Store, make_store: MakeStore, backups: Path, *, archive: bool, target_engine: str
) -> None:
    """A copy, a dump and an archive each give an empty store of either engine the same rows."""
    backup = back_up(store, backups, archive=archive)
    assert backup.stat().st_mode & 0o777 == 0o600
    target = make_store(target_engine)
    assert restore(backup, target).outcome is Outcome.RESTORED
    assert target.rows() == store.rows()
    # The restored store is one that applications go on writing to.
    target.use(fill)
    assert len(target.rows()["sessions"]) == 12


@pytest.mark.parametrize("target_engine", ["sqlite", "postgres"])
@pytest.mark.parametrize("archive", [False, True], ids=["as it is", "archive"])
def test_a_populated_target_is_replaced_only_on_request(
    store: Store, make_store: MakeStore, backups: Path, *, archive: bool, target_engine: str
) -> None:
    """Without `replace` the counts are named and nothing changes; with it the target has the backup's rows only."""
    backup = back_up(store, backups, archive=archive)
    target = make_store(target_engine)
    target.use(lambda memory: fill(memory, users=1, seed=2))
    before = target.rows()
    with pytest.raises(BackupError, match="has 2 sessions, 24 messages, 2 feedback entries, which the restore would"):
        restore(backup, target)
    looked = restore(backup, target, dry_run=True)
    assert (looked.outcome, looked.lost.sessions, looked.exit_code) == (Outcome.REFUSED, 2, 1)
    assert target.rows() == before
    report = restore(backup, target, replace=True)
    assert (report.outcome, report.lost.messages) == (Outcome.RESTORED, 24)
    assert target.rows() == store.rows()


@pytest.mark.parametrize("target_engine", ["sqlite", "postgres"])
@pytest.mark.parametrize("kind", ["as it is", "archive", "archive of the user"])
def test_one_user_is_restored_beside_the_others(
    store: Store, make_store: MakeStore, backups: Path, kind: str, target_engine: str
) -> None:
    """The rows of one user come back exactly, and those of other users stay as they are."""
    user = "user-1" if kind == "archive of the user" else None
    backup = back_up(store, backups, archive=kind != "as it is", user=user)
    target = make_store(target_engine)
    restore(backup, target, user="user-1")
    assert target.rows() == store.rows("user-1")

    async def change(memory: Memory) -> None:
        await memory.create_session("later", user_id="user-1")
        await memory.create_session("of another", user_id="zed")
        for session in await memory.get_sessions(user_id="user-1"):
            await memory.add_message(session["id"], "user", "later")

    target.use(change)
    with pytest.raises(BackupError, match="of the user, which the restore would replace"):
        restore(backup, target, user="user-1")
    others = target.rows("zed")
    restore(backup, target, user="user-1", replace=True)
    assert target.rows("user-1") == store.rows("user-1")
    assert target.rows("zed") == others
    assert len(target.rows()["sessions"]) == 3


@pytest.mark.parametrize("target_engine", ["sqlite", "postgres"])
def test_sessions_of_another_user_are_never_taken_over(
    make_store: MakeStore, backups: Path, target_engine: str
) -> None:
    """If an id belongs to another user by now, nothing of either user changes."""
    source, target = make_store("sqlite"), make_store(target_engine)
    source.use(lambda memory: memory.create_session(session_id="shared", user_id="ann"))
    target.use(lambda memory: memory.create_session("mine", session_id="shared", user_id="bob"))
    before = target.rows()
    backup = back_up(source, backups, archive=True)
    with pytest.raises(BackupError, match=r"belong to another user .*: shared"):
        restore(backup, target, user="ann")
    assert target.rows() == before


def test_a_user_without_sessions_is_refused(store: Store, make_store: MakeStore, backups: Path) -> None:
    """A misspelt user neither gives an empty backup nor empties a target."""
    with pytest.raises(BackupError, match="'not-there' has no sessions"):
        back_up(store, backups, archive=True, user="not-there")
    backup = back_up(store, backups, archive=True)
    target = make_store("sqlite")
    with pytest.raises(BackupError, match="'not-there' has no sessions"):
        restore(backup, target, user="not-there")
    assert target.sqlite_path is not None and not target.sqlite_path.exists()  # noqa: PT018 - one fact


def test_a_backup_of_one_user_is_not_one_of_another(store: Store, make_store: MakeStore, backups: Path) -> None:
    """An archive of one user is refused for another."""
    backup = back_up(store, backups, archive=True, user="user-1")
    with pytest.raises(BackupError, match="of another user only"):
        restore(backup, make_store("sqlite"), user="user-2")
