"""Tests the schema's history: the naming rule, released files that never change, and what a database lacks."""

from __future__ import annotations

from importlib.resources import files

import pytest

from flux_memory.errors import SchemaError
from flux_memory.schema import FILE_NAME, adopted_version, describe_version, history, missing_steps

# Released files never change: databases have recorded their checksums. A new file gets a line here.
PINNED = {
    "sqlite": {
        "0001_original": "5d55deee641ef835953f8abe2350655c3a47ece17b00e9bb6f0858e65fa71bd3",
        "0002_user_id": "d0b762b47af949052e24fc81e19b76e487d058dc55999f8fc1ced76eb4434f0d",
        "0003_order": "ffa6a678491ade307aa5561b39a03242d11605568d899ad698b01b8d6e20bd04",
        "0004_session_metadata": "1e2d331355e9c824ec892680d759e4a728ee3732d57c9bcb885059fb49be16d2",
        "0005_creation_id": "328de88018b954578a3d7080486472ad0d2dc6b0d8a568d008c3a853c6f84c7b",
        "0006_narrow_sessions": "47b6e766299c6f67838904843599ce4445e66c67d8a5ad0ea89afe61ac3a873b",
        "0007_feedback": "5c9b48dc978317f681966a08b21c4b7e6ef27b2117f80c2407d5280fc63989b3",
    },
    "postgres": {
        "0001_original": "4e27cb05d76e98ebd99a42359a542f7ac05a9e22f5b5e9350a747a2830af59ac",
        "0002_user_id": "d0b762b47af949052e24fc81e19b76e487d058dc55999f8fc1ced76eb4434f0d",
        "0003_order": "232c750ea399082356ee8b2f37da021c15b3bb06dd0d70854682659e7d8a7f26",
        "0004_session_metadata": "56434de874cf1caeaf8ba6af257fa99c2fec3b15b6610b3c11c0c52394e41f3d",
        "0005_creation_id": "d2899b0c1cdd8b0020dabf5c61ec63aa5ae21b1c36231e59de61dcc4192fbd05",
        "0006_narrow_sessions": "8991d42b1c6d28f987b975ec6025ebe550da43f29f6948d34c39f4bb45d2bc4e",
        "0007_feedback": "0ff92da4db5f8f18119d784ac64d80deeaa78321b292337c5f3580bd5f51b62d",
    },
}
SESSIONS = {"id", "title", "created_at", "updated_at", "metadata"}
MESSAGES = {"id", "session_id", "role", "content", "metadata", "created_at"}

dialects = pytest.mark.parametrize("dialect", sorted(PINNED))


@dialects
def test_the_numbered_files_have_not_changed(dialect: str) -> None:
    """Existing databases have recorded the checksums; a changed file would lock their owners out."""
    assert {f"{step.version:04}_{step.name}": step.checksum for step in history(dialect)} == PINNED[dialect]


@dialects
def test_every_sql_file_follows_the_naming_rule(dialect: str) -> None:
    """A misnamed file would be left out silently."""
    folder = files("flux_memory.schema").joinpath(dialect)
    names = [file.name for file in folder.iterdir() if file.name.endswith(".sql")]
    assert [name for name in names if not FILE_NAME.fullmatch(name)] == []
    assert len(names) == len(history(dialect))


@dialects
def test_the_numbers_have_no_gap_and_no_repeat(dialect: str) -> None:
    """A version is a position in the history."""
    assert [step.version for step in history(dialect)] == list(range(1, len(PINNED[dialect]) + 1))


def test_a_version_that_both_dialects_have_means_the_same() -> None:
    """A number in a report or an error means the same on both engines; one engine may be ahead."""
    assert all(one.name == other.name for one, other in zip(history("sqlite"), history("postgres"), strict=False))


@dialects
def test_the_missing_files_of_a_database(dialect: str) -> None:
    """A current database lacks nothing, a fresh one every file, an old one the rest."""
    steps = history(dialect)
    everything = {step.version: step.checksum for step in steps}
    assert missing_steps(dialect, everything) == []
    assert missing_steps(dialect, {}) == list(steps)
    assert missing_steps(dialect, {1: steps[0].checksum}) == list(steps[1:])


@dialects
def test_a_newer_database_is_refused(dialect: str) -> None:
    """An old release does not write to a newer schema; the message says how to proceed."""
    newest = len(history(dialect))
    with pytest.raises(SchemaError, match=f"has schema version {newest + 1} and this .* knows {newest}; upgrade"):
        missing_steps(dialect, {newest + 1: "0"})


@dialects
def test_another_checksum_is_refused(dialect: str) -> None:
    """The schema of a database made by a different file is unknown."""
    with pytest.raises(SchemaError, match=r"schema version 2 \(user_id\) was applied .* from a file that differs"):
        missing_steps(dialect, {1: history(dialect)[0].checksum, 2: "0"})


def test_which_generation_made_the_tables() -> None:
    """The original's generations differ by `user_id`; an owner's additional columns of sessions are kept."""
    assert adopted_version({"sessions": set(), "messages": set()}) == 0
    assert adopted_version({"sessions": SESSIONS, "messages": MESSAGES}) == 1
    assert adopted_version({"sessions": SESSIONS | {"user_id"}, "messages": MESSAGES}) == 2
    assert adopted_version({"sessions": SESSIONS | {"starred"}, "messages": MESSAGES}) == 1


@pytest.mark.parametrize(
    ("sessions", "messages", "says"),
    [
        ({"id", "data"}, set(), "is not conversation memory .*it lacks .*title"),
        (SESSIONS, set(), "it lacks content, created_at"),
        (SESSIONS - {"title"}, MESSAGES, r"it lacks title\)"),
        (SESSIONS, MESSAGES | {"embedding"}, "'messages' has columns .*: embedding; move them"),
    ],
)
def test_foreign_tables_are_refused(sessions: set[str], messages: set[str], says: str) -> None:
    """A table called sessions is not proof enough: foreign data is never adopted on a guess."""
    with pytest.raises(SchemaError, match=says):
        adopted_version({"sessions": sessions, "messages": messages})


@dialects
def test_a_schema_in_words(dialect: str) -> None:
    """The `check` command shows: current, behind, original, or none."""
    everything = {step.version: step.checksum for step in history(dialect)}
    newest = max(everything)
    behind = {version: everything[version] for version in everything if version < newest}
    assert describe_version(dialect, everything, 0) == f"version {newest}, current"
    assert describe_version(dialect, behind, 0) == f"version {newest - 1}, 1 behind: upgraded at first use"
    assert describe_version(dialect, {}, 1) == "the original application's, generation 1: adopted in place at first use"
    assert describe_version(dialect, {}, 0) == "none yet: created at first use"
