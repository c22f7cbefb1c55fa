"""Tests that migrations carry feedback in both directions, prove it, and do not bring deleted entries back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from raw_postgres import execute, fetch_rows

from flux_memory import ConversationMemory, FeedbackEntry, Memory, MigrationError, PostgresConversationMemory
from flux_memory.transfer import Mode, OnInvalid, Plan, Report, Status, migrate, migrate_back

ENTRIES = 1_300
"""More than a batch and a page."""


@pytest_asyncio.fixture(loop_scope="function")
async def path(tmp_path: Path) -> Path:
    """A file with a session and feedback on it, and on sessions that do not exist."""
    path = tmp_path / "chat.db"
    async with ConversationMemory(path) as memory:
        await memory.create_session(session_id="s", user_id="ann")
        await memory.add_message("s", "user", "hi")
    rows = [
        (
            f"{'é' if at % 2 else 'e'}{at}",
            "s" if at % 3 else "gone",
            None if at % 5 else f"m{at}",
            "ann" if at % 3 else "",
            at % 3 - 1,
            "한" * (at % 4),
            None if at % 7 else "",
            json.dumps({"b": 1.0, "a": [at, None, True]}),
            f"2026-02-{at % 28 + 1:02}T10:00:00.{at:06}+00:00",
        )
        for at in range(ENTRIES)
    ]
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return path


async def run(path: Path, dsn: str, **options: Any) -> Report:
    return await migrate(Plan(sqlite_path=path, postgres_dsn=dsn, **options))


async def entries(memory: Memory) -> list[FeedbackEntry]:
    async with memory:
        return await memory.feedback.get(None)


async def entries_of(dsn: str) -> list[FeedbackEntry]:
    return await entries(PostgresConversationMemory(dsn))


def count(report: Report) -> tuple[int, int]:
    assert report.verification is not None
    return report.verification.feedback, report.verification.target_feedback


@pytest.mark.asyncio
async def test_feedback_moves_both_ways_with_its_owners(path: Path, target: str, tmp_path: Path) -> None:
    """Every entry arrives with its values, its time and its owner, in a second run nothing is added, and back again."""
    before = await entries(ConversationMemory(path))
    assert (await run(path, target, mode=Mode.PREFLIGHT)).status is Status.READY
    first = await run(path, target)
    assert (first.status, count(first)) == (Status.IDENTICAL, (ENTRIES, ENTRIES))
    assert first.moved is not None
    assert (first.moved.feedback, first.as_dict()["moved"]["feedback"]) == (ENTRIES, ENTRIES)
    assert await entries_of(target) == before
    second = await run(path, target)
    assert second.moved is not None
    assert (second.status, second.moved.feedback, second.moved.skipped_feedback) == (Status.IDENTICAL, 0, ENTRIES)
    assert (await run(path, target, mode=Mode.VERIFY)).status is Status.IDENTICAL
    back = tmp_path / "back.db"
    report = await migrate_back(target, back)
    assert (report.status, count(report)) == (Status.IDENTICAL, (ENTRIES, ENTRIES))
    assert await entries(ConversationMemory(back)) == before
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(back)) as other:
        owners = "SELECT id, user_id FROM feedback ORDER BY id"
        assert one.execute(owners).fetchall() == other.execute(owners).fetchall()


@pytest.mark.asyncio
async def test_entries_that_were_deleted_since_stay_deleted(path: Path, target: str) -> None:
    """A kept file does not bring back what a user asked to erase, unless the operator asks for it."""
    await run(path, target)
    async with PostgresConversationMemory(target) as memory:
        assert await memory.delete_sessions(user_id="ann") == 1
        left = {entry["session_id"] for entry in await memory.feedback.get(None)}
    assert left == {"gone"}
    erased = ENTRIES - len(await entries_of(target))
    again = await run(path, target)
    assert again.verification is not None
    assert (again.status, again.verification.feedback_deleted_since) == (Status.SKIPPED, erased)
    assert len(await entries_of(target)) == ENTRIES - erased
    compared = await run(path, target, mode=Mode.VERIFY)
    assert compared.verification is not None
    assert compared.status is Status.DIFFERENT
    assert compared.verification.differences["feedback missing"] == erased
    assert (await run(path, target, restore_deleted=True)).status is Status.IDENTICAL
    assert len(await entries_of(target)) == ENTRIES


CHANGES = (
    "comment = comment || ' '",
    "corrected_answer = coalesce(corrected_answer || 'x', '-')",
    "rating = CASE rating WHEN 1 THEN 0 ELSE 1 END",
    "message_id = coalesce(message_id || 'x', 'x')",
    "session_id = session_id || 'x'",
    "user_id = 'eve'",
    "metadata = jsonb_set(metadata, '{b}', '1')",
    "created_at = created_at + interval '1 microsecond'",
)


@pytest.mark.asyncio
async def test_entries_that_differ_are_found_left_and_replaced(path: Path, target: str) -> None:
    """The proof sees each column; only `--replace` overwrites."""
    await run(path, target)
    changes = (f"UPDATE feedback SET {change} WHERE id = 'e{2 * at}'" for at, change in enumerate(CHANGES))
    more = "INSERT INTO feedback SELECT 'more', session_id, NULL, '', 1, '', NULL, '{}', now() FROM feedback LIMIT 1"
    await execute(target, *changes, more)
    different = await run(path, target)
    assert different.verification is not None
    assert (different.status, different.verification.differences) == (
        Status.DIFFERENT,
        {"feedback differs": len(CHANGES)},
    )
    preview = await run(path, target, replace=True, mode=Mode.PREFLIGHT)
    assert preview.losses is not None
    assert (preview.losses.feedback_only_in_target, preview.losses.differences) == (
        1,
        {"feedback differs": len(CHANGES)},
    )
    replaced = await run(path, target, replace=True)
    assert replaced.moved is not None
    assert (replaced.status, replaced.moved.replaced_feedback) == (Status.IDENTICAL, ENTRIES + 1)
    assert await entries_of(target) == await entries(ConversationMemory(path))


@pytest.mark.asyncio
async def test_a_trigger_that_changes_feedback_is_found(path: Path, target: str) -> None:
    """A rehearsal cannot see it, but the proof of a replacement undoes it."""
    async with PostgresConversationMemory(target) as memory:
        await memory.feedback.add("here", 1)
    await execute(
        target,
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.comment := upper(NEW.comment) || '!'; RETURN NEW; END $$",
        "CREATE TRIGGER shout BEFORE INSERT ON feedback FOR EACH ROW EXECUTE FUNCTION shout()",
    )
    assert (await run(path, target, replace=True)).status is Status.DIFFERENT
    assert [entry["session_id"] for entry in await entries_of(target)] == ["here"]


@pytest.mark.asyncio
async def test_refused_entries_go_to_quarantine_and_return(path: Path, target: str, tmp_path: Path) -> None:
    """A damaged entry is named, the others move, and the corrected one follows."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE feedback SET rating = 7 WHERE id = 'e0'")
        db.execute("UPDATE feedback SET metadata = '[' WHERE id = 'é1'")
    assert (await run(path, target)).status is Status.REFUSED
    quarantine = tmp_path / "refused.jsonl"
    report = await run(path, target, on_invalid=OnInvalid.QUARANTINE, quarantine_file=quarantine)
    assert (report.status, report.preflight.refused_feedback) == (Status.QUARANTINED, 2)
    assert len(await entries_of(target)) == ENTRIES - 2
    text = quarantine.read_text("utf-8")
    assert "not a rating" in text
    assert "bad JSON" in text
    quarantine.write_text(text.replace('"rating": 7', '"rating": 1').replace('"metadata": "["', '"metadata": {}'))
    assert (await run(quarantine, target, retry=True)).status is Status.CONTAINED
    found = {entry["feedback_id"]: entry for entry in await entries_of(target)}
    assert len(found) == ENTRIES
    assert (found["e0"]["rating"], found["é1"]["metadata"]) == (1, {})


@pytest.mark.asyncio
async def test_a_file_whose_feedback_is_missing_is_refused(path: Path, target: str) -> None:
    """A current file without the table has lost it, and the move would not notice."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE feedback")
    with pytest.raises(MigrationError, match="the table 'feedback' is missing or lacks"):
        await run(path, target)
    assert await fetch_rows(target, "SELECT to_regclass('sessions') IS NULL") == [(True,)]
