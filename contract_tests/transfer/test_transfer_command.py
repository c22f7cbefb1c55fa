"""Tests the command `flux-memory migrate`: its flags, exit codes and output."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from original_application import make_file_with_data
from raw_postgres import dump_database, execute
from terminal import run_on_terminal
from transfer_memories import insert_message, read_target

from flux_memory.cli.migrate import migrate


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "POSTGRES_DSN", "FLUX_MEMORY_DATABASE_URL", "FLUX_MEMORY_POSTGRES_DSN"):
        monkeypatch.delenv(name, raising=False)
    make_file_with_data(tmp_path / "chat.db")
    return tmp_path / "chat.db"


def run_migrate(*arguments: object) -> Result:
    result = CliRunner().invoke(migrate, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def test_a_migration_prints_its_findings_moves_and_proof(path: Path, flux_empty_database: str) -> None:
    """Without a terminal the output is plain lines in the original's wording, and the exit code is 0."""
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", flux_empty_database)
    assert result.exit_code == 0, result.output
    assert "Found 2 sessions, 6 messages" in result.output
    assert "Verification: SQLite: 2 sessions, 6 messages" in result.output
    assert "PostgreSQL: 2 sessions, 6 messages" in result.output
    assert result.output.rstrip().splitlines()[-1].startswith("Proven identical")


def test_the_settings_name_both_sides(path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags the settings apply."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{path}")
    monkeypatch.setenv("POSTGRES_DSN", flux_empty_database)
    assert run_migrate("--quiet").exit_code == 0
    assert len(read_target(flux_empty_database)[1]) == 6


def test_quiet_prints_nothing_and_the_report_has_everything(path: Path, flux_empty_database: str) -> None:
    """With --quiet --report the terminal stays empty, and the JSON has everything but the password."""
    report = path.with_name("report.json")
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", flux_empty_database, "--quiet", "--report", report)
    assert (result.exit_code, result.output) == (0, "")
    found = json.loads(report.read_text("utf-8"))
    assert (found["status"], found["exit_code"]) == ("identical", 0)
    assert found["verification"]["target_messages"] == 6
    assert set(found["seconds"]) == {"preflight", "load", "analyze", "verify", "flush"}
    assert ":***@" in found["target"]


def test_a_dry_run_then_a_verification(path: Path, flux_empty_database: str) -> None:
    """--dry-run and --verify change nothing; --verify finds missing rows."""
    sides = ("--sqlite-path", path, "--postgres-dsn", flux_empty_database)
    dry = run_migrate(*sides, "--dry-run")
    assert dry.exit_code == 0
    assert "Ready" in dry.output
    assert read_target(flux_empty_database) == ([], [])
    assert run_migrate(*sides).exit_code == 0
    assert run_migrate(*sides, "--verify").exit_code == 0
    asyncio.run(execute(flux_empty_database, "DELETE FROM messages WHERE id = 'm1'"))
    different = run_migrate(*sides, "--verify")
    assert different.exit_code == 1
    assert "message missing: m1 of session one" in different.output


def test_a_corrected_quarantine_file_is_retried(path: Path, flux_empty_database: str) -> None:
    """A quarantine gives exit code 3, and the output names the command that loads the corrected rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "orphan", "gone")
    sides = ("--sqlite-path", path, "--postgres-dsn", flux_empty_database)
    refused = run_migrate(*sides)
    assert refused.exit_code == 1
    assert "1 message: session is gone. First: orphan" in refused.output
    assert "--on-invalid=quarantine" in refused.output
    dry = run_migrate(*sides, "--on-invalid", "quarantine", "--dry-run")
    assert dry.exit_code == 0
    assert "Ready: all but the rows above." in dry.output
    assert not [*path.parent.glob("*.quarantine.jsonl")]
    quarantined = run_migrate(*sides, "--on-invalid", "quarantine")
    assert quarantined.exit_code == 3, quarantined.output
    (held,) = path.parent.glob("*.quarantine.jsonl")
    assert f"Cannot be moved: 0 sessions, 1 message; they are in {held.name}" in quarantined.output
    assert f"flux-memory migrate --retry {held.name}" in quarantined.output
    held.write_text(held.read_text("utf-8").replace('"gone"', '"one"'), "utf-8")
    assert run_migrate("--retry", held, "--postgres-dsn", flux_empty_database).exit_code == 0
    assert [row[1] for row in read_target(flux_empty_database)[1]][:5] == ["m3", "m4", "m1", "m6", "orphan"]


def test_a_retry_reads_times_as_the_migration_did(path: Path, flux_empty_database: str) -> None:
    """The named retry command includes the zone; without it the session of a refused row would be in conflict."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "bad", "one", metadata="{")
    options = ("--postgres-dsn", flux_empty_database, "--assume-timezone", "Asia/Seoul")
    quarantined = run_migrate(
        "--sqlite-path", path, *options, "--on-invalid", "quarantine", "--quarantine-file", "a b.jsonl"
    )
    told = quarantined.output.rstrip().rpartition("then run: flux-memory migrate ")[2]
    parts = shlex.split(told)
    assert parts[:3] == ["--retry", "a b.jsonl", "--postgres-dsn"]
    assert parts[4:] == ["--assume-timezone", "Asia/Seoul"]
    held = path.with_name("a b.jsonl")
    held.write_text(held.read_text("utf-8").replace('"{"', '"{}"'), "utf-8")
    parts[3] = flux_empty_database
    retried = run_migrate(*parts)
    assert retried.exit_code == 0, retried.output


def test_a_comparison_writes_no_quarantine_file(path: Path, flux_empty_database: str) -> None:
    """`--verify` writes no quarantine file, and names none."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "orphan", "gone")
    options = ("--sqlite-path", path, "--postgres-dsn", flux_empty_database, "--on-invalid", "quarantine")
    assert run_migrate(*options, "--quarantine-file", "held.jsonl").exit_code == 3
    compared = run_migrate(*options, "--verify")
    assert compared.exit_code == 3
    assert "\nProven, except for the rows above that cannot be moved: every other session" in compared.output
    assert "identical" not in compared.output


def test_orphans_do_not_count_as_sessions(path: Path, flux_empty_database: str) -> None:
    """The preflight announces exactly the rows it reads, so that its bar ends at 100 %."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        insert_message(db, "orphan", "gone")
    looked = run_migrate("--sqlite-path", path, "--postgres-dsn", flux_empty_database, "--dry-run")
    assert "Found 2 sessions, 7 messages" in looked.output
    assert "Preflight: 9 rows" in looked.output


def test_a_migration_to_sqlite_is_a_flag(path: Path, flux_empty_database: str) -> None:
    """--to-sqlite writes and proves a file, and never overwrites one."""
    run_migrate("--sqlite-path", path, "--postgres-dsn", flux_empty_database, "--quiet")
    back = path.with_name("back.db")
    assert run_migrate("--to-sqlite", back, "--postgres-dsn", flux_empty_database).exit_code == 0
    assert run_migrate("--sqlite-path", back, "--postgres-dsn", flux_empty_database, "--verify").exit_code == 0
    again = run_migrate("--to-sqlite", back, "--postgres-dsn", flux_empty_database)
    assert again.exit_code == 1
    assert "not overwritten" in again.output


@pytest.mark.parametrize("option", ["--sqlite-path", "--postgres-dsn", "--to-sqlite", "--retry", "--report"])
def test_an_empty_option_does_not_select_the_setting(
    path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """An empty value, from an unset variable in a script, is an error instead of a default."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{path}")
    monkeypatch.setenv("POSTGRES_DSN", flux_empty_database)
    result = run_migrate(option, "", "--quiet")
    assert result.exit_code == 2
    assert f"{option} is empty" in result.output
    assert asyncio.run(dump_database(flux_empty_database)) == []


def test_a_missing_target_is_a_usage_error(path: Path) -> None:
    """Without a target, the error names both ways to set it."""
    result = run_migrate("--sqlite-path", path)
    assert result.exit_code == 2
    assert "give --postgres-dsn, or set POSTGRES_DSN" in result.output


@pytest.mark.parametrize("option", ["--sqlite-path", "--to-sqlite"])
def test_a_url_is_no_path(path: Path, option: str) -> None:
    """A URL given as a path is refused, not treated as a directory."""
    result = run_migrate(option, f"sqlite+aiosqlite:///{path}", "--postgres-dsn", "postgresql://127.0.0.1:1/none")
    assert result.exit_code == 2
    assert f"{option} is a URL; give the path alone" in " ".join(result.output.split())


def test_a_wrong_dsn_is_refused_before_the_file_is_read(path: Path) -> None:
    """A wrong DSN is refused before a large file is read."""
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", "mysql://u:secret@h/d")
    assert result.exit_code == 1
    assert "only PostgreSQL is supported" in result.output
    assert "Found" not in result.output


def test_an_unwritable_report_is_reported_without_a_traceback(path: Path) -> None:
    """An unwritable report is an error before the move; after it, the error is shown beside the outcome."""
    dsn = "postgresql://u:secret@no-such-host.invalid/db"
    early = run_migrate(
        "--sqlite-path", path, "--postgres-dsn", dsn, "--report", path.with_name("missing") / "report.json"
    )
    assert early.exit_code == 2
    assert "--report: the directory does not exist; create it first" in early.output
    directory = run_migrate("--sqlite-path", path, "--postgres-dsn", dsn, "--report", path.parent)
    assert directory.exit_code == 2
    assert f"{path.parent} is a directory; give the path of a file in it" in directory.output
    late = run_migrate("--sqlite-path", path, "--postgres-dsn", dsn, "--quiet", "--report", "/dev/full")
    assert late.exit_code == 1
    assert isinstance(late.exception, SystemExit)
    assert "the host is not found" in late.output
    assert "cannot be written: No space left on device; give --report another path" in late.output


@pytest.mark.parametrize(
    "content", [None, b"precious", b'{\n  "precious": true\n}'], ids=["the memory", "text", "JSON"]
)
def test_a_report_replaces_only_a_report(path: Path, content: bytes | None) -> None:
    """A report path that is not a report, such as the memory itself, is refused before any work."""
    other = path
    if content is not None:
        other = path.with_name("other")
        other.write_bytes(content)
    before = other.read_bytes()
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", "postgresql://u@127.0.0.1:1/none", "--report", other)
    assert result.exit_code == 2
    assert f"--report: {other} is not a report, and is not overwritten; give another path" in result.output
    assert other.read_bytes() == before


def test_a_report_replaces_an_earlier_one(path: Path, flux_empty_database: str) -> None:
    """A report, or an empty file, is overwritten by the next report."""
    report = path.with_name("report.json")
    report.touch()
    for dsn, code in (("postgresql://u@127.0.0.1:1/none", 1), (flux_empty_database, 0), (flux_empty_database, 0)):
        assert run_migrate("--sqlite-path", path, "--postgres-dsn", dsn, "--report", report).exit_code == code
        assert json.loads(report.read_text("utf-8"))["exit_code"] == code


def test_a_failure_is_one_line_and_goes_into_the_report(path: Path) -> None:
    """A failure gives exit code 1 and advice, without the password."""
    report = path.with_name("report.json")
    dsn = "postgresql://me:secret@127.0.0.1:1/none"
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", dsn, "--quiet", "--report", report)
    assert result.exit_code == 1
    assert result.output.startswith("FAILED  PostgreSQL at postgresql://me:***@127.0.0.1:1/none")
    assert "secret" not in result.output + report.read_text("utf-8")
    assert json.loads(report.read_text("utf-8"))["status"] == "failed"


def test_a_report_with_a_file_name_that_is_not_utf8_is_json(tmp_path: Path) -> None:
    """The report escapes file names that are not UTF-8."""
    path, report = tmp_path / "\udcff.db", tmp_path / "report.json"
    result = run_migrate("--sqlite-path", path, "--postgres-dsn", "postgresql://u@127.0.0.1:1/none", "--report", report)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert str(path) in json.loads(report.read_text("utf-8"))["error"]


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_shows_bars_of_one_line(path: Path, flux_empty_database: str, columns: int) -> None:
    """On a terminal of any width, the duration of each phase stays visible."""
    written = run_on_terminal(columns, "--yes", "--sqlite-path", path, "--postgres-dsn", flux_empty_database)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert "\x1b[1A" not in plain, "a line was wrapped and taken back"
    frames = [frame for frame in re.split(r"[\r\n]|\x1b\[2K", plain) if "━" in frame and frame[0].isalpha()]
    assert {frame.split()[0] for frame in frames} == {"Preflight", "Load", "Keys", "Analyze", "Verify", "Flush"}
    assert max(map(len, frames)) <= columns
    assert re.findall(r"^(\w+): (?:8 rows in )?\d+\.\d s", plain.replace("\x1b[2K", "\n"), re.MULTILINE) == [
        "Preflight",
        "Load",
        "Keys",
        "Analyze",
        "Verify",
        "Flush",
    ]
    assert "Proven identical" in plain


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_the_confirmation_comes_before_any_progress_bar(
    path: Path, flux_empty_database: str, answer: str, code: int
) -> None:
    """The confirmation shows how to answer, and no progress bar overwrites it."""
    written = run_on_terminal(
        100, "--sqlite-path", path, "--postgres-dsn", flux_empty_database, typed=f"{answer}\n".encode(), code=code
    )
    question, asked, after = written.partition("? [y/N]: ")
    assert asked, written
    assert "Move " in question
    assert "\x1b" not in question
    assert ("Proven identical" in after) == (answer == "y")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dry-run", "--verify"),
        ("--verify", "--to-sqlite", "x"),
        ("--retry", "x", "--to-sqlite", "y"),
        ("--sqlite-path", "x", "--to-sqlite", "y"),
        ("--batch-size", "0"),
        ("--on-invalid", "ignore"),
        ("--assume-timezone", "Mars/Olympus"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_is_exit_code_2(path: Path, arguments: tuple[str, ...]) -> None:
    """Options that exclude each other are refused before any file or connection is opened."""
    dsn = "postgresql://127.0.0.1:1/none"
    assert run_migrate("--postgres-dsn", dsn, *arguments).exit_code == 2
