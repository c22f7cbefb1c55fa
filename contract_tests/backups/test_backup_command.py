"""Tests the commands `flux-memory backup` and `flux-memory restore`: options, exit codes and output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from backup_stores import MakeStore, Store, fill, run_command, seen_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_memory import Memory
from flux_memory.operations.backup import compression


def test_a_backup_and_a_restore_print_their_proof(store: Store, make_store: MakeStore, backups: Path) -> None:
    """Both commands end with a sentence that says what was proven, and with exit code 0."""
    made = run_command("backup", backups, *store.options())
    assert made.exit_code == 0, made.output
    assert "Read 6 sessions, 72 messages, 6 feedback entries" in made.output
    assert made.output.rstrip().splitlines()[-1].startswith("Proven identical: the backup was restored")
    (backup,) = (path for path in backups.iterdir() if not path.name.endswith(".json"))
    target = make_store("sqlite")
    looked = run_command("restore", backup, *target.options(), "--dry-run")
    assert (looked.exit_code, "Ready: 6 sessions" in looked.output) == (0, True)
    assert target.sqlite_path is not None
    assert seen_files(target.sqlite_path.parent) == []
    done = run_command("restore", backup, *target.options())
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().splitlines()[-1].startswith("Proven identical: the sessions and messages in the target")
    again = run_command("restore", backup, *target.options())
    assert again.exit_code == 1
    assert "6 sessions, 72 messages, 6 feedback entries, which the restore would replace" in again.output
    unasked = run_command("restore", backup, *target.options(), "--replace")
    assert (unasked.exit_code, "run with --yes" in unasked.output) == (2, True)
    assert run_command("restore", backup, *target.options(), "--replace", "--yes", "--quiet").output == ""
    assert target.rows() == store.rows()


def test_json_has_the_outcome(store: Store, make_store: MakeStore, backups: Path) -> None:
    """--json prints one object, also for a failure, and never the password."""
    made = json.loads(run_command("backup", backups, *store.options(), "--archive", "--json").output)
    assert (made["ok"], made["verified"], made["contents"]["messages"]) == (True, True, 72)
    target = make_store("sqlite")
    done = json.loads(run_command("restore", made["path"], *target.options(), "--json").output)
    assert (done["ok"], done["outcome"], done["lost"]["sessions"]) == (True, "restored", 0)
    failed = run_command("restore", made["path"], *target.options(), "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.output)["error"] == "BackupError"
    assert ":***@" in made["source"] or store.sqlite_path is not None


def test_the_settings_name_the_store(
    make_store: MakeStore, backups: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without options the settings apply, as for the application."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_BACKEND", "POSTGRES_DSN", "FLUX_MEMORY_DATABASE_URL", "FLUX_MEMORY_DATABASE_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    store = make_store("sqlite")
    store.use(fill)
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{store.sqlite_path}")
    assert run_command("backup", backups, "--quiet").exit_code == 0
    assert len(seen_files(backups)) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sqlite-path", "a", "--postgres-dsn", "postgresql://h/d"], 2, "not both"),
        (["--sqlite-path", ""], 2, "--sqlite-path is empty"),
        (["--sqlite-path", "sqlite:///x"], 2, "is a URL"),
        (["--sqlite-path", "x", "--user", "ann"], 2, "--user needs --archive"),
        (["--sqlite-path", "x", "--user", "", "--archive"], 2, "--user is empty"),
        (["--sqlite-path", "x", "--compression", "gzip"], 2, "--compression needs --archive"),
        (["--sqlite-path", "x", "--name", "a/b"], 1, "cannot begin the names"),
        (["--sqlite-path", "/nowhere/x.db"], 1, "does not exist"),
        (["--sqlite-path", ":memory:"], 2, "in memory"),
        (["--postgres-dsn", "mysql://h/d"], 1, "only PostgreSQL"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    """Each wrong option is named, and leaves no directory's content behind."""
    result = run_command("backup", tmp_path / "backups", *arguments)
    assert result.exit_code == code, result.output
    assert says in result.output
    assert seen_files(tmp_path / "backups") == []


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_each_compression_restores(make_store: MakeStore, backups: Path, kind: str) -> None:
    """An archive of either compression restores; without zstd the error names the extra."""
    store, target = make_store("sqlite"), make_store("sqlite")
    store.use(fill)
    result = run_command("backup", backups, *store.options(), "--archive", "--compression", kind)
    if kind == "zstd" and compression.best_compression() == "gzip":
        assert (result.exit_code, "flux-memory[zstd]" in result.output) == (1, True)
        return
    assert result.exit_code == 0, result.output
    (backup,) = backups.glob("*.gz" if kind == "gzip" else "*.zst")
    assert run_command("restore", backup, *target.options()).exit_code == 0
    assert target.rows() == store.rows()


TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=3)), max_size=6)
SESSIONS = st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=3), MESSAGES), max_size=4)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(sessions=SESSIONS, archive=st.booleans(), data=st.data())
def test_any_store_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    sessions: list[tuple[str, dict[str, object], list[object]]],
    archive: bool,
    data: st.DataObject,
) -> None:
    """For random stores, a backup restores to equal digests and equal records."""
    directory = tmp_path_factory.mktemp("random")
    store, target = Store(directory / "chat.db", None), Store(directory / "restored.db", None)

    async def write(memory: Memory) -> None:
        await memory.count_sessions()
        for title, metadata, messages in sessions:
            session = await memory.create_session(title, metadata)
            for content, extra in messages:  # type: ignore[misc]  # pairs
                await memory.add_message(session, "user", content, extra)

    async def read(memory: Memory) -> list[object]:
        found: list[object] = []
        for session in await memory.get_sessions():
            record = {key: value for key, value in session.items() if key != "revision"}
            found.append((record, await memory.get_history(session["id"])))
        return found

    store.use(write)
    options = ["--archive"] if archive else []
    made = json.loads(run_command("backup", directory / "b", *store.options(), *options, "--json").output)
    done = json.loads(run_command("restore", made["path"], *target.options(), "--json").output)
    assert done["outcome"] == "restored"
    assert target.use(read) == store.use(read)
    again = json.loads(run_command("backup", directory / "c", *target.options(), "--archive", "--json").output)
    assert again["contents"] == made["contents"]
