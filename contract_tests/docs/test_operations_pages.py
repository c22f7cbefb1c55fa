"""Runs what the pages of operations print: settings of PostgreSQL, SQL, commands of psql; looks up their messages."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from raw_postgres import execute, fetch_rows
from recipe_environment import PROJECT
from secret_watch import watch_password

from flux_memory import PostgresConversationMemory
from flux_memory.health import check_methods, check_postgres
from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers.binaries import find_binaries

PAGES: Final = PROJECT / "docs/operations"
DEPLOYMENT: Final = PAGES / "deployment.md"
RUNBOOK: Final = PAGES / "runbook.md"
SIZES: Final = ("2 GB", "8 GB", "32 GB")
LARGEST_SHARE: Final = 0.5
"""Share of this machine's memory above which `shared_buffers` is not allocated."""
UNIT_BYTES: Final = {"MB": 1024**2, "GB": 1024**3}
WITH_SQL: Final = (DEPLOYMENT, RUNBOOK, PAGES / "retention.md")
THE_SERVERS_WORDS: Final = {
    "sorry, too many clients already",
    "remaining connection slots are reserved",
    "cannot execute INSERT in a read-only transaction",
    "permission denied for",
}
"""Messages of PostgreSQL itself."""


def find_settings(name: str) -> dict[str, str]:
    """Return the settings of the block that begins with this comment."""
    (block,) = re.findall(rf"^```ini\n# {name}\n(.*?)^```$", DEPLOYMENT.read_text(), re.DOTALL | re.MULTILINE)
    return dict(re.findall(r"^(\w+) = (\S+)$", block, re.MULTILINE))


def read_sql() -> dict[str, str]:
    """Return the blocks of SQL of the pages, by page and number."""
    return {
        f"{page.stem}-{number}": block
        for page in WITH_SQL
        for number, block in enumerate(
            re.findall(r"^```sql\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE), 1
        )
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the settings of the page for 2 GB, and the tables of a memory in its database."""
    with start_server("local", settings=find_settings("every size") | find_settings("2 GB")) as server:
        watch_password(server.dsn)
        asyncio.run(prepare(server.dsn))
        yield server


async def prepare(dsn: str) -> None:
    """Create the tables, a conversation, and the application's role."""
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message("trip", "user", "Where is it warm?", create=True, user_id="ann")
    await execute(dsn, "CREATE ROLE chat_app LOGIN")


@pytest.fixture(scope="module")
def psql() -> str:
    """The program psql: of this machine, or beside the server's programs."""
    found = shutil.which("psql") or str(find_binaries().directory / "psql")
    assert Path(found).exists(), "psql is missing; install the PostgreSQL client"
    return found


def run_psql(psql: str, dsn: str, script: str) -> str:
    """Run a script as a reader pastes it; fail if a command fails."""
    done = subprocess.run(
        [psql, "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--file=-", dsn],
        input=script,
        capture_output=True,
        text=True,
        env=os.environ | {"PAGER": "cat"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr
    assert "invalid command" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("size", SIZES)
def test_a_server_starts_with_the_settings_of_the_page(size: str) -> None:
    """The server accepts each of them, shows the printed value, and every method works."""
    wanted = find_settings("every size") | find_settings(size)
    assert len(wanted) >= 18
    settings = dict(wanted)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    number, unit = wanted["shared_buffers"][:-2], wanted["shared_buffers"][-2:]
    if int(number) * UNIT_BYTES[unit] > memory_bytes * LARGEST_SHARE:
        # This machine cannot allocate it; the other settings are tested all the same.
        settings["shared_buffers"] = "128MB"
    with start_server("local", settings=settings) as server:
        watch_password(server.dsn)
        shown = asyncio.run(show(server.dsn, list(settings)))
        # `on` stands for the server's default method since PostgreSQL 15.
        shown["wal_compression"] = shown["wal_compression"].replace("pglz", "on")
        assert shown == settings
        asyncio.run(call_every_method(server.dsn))


async def show(dsn: str, names: list[str]) -> dict[str, str]:
    return {name: (await fetch_rows(dsn, f"SHOW {name}"))[0][0] for name in names}


async def call_every_method(dsn: str) -> None:
    async with PostgresConversationMemory(dsn) as memory:
        await check_methods(memory, await check_postgres(dsn, 10))


def test_logged_statements_show_no_text_of_a_conversation() -> None:
    """With the printed settings a log of every statement has no parameter; without them it has."""
    secret = "the-text-of-ann"
    every = find_settings("every size")
    for settings, is_shown in ((every, False), ({}, True)):
        with start_server("local", settings=settings | {"log_min_duration_statement": "0"}) as server:
            watch_password(server.dsn)
            asyncio.run(add(server.dsn, secret))
            log = server.log_tail(100_000)
            assert "INSERT INTO messages" in log
            assert (secret in log) == is_shown


async def add(dsn: str, text: str) -> None:
    async with PostgresConversationMemory(dsn) as memory:
        await memory.add_message("one", "user", text, create=True)


@pytest.mark.parametrize("name", read_sql())
def test_each_block_of_sql_runs_in_psql(server: Server, psql: str, name: str) -> None:
    """A reader can paste it, on a database with the memory's tables."""
    run_psql(psql, server.dsn, read_sql()[name])


def test_the_hot_tables_settings_are_kept_and_accepted(server: Server, psql: str) -> None:
    """The tables have the printed options afterwards, and the check finds nothing wrong with them."""
    (block,) = (sql for sql in read_sql().values() if "ALTER TABLE sessions SET" in sql)
    run_psql(psql, server.dsn, block)
    ((options,),) = asyncio.run(
        fetch_rows(server.dsn, "SELECT array_to_string(reloptions, ' ') FROM pg_class WHERE oid = 'sessions'::regclass")
    )
    assert options == (
        "autovacuum_vacuum_scale_factor=0.01 autovacuum_vacuum_threshold=1000 autovacuum_vacuum_cost_delay=0"
    )
    asyncio.run(call_every_method(server.dsn))


def test_the_commands_of_psql_run(server: Server, psql: str) -> None:
    """Each backslash command of the page exists and finds its object."""
    (block,) = re.findall(r"^```text\n(\\conninfo\n.*?)^```$", DEPLOYMENT.read_text(), re.DOTALL | re.MULTILINE)
    shown = run_psql(psql, server.dsn, block)
    assert "Did not find" not in shown
    for found in ("sessions_by_activity", "chat_app", "flux_memory_schema"):
        assert found in shown


def test_the_messages_of_the_runbook_are_real() -> None:
    """A symptom quotes the words that a log really has: the library's own, or PostgreSQL's."""
    words = {
        node.value
        for source in PROJECT.glob("flux_memory/**/*.py")
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    told = [
        part
        for line in re.findall(r"^Messages: (.*)$", RUNBOOK.read_text(), re.MULTILINE)
        for part in re.findall(r"`(.*?)`", line)
    ]
    assert len(told) > 15
    unknown = [part for part in told if part not in THE_SERVERS_WORDS and not any(part in each for each in words)]
    assert unknown == []


def test_the_compose_file_has_the_settings_of_its_size() -> None:
    """The compose file and the page say the same."""
    compose = dict(re.findall(r"-c([a-z_]+)=(\S+)", (PAGES / "compose.yaml").read_text()))
    page = find_settings("every size") | find_settings("2 GB")
    assert compose == page
