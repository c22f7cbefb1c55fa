"""Text from files and arguments is shown without control codes, and quoted where it is part of a command."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_memory.cli import main
from flux_memory.records.printing import printable, shell_quoted

CODES: Final = "\x1b[31m\x07\r\x00\x7f\x9b2J\u202e\u2028\n"
"""Colour, bell, overwriting, clearing, and turning round what a terminal shows."""
DSN: Final = "postgresql://nowhere.invalid/db"


def check_harmless(output: str) -> None:
    """Only the ends of lines are not printable."""
    assert output.replace("\n", "").isprintable(), ascii(output)


@settings(max_examples=50)
@given(st.text())
def test_what_is_printable_stays_and_the_rest_means_the_same(text: str) -> None:
    """In JSON, an escape is the character."""
    assert printable(text).isprintable()
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text
    if text.isprintable():
        assert printable(text) == text


WORDS: Final = ["plain", "it's", "$(touch hacked)", "`id`", ";id", "a b", "", "*", "-x", "\\", "ü", "a\nb", CODES[:2]]


@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_the_word_that_was_quoted(word: str, tmp_path: Path) -> None:
    """By bash itself; nothing in the word is executed."""
    bash = shutil.which("bash")
    assert bash is not None
    said = subprocess.run(
        [bash, "-c", f"printf %s {shell_quoted(word)}"], capture_output=True, check=True, cwd=tmp_path, timeout=20
    )
    assert said.stdout.decode() == word
    assert not any(tmp_path.iterdir())
    assert shell_quoted(word).isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--sqlite-path", "no{}thing.db"],
        ["check", "--json", "--sqlite-path", "no{}thing.db"],
        ["check", "--sqlite-path", "di{}r"],
        ["check", "--timeout", "{}"],
        ["check", "{}"],
        ["{}"],
        ["migrate", "--postgres-dsn", DSN, "--sqlite-path", "no{}thing.db"],
        ["migrate", "--postgres-dsn", DSN, "--retry", "no{}thing.jsonl"],
        ["migrate", "--postgres-dsn", DSN, "--report", "no{}where/report.json"],
        ["migrate", "--postgres-dsn", DSN, "--report", "other{}"],
        ["migrate", "--postgres-dsn", DSN, "--assume-timezone", "{}"],
        ["contract", "diff", "di{}r", "di{}r"],
        ["contract", "diff", "evil{}", "evil{}"],
    ],
)
def test_no_argument_reaches_the_terminal_raw(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a file that came with a glob is text of unknown origin."""
    monkeypatch.chdir(tmp_path)
    codes = CODES.replace("\x00", "")
    (tmp_path / f"di{codes}r").mkdir()
    (tmp_path / f"other{codes}").write_text("not a report")
    (tmp_path / f"evil{codes}").write_text(json.dumps({"format": CODES, "contract": CODES}, ensure_ascii=False))
    result = CliRunner().invoke(main, [argument.format(codes) for argument in arguments])
    assert result.exit_code in {1, 2}, result.output
    assert result.output
    check_harmless(result.output)
