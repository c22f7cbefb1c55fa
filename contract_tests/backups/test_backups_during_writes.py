"""Tests that a backup is one consistent state while applications write."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from backup_stores import MakeStore, Store, restore

from flux_memory.operations.backup import BackupPlan, create_backup


@pytest.mark.parametrize("archive", [False, True], ids=["as it is", "archive"])
def test_a_backup_holds_a_prefix_of_each_conversation(
    store: Store, make_store: MakeStore, backups: Path, *, archive: bool
) -> None:
    """Each message that was acknowledged before the backup is in it, and none is without those before it."""
    acknowledged: dict[str, int] = {}

    async def work() -> tuple[Path, dict[str, int]]:
        async with store.open() as memory:
            ids = [await memory.create_session(f"s{number}", user_id="writer") for number in range(4)]
            acknowledged.update(dict.fromkeys(ids, 0))
            stop, enough = asyncio.Event(), asyncio.Event()

            async def write(id_: str) -> None:
                while not stop.is_set():
                    await memory.add_message(id_, "user", f"message {acknowledged[id_]}")
                    acknowledged[id_] += 1
                    if min(acknowledged.values()) >= 5:
                        enough.set()

            writers = [asyncio.create_task(write(id_)) for id_ in ids]
            await asyncio.wait_for(enough.wait(), 60)
            before = dict(acknowledged)
            report = await create_backup(BackupPlan(directory=backups, archive=archive, **store.plan()))
            stop.set()
            await asyncio.gather(*writers)
            assert report.path is not None
            return report.path, before

    backup, before = asyncio.run(work())
    target = make_store("sqlite")
    restore(backup, target)
    restored: dict[str, list[Any]] = {}
    for session_id, seq, _, _, content, *_ in target.rows()["messages"]:
        if session_id in before:
            restored.setdefault(session_id, []).append((seq, content))
    for id_, number in before.items():
        assert number <= len(restored[id_]) <= acknowledged[id_]
        assert restored[id_] == [(seq + 1, f"message {seq}") for seq in range(len(restored[id_]))]
