"""Values that were corrected by hand in a quarantine file are read as intended, or refused with their column."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from original_application import make_file_with_data
from raw_sqlite import execute_in_file

from flux_memory.cli import main
from flux_memory.errors import MigrationError
from flux_memory.transfer.quarantine import to_scratch

TAKEN: Final[dict[str, tuple[str, Any, Any]]] = {
    "text": ("title", "a", "a"),
    "a number": ("title", 1.5, 1.5),
    "null": ("title", None, None),
    "a blob": ("title", {"base64": "YQ=="}, b"a"),
    "text that is not UTF-8": ("title", {"text_base64": "/w=="}, b"\xff"),
    "a number that JSON lacks": ("title", {"float": "inf"}, float("inf")),
    "metadata as text": ("metadata", '{"lang": "ko"}', '{"lang": "ko"}'),
    "metadata as an object": ("metadata", {"lang": "enab"}, '{"lang": "enab"}'),
    "an object of two": ("metadata", {"lang": "ko", "n": 1.0}, '{"lang": "ko", "n": 1.0}'),
    "an object of none": ("metadata", {}, "{}"),
    "an object with a key of ours": ("metadata", {"base64": 1}, '{"base64": 1}'),
    "an object in an object": ("metadata", {"float": {"a": "漢"}}, '{"float": {"a": "漢"}}'),
    "a list": ("metadata", ["a"], '["a"]'),
}
REFUSED: Final[dict[str, tuple[str, Any, str]]] = {
    "an object": ("title", {"lang": "enab"}, "'title' must be text, a number or null"),
    "an object of two": ("title", {"a": 1, "b": 2}, "'title' must be text, a number or null"),
    "a list": ("created_at", ["2026-01-01"], "'created_at' must be text, a number or null"),
    "an empty object": ("id", {}, "'id' must be text, a number or null"),
    "broken base64": ("title", {"base64": "YQ"}, "'title' is not valid base64"),
    "base64 of a word": ("metadata", {"base64": "a b"}, "'metadata' is not valid base64"),
    "a float that is a word": ("title", {"float": "much"}, "could not convert string to float"),
}


def read(directory: Path, column: str, value: Any) -> Any:
    """Convert a file with one session, and return the value of a column."""
    path, scratch = directory / "rows.jsonl", directory / "scratch.db"
    path.write_text(json.dumps({"table": "sessions", "row": {column: value}}, ensure_ascii=False), encoding="utf-8")
    to_scratch(path, scratch, lambda: False)
    with closing(sqlite3.connect(scratch)) as db:
        return db.execute(f"SELECT {column} FROM sessions").fetchone()[0]


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_is_read_as_intended(tmp_path: Path, name: str) -> None:
    """Metadata may be a JSON object; other values have the forms that the command writes."""
    column, value, expected = TAKEN[name]
    assert read(tmp_path, column, value) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_an_unknown_form_is_refused_with_its_column(tmp_path: Path, name: str) -> None:
    """The message names the line and the column."""
    column, value, says = REFUSED[name]
    with pytest.raises(MigrationError, match=r"line 1 of .* is not a quarantined row") as caught:
        read(tmp_path, column, value)
    assert says in str(caught.value)


def test_the_printed_retry_goes_to_the_same_database(
    tmp_path: Path, flux_empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed command has the DSN of the first one, masked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTGRES_DSN", raising=False)
    make_file_with_data(tmp_path / "chat.db")
    execute_in_file(tmp_path / "chat.db", "UPDATE messages SET metadata = 'x' WHERE rowid = 1")
    options = ["--sqlite-path", "chat.db", "--on-invalid=quarantine", "--quarantine-file", "rows.jsonl"]
    result = CliRunner().invoke(main, ["migrate", *options, "--postgres-dsn", flux_empty_database])
    assert result.exit_code == 3, result.output
    (line,) = (
        line for line in result.output.splitlines() if "then run: flux-memory migrate --retry rows.jsonl" in line
    )
    assert "--postgres-dsn 'postgresql://" in line
    assert ":***@127.0.0.1" in line
    assert "Correct them there, replace *** below with the password, then run: flux-memory migrate" in line
