"""Tests the proof of a migration: it cannot be forged, and finds hidden rows and wrong numbers."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from original_application import make_file, make_file_with_data
from raw_postgres import create_role, execute, fetch_rows
from transfer_memories import insert_message, insert_session, move, read_target

from flux_memory import FluxMemoryError
from flux_memory.transfer import Mode, Plan, Status, migrate, migrate_back
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


def find_cancelling_subset(vectors: dict[int, int]) -> set[int]:
    """Return a subset of the vectors whose XOR is 0, by Gaussian elimination; 257 vectors of 256 bits suffice."""
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
    raise AssertionError("there are too few vectors")


def test_no_choice_of_altered_messages_is_called_identical(path: Path, flux_empty_database: str) -> None:
    """Altered messages whose digests XOR to the same value are detected: the combined digest is not linear."""
    dsn = flux_empty_database
    with closing(make_file(path)) as db:
        db.execute("BEGIN")
        insert_session(db, "one")
        for number in range(300):
            insert_message(db, f"m{number:03}", "one")
        db.execute("COMMIT")
    assert move(path, dsn).status is Status.IDENTICAL
    digests = asyncio.run(fetch_rows(dsn, DIGESTS))
    forged = find_cancelling_subset({seq: int.from_bytes(own) ^ int.from_bytes(other) for seq, own, other in digests})
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
        insert_session(db, "one")
        for number in range(messages):
            insert_message(db, f"m{number:05}", "one")
        db.execute("COMMIT")

    def compare_rows(*_: object) -> None:
        raise AssertionError("the digests differ")

    monkeypatch.setattr(verify, "_compare_session", compare_rows)
    assert move(path, flux_empty_database).status is Status.IDENTICAL


def test_rows_hidden_by_a_policy_are_an_error(path: Path, flux_empty_database: str) -> None:
    """A policy that hides rows is an error: otherwise a part would be proven, or a filled table would seem empty."""
    dsn = flux_empty_database
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    before = read_target(dsn)
    statements = [
        f"ALTER TABLE {table} {what}"
        for table in ("sessions", "session_details", "messages")
        for what in ("OWNER TO {role}", "ENABLE ROW LEVEL SECURITY", "FORCE ROW LEVEL SECURITY")
    ]

    async def run() -> None:
        async with create_role(dsn, grants=("GRANT ALL ON SCHEMA public TO {role}",)) as own:
            name = own.partition("://")[2].partition(":")[0]
            owned = (statement.format(role=name) for statement in statements)
            await execute(
                dsn, f"GRANT SELECT ON flux_memory_schema TO {name}", f"ALTER TABLE feedback OWNER TO {name}", *owned
            )
            try:
                for work in (
                    migrate_back(own, path.with_name("back.db")),
                    migrate(Plan(sqlite_path=path, postgres_dsn=own)),
                    migrate(Plan(sqlite_path=path, postgres_dsn=own, mode=Mode.VERIFY)),
                ):
                    with pytest.raises(FluxMemoryError, match="row-level security"):
                        await work
            finally:
                tables = ("sessions", "session_details", "messages", "feedback")
                await execute(dsn, *(f"ALTER TABLE {table} OWNER TO CURRENT_USER" for table in tables))

    asyncio.run(run())
    assert read_target(dsn) == before
    assert not path.with_name("back.db").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE messages SET seq = seq + 100 WHERE session_id = 'one'",
        "UPDATE messages SET seq = 0 WHERE id = 'm3'",
        "UPDATE sessions SET message_count = 9 WHERE id = 'one'",
    ],
)
def test_the_guides_remedy_renumbers_messages(path: Path, flux_empty_database: str, damage: str) -> None:
    """Wrong seq numbers are found, and the guide's remedy fixes them."""
    dsn = flux_empty_database
    make_file_with_data(path)
    assert move(path, dsn).status is Status.IDENTICAL
    before = read_target(dsn)
    asyncio.run(execute(dsn, damage))
    assert move(path, dsn, mode=Mode.VERIFY).status is Status.DIFFERENT
    guide = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
    remedy = guide.partition("### Numbering messages anew")[2].partition("```sql\n")[2].partition("```")[0]
    asyncio.run(execute(dsn, remedy.replace("'ID'", "'one'")))
    assert move(path, dsn, mode=Mode.VERIFY).status is Status.IDENTICAL
    assert read_target(dsn) == before
