"""Tests `flux-memory feedback import` and `export` on files in the forms of the original application."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from original_application import make_file_with_data
from raw_postgres import dump_database
from raw_sqlite import execute_in_file

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from flux_memory.cli import main


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that name an empty store."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        return ["--sqlite-path", str(tmp_path / "chat.db")]
    return ["--postgres-dsn", request.getfixturevalue("flux_empty_database")]


def open_store(store: list[str]) -> Memory:
    name, value = store
    return ConversationMemory(value) if name == "--sqlite-path" else PostgresConversationMemory(value)


def line(number: int, **changes: Any) -> dict[str, Any]:
    """A line as the original's first generation wrote it."""
    moment = datetime.fromisoformat("2026-02-05T15:17:55") + timedelta(microseconds=number * 997)
    return {
        "id": f"entry-{number:06}",
        "message_id": f"message {number}",
        "session_id": f"session {number % 7}",
        "rating": number % 3 - 1,
        "comment": "좋은 답변입니다" if number % 2 else "",
        "corrected_answer": None if number % 3 else "올바른 \"답변\"\n\u2028",
        "created_at": moment.isoformat(),
    } | changes  # fmt: skip


def labelled(number: int) -> dict[str, Any]:
    """A line as the second generation wrote it."""
    found = line(number)
    label = {1: "positive", 0: "neutral", -1: "negative"}[found["rating"]]
    head = {key: found[key] for key in ("id", "message_id", "session_id", "rating")}
    return head | {"rating_label": label} | {key: found[key] for key in found if key not in head}


def write(path: Path, lines: list[Any]) -> Path:
    text = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in lines)
    path.write_text("".join(f"{each}\n" for each in text), "utf-8")
    return path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["feedback", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def test_both_generations_return_byte_for_byte(store: list[str], tmp_path: Path) -> None:
    """An export of what was imported is the same file, and a second import adds nothing."""
    original = write(tmp_path / "old.jsonl", [*map(line, range(700)), *map(labelled, range(700, 1_400))])
    looked = run("import", original, *store, "--dry-run")
    assert (looked.exit_code, looked.output.splitlines()[-1]) == (
        0,
        "Ready: 1,400 entries can be imported, 0 cannot. Nothing was changed.",
    )
    first = run("import", original, *store)
    assert (first.exit_code, first.output.splitlines()[-1]) == (0, "Imported 1,400 entries; 0 were there already")
    second = run("import", original, *store)
    assert (second.exit_code, second.output.splitlines()[-1]) == (0, "Imported 0 entries; 1,400 were there already")
    assert run("export", tmp_path / "new.jsonl", *store).exit_code == 0
    assert (tmp_path / "new.jsonl").read_bytes() == original.read_bytes()
    assert (tmp_path / "new.jsonl").stat().st_mode & 0o777 == 0o600
    assert run("export", *store).stdout_bytes == original.read_bytes()
    again = run("export", tmp_path / "new.jsonl", *store)
    assert (again.exit_code, "exists and is not overwritten" in again.output) == (1, True)
    assert not list(tmp_path.glob("*.quarantine.jsonl"))


def test_entries_get_the_owner_of_their_session_and_their_own_time(store: list[str], tmp_path: Path) -> None:
    """Naive times are UTC unless the operator says otherwise, and an erasure of the user finds the entries."""

    async def prepare() -> None:
        async with open_store(store) as memory:
            await memory.create_session(session_id="s", user_id="ann")

    async def look() -> tuple[list[str], list[str]]:
        async with open_store(store) as memory:
            times = [entry["created_at"] for entry in await memory.feedback.get()]
            await memory.delete_sessions(user_id="ann")
            return times, [entry["feedback_id"] for entry in await memory.feedback.get()]

    asyncio.run(prepare())
    given = [
        line(1, session_id="s", created_at="2026-02-05T15:17:55"),
        line(2, session_id="t", created_at="2026-02-05T15:17:55+09:00"),
    ]
    assert (
        run("import", write(tmp_path / "a.jsonl", given[:1]), *store, "--assume-timezone", "Asia/Seoul").exit_code == 0
    )
    assert run("import", write(tmp_path / "b.jsonl", given[1:]), *store).exit_code == 0
    times, left = asyncio.run(look())
    assert times == ["2026-02-05T06:17:55.000000+00:00"] * 2
    assert left == ["entry-000002"]


def test_lines_that_are_not_entries_go_to_quarantine(store: list[str], tmp_path: Path) -> None:
    """Each is named by its number and its reason, the others are stored, and the corrected ones follow."""
    bad: dict[str, Any] = {
        "rating is 5": line(2, rating=5),
        "rating must be an int, not bool": line(3, rating=True),
        "without created_at": {key: value for key, value in line(4).items() if key != "created_at"},
        "not JSON": "{",
        "not a JSON object": "[1]",
        "unknown keys: 'stars'": line(7, stars=3),
        "is not a time": line(8, created_at="yesterday"),
        "NUL": line(9, comment="\x00"),
        "session_id has 256 characters": line(10, session_id="x" * 256),
        "other feedback has the id 'entry-000001'": line(1, rating=1, comment="another"),
    }
    path = write(tmp_path / "old.jsonl", [line(1), *bad.values(), "", line(1)])
    result = run("import", path, *store, "--quarantine-file", tmp_path / "refused.jsonl")
    assert result.exit_code == 3
    assert "Imported 1 entry; 1 were there already" in result.output
    refused = [json.loads(each) for each in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert sorted(each["line"] for each in refused) == list(range(2, 12))
    for reason, number in zip(bad, range(2, 12), strict=True):
        (problems,) = [each["problems"] for each in refused if each["line"] == number]
        assert reason in problems[0], (reason, problems)
    kept = [each for each in refused if each.get("row", {}).get("rating") == 5]
    kept[0]["row"]["rating"] = 1
    corrected = write(tmp_path / "corrected.jsonl", kept)
    assert "Imported 1 entry" in run("import", corrected, *store).output
    taken = run("import", path, *store, "--quarantine-file", tmp_path / "refused.jsonl")
    assert (taken.exit_code, "exists and is not overwritten" in taken.output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("import", "nowhere.jsonl"), 1, "nowhere.jsonl cannot be read: No such file or directory"),
        (("import", "."), 1, "cannot be read: Is a directory"),
        (("import", "x.jsonl", "--assume-timezone", "Mars"), 2, "there is no time zone 'Mars'"),
        (("export",), 1, "chat.db does not exist; correct the path"),
        (("import",), 2, "Missing argument 'FILE'"),
    ],
)
def test_wrong_usage_says_so(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit codes are those of a migration."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--sqlite-path", tmp_path / "chat.db")
    assert (result.exit_code, says in result.output) == (code, True), result.output


def test_an_export_creates_and_upgrades_nothing(store: list[str], tmp_path: Path) -> None:
    """A path or DSN given by mistake must not put tables into the database of another program."""
    name, target = store
    if name == "--sqlite-path":
        execute_in_file(Path(target), "CREATE TABLE users (id INTEGER)")
        says, before = "has no conversation memory; check the path", Path(target).read_bytes()
    else:
        says, before = "the role sees no tables there; check the DSN", b""
    result = run("export", tmp_path / "new.jsonl", *store)
    assert (result.exit_code, says in result.output) == (1, True), result.output
    assert not (tmp_path / "new.jsonl").exists()
    if name == "--sqlite-path":
        assert Path(target).read_bytes() == before
        original = tmp_path / "original.db"
        make_file_with_data(original)
        before = original.read_bytes()
        result = run("export", "--sqlite-path", original)
        assert (result.exit_code, original.read_bytes() == before) == (1, True)
        assert "upgrade them first with flux-memory check --full" in result.output
    else:
        assert asyncio.run(dump_database(target)) == []


def test_an_unwritable_export_says_so(store: list[str], tmp_path: Path) -> None:
    """The store is there, and the directory is not."""
    assert run("import", write(tmp_path / "old.jsonl", [line(1)]), *store).exit_code == 0
    result = run("export", tmp_path / "no" / "where.jsonl", *store)
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.output


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for every command, without a traceback."""
    monkeypatch.setenv("DATABASE_URL", "chat.db")
    for arguments in (("export",), ("import", "x.jsonl")):
        result = run(*arguments)
        assert (result.exit_code, result.output[:52]) == (1, "FAILED  DATABASE_URL is not a SQLite URL and the bac")


def test_a_killed_import_is_completed_by_the_next(store: list[str], tmp_path: Path) -> None:
    """Batches are committed, so that nothing is lost or doubled, and no file is left behind."""
    path = write(tmp_path / "old.jsonl", [*map(line, range(20_000)), "broken"])
    command = [sys.executable, "-m", "flux_memory", "feedback", "import", str(path), *store, "--quarantine-file"]

    async def count() -> int:
        async with open_store(store) as memory:
            return (await memory.feedback.stats())["total"]

    asyncio.run(count())
    process = subprocess.Popen([*command, str(tmp_path / "1.jsonl")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not 0 < asyncio.run(count()) < 20_000 and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert asyncio.run(count()) > 0
    done = subprocess.run([*command, str(tmp_path / "2.jsonl")], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert asyncio.run(count()) == 20_000
    assert [each.name for each in tmp_path.glob("*.jsonl")] in (["old.jsonl", "2.jsonl"], ["2.jsonl", "old.jsonl"])
