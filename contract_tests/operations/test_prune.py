"""Tests `flux-memory prune`: it deletes exactly what it counts, keeps what is used, and ends and resumes cleanly."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from original_application import make_file_with_data
from plain_stores import PlainStore
from raw_postgres import connect, create_role, execute
from waiting import becomes_true

from flux_memory import ConversationMemory
from flux_memory.cli import main
from flux_memory.operations.prune import PruneCriteria, Pruned
from flux_memory.operations.prune import prune as run_steps
from flux_memory.operations.prune.file_store import PrunedFile

OLD = "2026-01-02T03:04:05"
ROLE_GRANTS = (
    "GRANT SELECT ON flux_memory_schema TO {role}",
    "GRANT SELECT, DELETE ON sessions, session_details, messages TO {role}",
    "GRANT UPDATE ON sessions TO {role}",
)


def run_prune(store: PlainStore, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["prune", *store.options, *arguments])


async def run_prune_process(store: PlainStore, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, while this one uses the store; it must succeed."""
    command = [sys.executable, "-m", "flux_memory", "prune", *store.options, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def filled(plain_store: PlainStore) -> PlainStore:
    """A store with 7 old sessions of ann, 5 old ones of bob, and 2 new ones of ann, of 3 messages each."""
    plain_store.fill(7, user="ann", prefix="a", last=OLD)
    plain_store.fill(5, user="bob", prefix="b", last=OLD)
    plain_store.fill(2, user="ann", prefix="new")
    return plain_store


def test_a_dry_run_counts_exactly_and_changes_nothing(filled: PlainStore) -> None:
    """The numbers are those of the run that follows."""
    before = filled.execute("SELECT id, updated_at FROM sessions ORDER BY id")
    result = run_prune(filled, "--inactive", "90d", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "Found   12 sessions, 36 messages, without a change since 20" in result.stdout
    assert "Found   7 sessions, 21 messages, of the user 'ann', without" in run_prune(
        filled, "--inactive", "90d", "--user", "ann", "--dry-run"
    ).stdout.replace("\n", " ")
    assert (
        "Found   9 sessions, 27 messages, of the user 'ann'\n" in run_prune(filled, "--user", "ann", "--dry-run").stdout
    )
    assert filled.execute("SELECT id, updated_at FROM sessions ORDER BY id") == before


@pytest.mark.parametrize(
    ("criteria", "gone", "left"),
    [
        (("--inactive", "90d"), 12, {"new0", "new1"}),
        (("--inactive", "4w", "--user", "bob"), 5, {"new0", "new1", *(f"a{n}" for n in range(7))}),
        (("--user", "bob", "--inactive", "1d"), 5, {"new0", "new1", *(f"a{n}" for n in range(7))}),
        (("--inactive", "9999d"), 0, {"new0", "new1", *(f"a{n}" for n in range(7)), *(f"b{n}" for n in range(5))}),
    ],
)
def test_the_sessions_that_meet_the_criteria_go_with_their_messages(
    filled: PlainStore, criteria: tuple[str, ...], gone: int, left: set[str]
) -> None:
    """Others stay as they are, and a second run finds nothing."""
    result = run_prune(filled, *criteria)
    assert result.exit_code == 0, result.output
    assert f"Deleted {gone} sessions, messages included.\n" in result.stdout
    assert {id_ for (id_,) in filled.execute("SELECT id FROM sessions")} == left
    assert filled.count() == (len(left), 3 * len(left))
    again = run_prune(filled, *criteria)
    assert (again.exit_code, "Deleted 0 sessions" in again.stdout) == (0, True)


def test_a_user_goes_with_the_feedback(filled: PlainStore) -> None:
    """An erasure finds feedback on sessions that are gone, too; a deletion by time keeps feedback."""

    async def rate() -> None:
        async with filled.open() as memory:
            for session in ("a0", "new0", "b0"):
                await memory.feedback.add(session, 1)
            await memory.delete_session("a0")

    asyncio.run(rate())
    assert "Found   6 sessions" in run_prune(filled, "--user", "ann", "--inactive", "1d").stdout
    assert filled.execute("SELECT count(*) FROM feedback") == [(3,)]
    result = run_prune(filled, "--user", "ann")
    assert result.exit_code == 0, result.output
    assert "2 entries of feedback of this user\n" in result.stdout
    assert "Deleted 2 sessions, messages included and the user's feedback.\n" in result.stdout
    assert filled.execute("SELECT user_id FROM feedback") == [("bob",)]
    assert {id_ for (id_,) in filled.execute("SELECT id FROM sessions")} == {f"b{n}" for n in range(5)}


def test_what_a_deletion_does_not_reach_is_said(filled: PlainStore) -> None:
    """An operator who has to erase learns where copies remain."""
    said = run_prune(filled, "--inactive", "90d").stdout
    for place in ("until VACUUM", "write-ahead log", "replicas") if filled.is_server else ("free pages", "-wal"):
        assert place in said
    assert "ackups" in said
    assert "--vacuum" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_many_are_gone_and_can_be_repeated(
    plain_store: PlainStore, number: signal.Signals
) -> None:
    """The number is exact, since the step that runs ends first."""
    total = 1_500
    plain_store.fill(total, messages=1, last=OLD)
    command = [sys.executable, "-m", "flux_memory", "prune", *plain_store.options, "--inactive", "1d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as run:
        assert becomes_true(lambda: plain_store.count()[0] < total, seconds=60)
        run.send_signal(number)
        said, told = run.communicate(timeout=60)
    assert run.returncode == 1, said + told
    match = re.fullmatch(r"Interrupted\. ([\d,]+) sessions are deleted; run the same command again to go on\.\n", told)
    assert match, told
    gone = int(match[1].replace(",", ""))
    assert 0 < gone < total
    assert plain_store.count() == (total - gone, total - gone)
    assert f"Deleted {total - gone:,} sessions" in run_prune(plain_store, "--inactive", "1d").stdout


def test_a_killed_run_leaves_whole_sessions(plain_store: PlainStore) -> None:
    """No session is half deleted, and the next run deletes the rest."""
    total = 1_500
    plain_store.fill(total, messages=2, last=OLD)
    command = [sys.executable, "-m", "flux_memory", "prune", *plain_store.options, "--inactive", "1d"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        assert becomes_true(lambda: plain_store.count()[0] < total, seconds=60)
        run.kill()
    assert becomes_true(lambda: run_prune(plain_store, "--inactive", "1d").exit_code == 0)
    assert plain_store.count() == (0, 0)


def test_a_session_that_is_used_meanwhile_stays(path: Path) -> None:
    """The first step deletes the oldest; a session that a user takes up before its step is not deleted."""
    store = PlainStore(str(path))
    store.fill(500, messages=1, last=OLD)
    pruned = Pruned()

    async def work() -> None:
        async with ConversationMemory(path) as memory, ConversationMemory(path) as other:
            used: list[str] = []

            async def use() -> None:
                (session,) = await other.get_sessions(1)
                await other.add_message(session["id"], "user", "still there?")
                used.append(session["id"])

            class Watched(PrunedFile):
                async def find_cut(self, criteria: PruneCriteria, sessions: int) -> datetime | None:
                    if pruned.sessions and not used:
                        await use()
                    return await super().find_cut(criteria, sessions)

            criteria = PruneCriteria(inactive_since=datetime.now(UTC) - timedelta(days=1))
            await run_steps(memory, Watched(str(path), 10), criteria, pruned, step_seconds=10)
            assert [row["id"] for row in await memory.get_sessions()] == used

    store.execute("UPDATE sessions SET updated_at = '2026-01-02T03:04:05.' || printf('%06d', rowid) || '+00:00'")
    asyncio.run(work())
    assert pruned.finished
    assert pruned.sessions == 499


def test_a_failure_says_how_many_are_gone(plain_store: PlainStore) -> None:
    """A session that the database keeps ends the run, after the steps that are done."""
    plain_store.fill(300, messages=1, last=OLD)
    plain_store.fill(1, prefix="kept", last="2026-02-02T00:00:00")
    if plain_store.is_server:
        plain_store.execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF old.id LIKE 'kept%' THEN RETURN NULL; END IF; RETURN old; END $$"
        )
        plain_store.execute("CREATE TRIGGER keep BEFORE DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION keep()")
        result = run_prune(plain_store, "--inactive", "1d")
        assert "FAILED  " in result.stderr
        assert "let the role delete them" in result.stderr
        assert plain_store.count()[0] == 1
        # The database serves other tests.
        plain_store.execute("DROP FUNCTION keep CASCADE")
    else:
        # A time that cannot be read decides about a session of the second step.
        plain_store.execute("UPDATE sessions SET updated_at = '2026-02-02, at noon' WHERE id LIKE 'kept%'")
        result = run_prune(plain_store, "--inactive", "1d")
        assert "cannot be read" in result.stderr
    assert result.exit_code == 1
    assert re.search(
        r"^At least \d+ sessions are deleted; run the same command again to go on\.$", result.stderr, re.MULTILINE
    )


def test_a_vacuum_of_a_file_leaves_no_byte_of_what_was_deleted(path: Path) -> None:
    """Neither the file nor its log has the text, also while an application has the file open."""
    store = PlainStore(str(path))
    secret = "the-secret-of-ann"

    def find() -> str:
        # In another process: closing a file drops the locks of this one on it.
        found = subprocess.run(["grep", "-rlF", secret, path.parent], capture_output=True, text=True, check=False)
        return found.stdout

    async def work() -> None:
        async with ConversationMemory(path) as memory:
            for number in range(50):
                await memory.add_message(f"s{number}", "user", f"{secret} {number}", create=True, user_id="ann")
            await memory.add_message("kept", "user", "hello", create=True)
            assert find() != ""
            result = await run_prune_process(store, "--user", "ann", "--vacuum")
            assert "emptied the log" in result.stdout
            assert re.search(r"[\d.]+ MB before, [\d.]+ MB now", result.stdout)
            assert find() == ""
            await memory.add_message("kept", "user", "the handle still works")
            assert len(await memory.get_history("kept")) == 2

    asyncio.run(work())


def test_a_vacuum_says_that_a_reader_is_in_its_way(path: Path) -> None:
    """While another process reads, the log cannot be emptied, and the command says so."""
    store = PlainStore(str(path))
    store.fill(20, user="ann")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sessions").fetchone()
        result = run_prune(store, "--user", "ann", "--vacuum", "--timeout", "1")
    assert result.exit_code == 0, result.output
    assert "-wal could not be emptied, because another process reads the file" in result.stdout


@pytest.mark.asyncio
async def test_a_vacuum_of_the_tables_removes_dead_rows(flux_memory_postgres_dsn: str) -> None:
    """The owner's vacuum leaves no dead row, unless a transaction may still see it; then the command says so."""
    store = PlainStore(flux_memory_postgres_dsn)
    await asyncio.to_thread(store.fill, 100, user="ann")
    async with connect(flux_memory_postgres_dsn) as other:
        async with other.transaction(isolation="repeatable_read"):
            await other.fetchval("SELECT count(*) FROM sessions")
            result = await run_prune_process(store, "--user", "ann", "--vacuum")
            assert "dead rows that 1 open transaction may still see stay in the tables" in result.stdout
        result = await run_prune_process(store, "--user", "ann", "--vacuum")
        assert "vacuumed sessions, session_details, messages, feedback: dead rows are gone" in result.stdout
        assert "stay in the tables" not in result.stdout
        assert "VACUUM FULL" in result.stdout


@pytest.mark.asyncio
async def test_the_applications_role_prunes_and_may_not_vacuum(flux_memory_postgres_dsn: str) -> None:
    """The documented role of an application is enough to prune; each table it may not vacuum is named."""
    store = PlainStore(flux_memory_postgres_dsn)
    await asyncio.to_thread(store.fill, 3, last=OLD)
    async with create_role(flux_memory_postgres_dsn, grants=ROLE_GRANTS) as dsn:
        result = await run_prune_process(PlainStore(dsn), "--inactive", "1d", "--vacuum")
        assert "Deleted 3 sessions" in result.stdout
        assert result.stdout.count("was not vacuumed: the role does not own it; run VACUUM as its owner") == 4
        await execute(flux_memory_postgres_dsn, "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
        try:
            result = await run_prune_process(PlainStore(dsn), "--inactive", "1d")
            assert "row-level security on sessions may hide others" in result.stdout
        finally:
            await execute(flux_memory_postgres_dsn, "ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --inactive, --user or both"),
        (("--inactive", ""), "--inactive is empty"),
        (("--user", "", "--inactive", "1d"), "--user is empty"),
        (("--inactive", "3m"), "write a whole number and a unit"),
        (("--inactive", "0d"), "is zero"),
        (("--user", "ann", "--dry-run", "--vacuum"), "exclude each other"),
        (("--user", "ann", "--timeout", "nan"), "is not a number of seconds"),
    ],
)
def test_wrong_usage_deletes_nothing(path: Path, arguments: tuple[str, ...], says: str) -> None:
    """An unset variable in a script must not widen what is deleted."""
    store = PlainStore(str(path))
    store.fill(1, user="", last=OLD)
    result = run_prune(store, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert store.count() == (1, 3)


def test_a_store_without_current_tables_is_neither_created_nor_upgraded(path: Path, flux_empty_database: str) -> None:
    """Only an application, or the check, creates and upgrades."""
    result = run_prune(PlainStore(str(path)), "--user", "ann")
    assert (result.exit_code, path.exists()) == (1, False)
    assert "does not exist" in result.stderr
    assert "Nothing was deleted." in result.stderr
    make_file_with_data(path)
    before = path.read_bytes()
    assert (
        "upgrade them first with flux-memory check --full" in run_prune(PlainStore(str(path)), "--user", "ann").stderr
    )
    assert path.read_bytes() == before
    assert "sees no tables there" in run_prune(PlainStore(flux_empty_database), "--user", "ann").stderr
