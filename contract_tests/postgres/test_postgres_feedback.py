"""Tests of feedback that need the server's own data: upgrades, other tables of the name, triggers, locks, erasures."""

from __future__ import annotations

import asyncio

import pytest
from older_schemas import make_version
from raw_postgres import connect, create_role, execute, fetch_rows
from waiting import wait_until

from flux_memory import ConflictError, PostgresConversationMemory, SchemaError
from flux_memory.health import check_postgres
from flux_memory.records import check_new_feedback
from flux_memory.records.ratings import DatedFeedback, ImportOutcome

IN_CHAT = "?options=-csearch_path%3Dchat,public"


def entry(feedback_id: str) -> DatedFeedback:
    """Return an entry of an import."""
    return DatedFeedback(check_new_feedback("s", 1, feedback_id=feedback_id), "2026-02-05T15:17:55.280357+00:00")


async def are_waiting(dsn: str, connections: int) -> bool:
    """Return whether so many connections wait for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return await fetch_rows(dsn, waits) == [(connections,)]


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [0, 1, 2, 5, 6])
async def test_each_version_is_upgraded(version: int, flux_empty_database: str) -> None:
    """The table is there after the first use, and conversations are as before."""
    if version:
        await make_version(flux_empty_database, version)
    assert (await check_postgres(flux_empty_database, 10)).feedback == 0
    async with PostgresConversationMemory(flux_empty_database) as memory:
        sessions = await memory.count_sessions()
        added = await memory.feedback.add("s", 1)
        assert [entry["feedback_id"] for entry in await memory.feedback.get()] == [added]
    found = await check_postgres(flux_empty_database, 10)
    assert (found.schema, found.sessions, found.feedback) == ("version 7, current", sessions, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("taken", "statement"),
    [
        ("CREATE TABLE feedback (id integer)", "ALTER TABLE feedback RENAME TO feedback_before"),
        ("CREATE TYPE feedback AS ENUM ('good', 'bad')", "ALTER TYPE feedback RENAME TO feedback_before"),
        ("CREATE DOMAIN feedback AS integer", "ALTER TYPE feedback RENAME TO feedback_before"),
        ("CREATE INDEX feedback_by_time ON flux_memory_schema (name)", "ALTER INDEX feedback_by_time RENAME TO"),
    ],
)
@pytest.mark.parametrize("version", [5, 6])
async def test_a_taken_name_is_refused_with_the_statement_that_helps(
    version: int, taken: str, statement: str, flux_empty_database: str
) -> None:
    """An application's own table is neither used nor changed."""
    await make_version(flux_empty_database, version)
    await execute(flux_empty_database, taken)
    async with PostgresConversationMemory(flux_empty_database) as memory:
        with pytest.raises(SchemaError, match=statement) as caught:
            await memory.count_sessions()
    with pytest.raises(SchemaError, match=statement):
        await check_postgres(flux_empty_database, 10)
    await execute(flux_empty_database, str(caught.value).partition("Run as their owner: ")[2].partition("; then")[0])
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.feedback.add("s", 1)


@pytest.mark.asyncio
async def test_a_program_may_keep_its_table_of_the_name(flux_empty_database: str) -> None:
    """A rename would break the program: the memory's tables can move to a schema of their own instead."""
    dsn = flux_empty_database
    await make_version(dsn, 6)
    await execute(dsn, "CREATE TABLE feedback (stars integer)", "INSERT INTO feedback VALUES (5)")
    async with PostgresConversationMemory(dsn) as memory:
        with pytest.raises(
            SchemaError, match="if a program uses it, keep it, and give flux-memory a schema of its own"
        ):
            await memory.count_sessions()
    before = await fetch_rows(dsn, "SELECT count(*) FROM messages")
    tables = ("sessions", "session_details", "messages", "flux_memory_schema")
    await execute(dsn, "CREATE SCHEMA chat", *(f"ALTER TABLE {name} SET SCHEMA chat" for name in tables))
    async with PostgresConversationMemory(dsn + "?search_path=chat") as memory:
        await memory.feedback.add("s", 1)
    counted = "SELECT (SELECT count(*) FROM chat.messages), (SELECT count(*) FROM chat.feedback)"
    assert await fetch_rows(dsn, counted) == [(*before[0], 1)]
    assert await fetch_rows(dsn, "SELECT stars FROM public.feedback") == [(5,)]


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [0, 6])
async def test_a_table_in_another_schema_is_left_alone(version: int, flux_empty_database: str) -> None:
    """`search_path` may name the schema of another application, which has feedback of its own."""
    await execute(flux_empty_database, "CREATE SCHEMA chat")
    dsn = flux_empty_database + IN_CHAT
    if version:
        await make_version(dsn, version)
    await execute(flux_empty_database, "CREATE TABLE public.feedback (stars integer)")
    async with PostgresConversationMemory(dsn) as memory:
        await memory.feedback.add("s", 1)
    counted = "SELECT (SELECT count(*) FROM chat.feedback), (SELECT count(*) FROM public.feedback)"
    assert await fetch_rows(flux_empty_database, counted) == [(1, 0)]
    # If its own is lost, the other one must not take its place.
    await execute(flux_empty_database, "DROP TABLE chat.feedback")
    async with PostgresConversationMemory(dsn) as memory:
        with pytest.raises(SchemaError, match="the table feedback is missing"):
            await memory.feedback.add("s", 1)


@pytest.mark.asyncio
async def test_the_new_table_is_protected_like_the_sessions(flux_empty_database: str) -> None:
    """Otherwise feedback on protected sessions would be open to each role that is granted the table."""
    await make_version(flux_empty_database, 6)
    await execute(
        flux_empty_database,
        "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE session_details DISABLE ROW LEVEL SECURITY",
    )
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
    sql = (
        "SELECT relname::text, relrowsecurity FROM pg_class WHERE relname IN ('feedback', 'session_details') ORDER BY 1"
    )
    assert await fetch_rows(flux_empty_database, sql) == [("feedback", True), ("session_details", False)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("ALTER TABLE feedback DROP CONSTRAINT feedback_pkey", r"feedback has no key on \(id\)"),
        ("ALTER TABLE feedback ALTER COLUMN rating TYPE integer", "feedback.rating is of type integer"),
        ("ALTER TABLE feedback ADD UNIQUE (session_id)", "refuses rows that the memory has to store"),
        (
            "ALTER TABLE feedback ADD CONSTRAINT own FOREIGN KEY (session_id) REFERENCES sessions ON DELETE CASCADE",
            "the foreign key own of feedback refuses or removes feedback",
        ),
        ("ALTER TABLE feedback ALTER COLUMN comment DROP NOT NULL", "feedback.comment may be NULL"),
        ("DROP TABLE feedback", "the table feedback is missing"),
        ("ALTER TABLE feedback SET UNLOGGED", "'feedback' in the schema public is an unlogged table"),
        ("CREATE RULE own AS ON INSERT TO feedback DO INSTEAD NOTHING", "the rule own of feedback replaces"),
    ],
)
async def test_a_damaged_table_is_refused(damage: str, says: str, flux_empty_database: str) -> None:
    """Each opening, and the check, compare the table with what the schema needs."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
    await execute(flux_empty_database, damage)
    async with PostgresConversationMemory(flux_empty_database) as memory:
        with pytest.raises(SchemaError, match=says):
            await memory.feedback.get()
    with pytest.raises(SchemaError, match=says):
        await check_postgres(flux_empty_database, 10)


@pytest.mark.asyncio
async def test_an_erasure_waits_for_an_add_under_way(flux_memory_postgres_dsn: str) -> None:
    """An entry that was being added while its user was erased is erased as well."""
    dsn = flux_memory_postgres_dsn
    async with PostgresConversationMemory(dsn) as memory, connect(dsn) as adding:
        await memory.create_session(session_id="s", user_id="ann")
        transaction = adding.transaction()
        await transaction.start()
        owner = await adding.fetchval("SELECT user_id FROM sessions WHERE id = 's' FOR KEY SHARE")
        erasing = asyncio.create_task(memory.delete_sessions(user_id="ann"))
        while not erasing.done() and await memory.count_sessions():
            # Messages can be added meanwhile.
            await memory.add_message("s", "user", "still here")
            if len(await memory.get_history("s")) > 3:
                break
        assert not erasing.done()
        insert = "INSERT INTO feedback (id, session_id, user_id, rating, created_at) VALUES ('f', 's', $1, 1, now())"
        await adding.execute(insert, owner)
        await transaction.commit()
        assert await erasing == 1
        assert await memory.feedback.get() == []


@pytest.mark.asyncio
async def test_erasures_and_adds_together_leave_nothing(flux_memory_postgres_dsn: str) -> None:
    """In any order: after the last erasure no entry belongs to the user."""
    dsn = flux_memory_postgres_dsn
    async with PostgresConversationMemory(dsn) as memory, PostgresConversationMemory(dsn) as other:
        for _ in range(5):
            for number in range(5):
                await memory.create_session(session_id=f"s{number}", user_id="ann")
            adds = (other.feedback.add(f"s{number % 5}", 1) for number in range(40))
            await asyncio.gather(memory.delete_sessions(user_id="ann"), *adds)
            assert await fetch_rows(dsn, "SELECT count(*) FROM feedback WHERE user_id = 'ann'") == [(0,)]
            await memory.clear_all()


@pytest.mark.asyncio
async def test_a_trigger_that_keeps_entries_is_an_error(flux_empty_database: str) -> None:
    """A person is not told that the feedback is gone while it is there."""
    dsn = flux_empty_database
    async with PostgresConversationMemory(dsn) as memory:
        await memory.create_session(session_id="s", user_id="ann")
        await memory.feedback.add("s", 1, feedback_id="f")
        await execute(
            dsn,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON feedback FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        for call in (memory.feedback.delete("f"), memory.delete_sessions(user_id="ann")):
            with pytest.raises(SchemaError, match="a trigger or a policy on the table 'feedback' kept"):
                await call
        await execute(dsn, "DROP TRIGGER keep ON feedback")
        assert await memory.delete_sessions(user_id="ann") == 0
        assert await memory.feedback.get() == []


@pytest.mark.asyncio
async def test_a_trigger_that_drops_an_entry_is_an_error(flux_empty_database: str) -> None:
    """An entry that is not stored is not acknowledged."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.feedback.get()
        await execute(
            flux_empty_database,
            "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
            "CREATE TRIGGER drops BEFORE INSERT ON feedback FOR EACH ROW EXECUTE FUNCTION drop_row()",
        )
        with pytest.raises(SchemaError, match="a trigger on the table 'feedback' dropped the feedback 'f'"):
            await memory.feedback.add("s", 1, feedback_id="f")
        with pytest.raises(SchemaError, match="a trigger on the table 'feedback' dropped the feedback 'f'"):
            await memory.feedback.add_dated([entry("f")])
        # The handle goes on.
        await execute(flux_empty_database, "DROP TRIGGER drops ON feedback")
        assert await memory.feedback.add("s", 1, feedback_id="f") == "f"
        assert await memory.feedback.add_dated([entry("f"), entry("g")]) == [ImportOutcome.PRESENT, ImportOutcome.ADDED]


@pytest.mark.asyncio
async def test_an_entry_that_a_policy_hides_keeps_its_id(flux_empty_database: str) -> None:
    """Neither an add nor an import is told that a trigger is at work where the id is taken."""
    dsn = flux_empty_database
    async with PostgresConversationMemory(dsn) as memory:
        await memory.create_session(session_id="of ann", user_id="ann")
        await memory.feedback.add("of ann", 1, feedback_id="f")
    await execute(
        dsn,
        "ALTER TABLE feedback ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY without_owner ON feedback USING (user_id = '')",
    )
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
    async with create_role(dsn, grants=(grant,)) as limited, PostgresConversationMemory(limited) as memory:
        with pytest.raises(ConflictError, match="other feedback has the id 'f'"):
            await memory.feedback.add("s", 1, feedback_id="f")
        assert await memory.feedback.add_dated([entry("g"), entry("f")]) == [ImportOutcome.ADDED, ImportOutcome.TAKEN]


@pytest.mark.asyncio
async def test_an_erasure_waits_for_an_import_under_way(flux_memory_postgres_dsn: str) -> None:
    """Entries that were being imported while their user was erased are erased as well."""
    dsn = flux_memory_postgres_dsn
    async with PostgresConversationMemory(dsn) as memory, connect(dsn) as holding:
        await memory.create_session(session_id="s", user_id="ann")
        await memory.create_session(session_id="t", user_id="")
        transaction = holding.transaction()
        await transaction.start()
        # An insertion of the same id waits for this one.
        await holding.execute("INSERT INTO feedback (id, session_id, rating, created_at) VALUES ('f', 's', 0, now())")
        importing = asyncio.create_task(memory.feedback.add_dated([entry("e"), entry("f"), entry("g")]))
        await wait_until(lambda: are_waiting(dsn, 1))
        erasing = asyncio.create_task(memory.delete_sessions(user_id="ann"))
        while not erasing.done():
            await memory.add_message("s", "user", "still here")
            if len(await memory.get_history("s")) > 3:
                break
        assert not erasing.done()
        await transaction.rollback()
        assert await importing == [ImportOutcome.ADDED] * 3
        assert await erasing == 1
        assert await memory.feedback.get() == []
