"""Tests the public names, the cost of importing them, and handles that are never closed."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import sqlite3
import subprocess
import sys
import typing
from pathlib import Path

import aiosqlite
import pytest
from pydantic import TypeAdapter

import flux_memory
from flux_memory import ConversationMemory, FluxMemoryError, Memory, PostgresConversationMemory, records
from flux_memory.backends.postgres.feedback import PostgresFeedback
from flux_memory.backends.sqlite.feedback import SQLiteFeedback


def run_program(program: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    # A coverage tracer would add its own imports to the measured ones.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=cwd, env=plain)


PUBLIC = {
    "flux_memory": """
        MAX_BATCH_BYTES MAX_CONTENT_BYTES MAX_FILTER_ELEMENTS MAX_FILTER_VALUES MAX_ID_LENGTH MAX_METADATA_BYTES
        MAX_METADATA_DEPTH MAX_USER_ID_LENGTH BackendUnavailableError BackupError ConflictError ConversationMemory
        Feedback FeedbackDay FeedbackEntry FeedbackStats FluxMemoryError
        InvalidInputError InvalidTypeError Memory MemoryClosedError Message Metadata MigrationError NewMessage
        OutcomeUnknownError PoolStats PostgresConversationMemory SchemaError Session SessionNotFoundError Settings
        create_memory deadline seconds_for
    """,
    "flux_memory.operations.telemetry": "Telemetry instrument",
    "flux_memory.records": """
        FeedbackRow Fork MessageRow SessionRow SessionUpdate TooLongError build_feedback build_messages build_session
        build_sessions build_stats check_batch check_count check_cursors check_deletion check_feedback_filter
        check_filter check_flag check_fork check_id check_limit check_lookup check_moment check_new_feedback
        check_new_message check_new_session check_owner check_rating check_revision check_seconds check_session_cursor
        check_session_id check_text check_update contains decode_metadata drop_repeats encode_metadata
        feedback_id_taken format_time make_id
        make_revision merge_metadata message_id_taken message_not_found metadata_too_large owner_conflict
        revision_conflict session_id_taken session_not_found utc_now
    """,
    "flux_memory.sync": "SyncFeedback SyncMemory create_memory",
    "flux_memory.testkit": """
        ALL CLAUSES CONTRACT_VERSION CORE Capability Clause MemoryContract Outage Proxied Proxy ReferenceMemory
        ReferenceStore clause known_failure network_outages unverifiable
    """,
    "flux_memory.testkit.contract": "MemoryContract",
    "flux_memory.testkit.servers": """
        DatabaseFactory DatabaseInitError PostgresDatabase Rollback Server ServerUnavailable start_server
    """,
    "flux_memory.testkit.histories": """
        History Journal Numbers Operation Recorder Sent Stored StoredSession Violation call_as_anyone check read_stored
    """,
    "flux_memory.transfer": "Mode OnInvalid Plan ProblemKind Report Status Tally Watcher migrate migrate_back",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_those_of_the_list(module: str) -> None:
    """A name is neither lost nor published by accident: other projects import them."""
    package = importlib.import_module(module)
    assert sorted(package.__all__) == sorted(PUBLIC[module].split())
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("name", ["_thread", "_tx"])
def test_aiosqlite_has_the_private_names_in_use(name: str) -> None:
    """A release of aiosqlite that moved one fails here, by its name."""
    assert hasattr(aiosqlite.Connection(lambda: sqlite3.connect(":memory:"), iter_chunk_size=64), name)


@pytest.mark.parametrize("name", records.__all__)
def test_the_checks_for_authors_of_backends_document_their_arguments(name: str) -> None:
    """An author reads what a function takes in its docstring, not in its code."""
    value = getattr(records, name)
    text = inspect.getdoc(value) or ""
    assert text
    for parameter in inspect.signature(value).parameters if inspect.isfunction(value) else ():
        assert re.search(rf"^    {parameter}: ", text, re.MULTILINE), f"{name} does not describe {parameter}"


def test_every_public_name_can_be_imported() -> None:
    """All public names, errors included, import from the package, and `dir()` shows them."""
    for name in flux_memory.__all__:
        assert getattr(flux_memory, name) is not None
        assert name in dir(flux_memory)


def test_another_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="module 'flux_memory' has no attribute 'creatememory'"):
        _ = flux_memory.creatememory


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import flux_memory", "asyncpg aiosqlite sqlite3 pydantic pydantic_settings click pytest rich"),
        (
            "from flux_memory import ConversationMemory, Memory, SchemaError",
            "asyncpg pydantic pydantic_settings click pytest",
        ),
        (
            "from flux_memory import PostgresConversationMemory",
            "aiosqlite sqlite3 pydantic pydantic_settings click pytest",
        ),
        (
            "import flux_memory.records",
            "asyncpg aiosqlite sqlite3 asyncio pydantic pydantic_settings click pytest rich",
        ),
        ("from flux_memory import create_memory", "asyncpg aiosqlite pydantic pydantic_settings click pytest"),
        ("import flux_memory.cli", "asyncpg aiosqlite pydantic pydantic_settings pytest"),
        (
            "import flux_memory.testkit.plugin",
            "asyncpg aiosqlite pydantic pytest_asyncio hypothesis docker testcontainers",
        ),
    ],
)
def test_an_import_loads_only_what_it_needs(program: str, absent: str) -> None:
    """A driver is loaded only for its own backend, so importing the package is cheap."""
    done = run_program(f"import sys; {program}; print(*(set(sys.argv[1:]) & set(sys.modules)))", *absent.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("backend", "protocol"),
    [
        (ConversationMemory, Memory),
        (PostgresConversationMemory, Memory),
        (SQLiteFeedback, flux_memory.Feedback),
        (PostgresFeedback, flux_memory.Feedback),
    ],
)
def test_the_backends_have_the_signatures_of_the_protocol(backend: type, protocol: type) -> None:
    """Names, defaults and kinds of every parameter match the protocol, and each method is a coroutine."""
    for name, promised in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_") or name in {"__aenter__", "__aexit__"}:
            kept = getattr(backend, name)
            assert inspect.signature(kept) == inspect.signature(promised), name
            assert inspect.iscoroutinefunction(kept), name


def test_the_errors_are_one_family_and_fit_the_standard_ones() -> None:
    """`except FluxMemoryError` catches all; each is also a subclass of the matching built-in error."""
    errors = [value for name in flux_memory.__all__ if name.endswith("Error") for value in [getattr(flux_memory, name)]]
    assert len(errors) == 11
    assert all(issubclass(error, FluxMemoryError) for error in errors)
    assert issubclass(flux_memory.InvalidInputError, ValueError)
    assert issubclass(flux_memory.SessionNotFoundError, LookupError)
    assert issubclass(flux_memory.BackendUnavailableError, ConnectionError)
    assert issubclass(flux_memory.OutcomeUnknownError, flux_memory.BackendUnavailableError)


def test_records_have_the_documented_keys() -> None:
    """The keys of a record are part of the API."""
    assert set(typing.get_type_hints(flux_memory.Message)) == {"id", "role", "content", "metadata", "created_at"}
    assert set(typing.get_type_hints(flux_memory.Session)) == {
        *("id", "user_id", "title", "created_at", "updated_at", "metadata", "message_count", "revision")
    }


@pytest.mark.parametrize(
    "record",
    [
        flux_memory.Message,
        flux_memory.Session,
        flux_memory.NewMessage,
        flux_memory.FeedbackEntry,
        flux_memory.FeedbackStats,
    ],
)
def test_pydantic_takes_the_records(record: type) -> None:
    """A FastAPI endpoint can declare `list[Message]` as its return type."""
    assert TypeAdapter(list[record]).json_schema()["items"]


NEVER_CLOSED = """
import asyncio, gc, sys, warnings
import flux_memory

warnings.simplefilter("always")

async def main():
    memory = getattr(flux_memory, sys.argv[1])(sys.argv[2])
    await memory.add_message(await memory.create_session(), "user", "kept")
    if sys.argv[3] == "dropped":
        del memory
        gc.collect()
    else:
        globals()["memory"] = memory

asyncio.run(main())
print("end of the program")
"""


@pytest.mark.parametrize("how", ["dropped", "kept"])
@pytest.mark.parametrize("backend", ["ConversationMemory", "PostgresConversationMemory"])
def test_a_handle_that_was_never_closed_warns_and_never_hangs_the_exit(
    backend: str, how: str, tmp_path: Path, flux_memory_postgres_dsn: str
) -> None:
    """A missing `close()` gives a warning without the password, and costs neither the exit nor the message."""
    target = str(tmp_path / "chat.db") if backend == "ConversationMemory" else flux_memory_postgres_dsn
    done = run_program(NEVER_CLOSED, backend, target, how)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "end of the program\n"
    assert "ResourceWarning" in done.stderr
    assert f"{backend}(" in done.stderr
    assert "was never closed; use 'async with' or close()" in done.stderr
    assert "Traceback" not in done.stderr
    if "@" in target:
        assert target.split(":")[2].split("@")[0] not in done.stderr

    async def stored() -> int:
        async with getattr(flux_memory, backend)(target) as memory:
            sessions = await memory.get_sessions()
            return int(sessions[0]["message_count"])

    assert asyncio.run(stored()) == 1


@pytest.mark.filterwarnings("error")
def test_a_handle_that_was_never_used_has_nothing_to_warn_about(tmp_path: Path) -> None:
    """Nothing is opened or created before first use, so there is nothing to warn about."""
    memory = ConversationMemory(tmp_path / "chat.db")
    del memory
    assert not any(tmp_path.iterdir())
