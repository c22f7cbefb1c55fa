"""Tests the object that `flux-memory check --json` prints for probes: whole, alone on standard output, and in time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from check_command import password_of
from click.testing import CliRunner
from plain_stores import PlainStore
from raw_postgres import execute, reserve_port

from flux_memory import __version__, health
from flux_memory.cli import main

KEYS = {"ok", "status", "versions", "backend", "target", "findings", "duration_ms"}


def run_json(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the command in a process of its own; return its exit code, its object, and its standard error."""
    command = [sys.executable, "-m", "flux_memory", "check", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("\n") == 1, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.keys() >= KEYS
    return done.returncode, found, done.stderr


def test_a_store_that_works(plain_store: PlainStore) -> None:
    """Status, versions, schema, latency and the server's role, in one object."""
    plain_store.fill(2, messages=3)
    code, found, errors = run_json(*plain_store.options)
    assert (code, errors, found["ok"], found["status"]) == (0, "", True, "ok")
    assert found["versions"]["flux_memory"] == __version__
    assert (found["sessions"], found["messages"]) == (2, 6)
    assert found["schema"].endswith("current")
    assert 0 < found["latency_ms"] < found["duration_ms"]
    assert found["role"] == ("primary" if plain_store.is_server else "")
    assert found["findings"] == []


def test_a_probe_can_leave_out_the_counts(plain_store: PlainStore) -> None:
    """The cost of a probe does not grow with the store."""
    plain_store.fill(1)
    code, found, _ = run_json(*plain_store.options, "--no-counts")
    assert (code, found["sessions"], found["messages"]) == (0, None, None)
    result = CliRunner().invoke(main, ["check", *plain_store.options, "--no-counts"])
    assert "Contents    not counted\n" in result.stdout


@pytest.mark.asyncio
async def test_a_warning_is_a_finding_and_not_a_failure(flux_empty_database: str) -> None:
    """A probe goes on, and monitoring sees what to correct."""
    await execute(flux_empty_database, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    code, found, errors = run_json("--postgres-dsn", flux_empty_database)
    assert (code, errors, found["ok"], found["status"]) == (0, "", True, "warning")
    (finding,) = found["findings"]
    assert finding["severity"] == "warning"
    assert "may create objects in the schema public" in finding["message"]


def test_a_failure_is_an_object_too(tmp_path: Path, flux_postgres_dsn: str) -> None:
    """Unreachable, refused, missing and misconfigured stores: exit code 1, and nothing but the object."""
    password = password_of(flux_postgres_dsn)
    with reserve_port() as port:
        away = f"postgresql://chat:{password}@127.0.0.1:{port}/chat"
        for arguments, error in (
            (("--postgres-dsn", away), "BackendUnavailableError"),
            (("--postgres-dsn", "nonsense"), "InvalidInputError"),
            (("--sqlite-path", str(tmp_path / "missing.db")), "BackendUnavailableError"),
            (("--sqlite-path", str(tmp_path)), "BackendUnavailableError"),
        ):
            code, found, errors = run_json(*arguments)
            assert (code, errors, found["ok"], found["status"], found["error"]) == (1, "", False, "failed", error)
            assert found["findings"] == [{"severity": "error", "message": found["message"]}]
            assert password not in json.dumps(found)
            assert found["backend"] == arguments[0].strip("-").split("-")[0]


def test_a_bug_of_the_library_is_an_object_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that parses standard output reads a failure, and the traceback is on standard error."""

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unexpected: postgresql://chat:secret@db/chat")

    monkeypatch.setattr(health, "check_sqlite", fail)
    result = CliRunner().invoke(main, ["check", "--json", "--sqlite-path", str(path)])
    assert isinstance(result.exception, RuntimeError)
    found = json.loads(result.stdout)
    assert (found["ok"], found["error"]) == (False, "RuntimeError")
    assert "secret" not in result.stdout


@contextmanager
def silent_server() -> Iterator[int]:
    """Yield a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield listening.getsockname()[1]


def test_a_server_that_does_not_answer_ends_the_check_in_time() -> None:
    """The whole program is bounded by --timeout, beside the start of the interpreter."""
    with silent_server() as port:
        began = time.monotonic()
        code, found, _ = run_json("--postgres-dsn", f"postgresql://chat@127.0.0.1:{port}/chat", "--timeout", "1")
        seconds = time.monotonic() - began
    assert (code, found["status"]) == (1, "failed")
    assert found["duration_ms"] < 8_000
    assert seconds < 15
