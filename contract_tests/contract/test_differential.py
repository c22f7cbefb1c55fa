"""Tests that SQLite and PostgreSQL give the same answers to the same calls, errors included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bound_stores import make_reference_factory

from flux_memory import ConversationMemory, PostgresConversationMemory
from flux_memory.testkit import ReferenceMemory
from flux_memory.testkit.contract.model.exploration import FAST, Profile, thorough
from flux_memory.testkit.differential import Differential

# A found example is short long before the search must end, unless the machine is busy.
QUICK = Profile(examples=40, steps=25, seed=1, shrinking=40)


def test_sqlite_and_postgres_answer_alike(
    request: pytest.FixtureRequest, tmp_path: Path, flux_memory_postgres_dsn: str
) -> None:
    """No sequence of calls gives different answers on the two backends."""
    compared = Differential(
        lambda: ConversationMemory(tmp_path / "chat.db"),
        lambda: PostgresConversationMemory(flux_memory_postgres_dsn),
        names=("SQLite", "PostgreSQL"),
    )
    finding = compared.explore(thorough() if request.config.option.flux_profile == "thorough" else FAST)
    assert finding is None, f"{finding.sentence}\n\nto reproduce:\n\n{finding.code}"


def test_equal_backends_have_no_difference() -> None:
    """Ids and times differ between stores and do not count as a difference."""
    assert (
        Differential(make_reference_factory(ReferenceMemory), make_reference_factory(ReferenceMemory)).explore(QUICK)
        is None
    )


class OldestPage(ReferenceMemory):
    async def get_history(self, *args: Any, limit: int | None = None, **kwargs: Any) -> Any:
        return (await super().get_history(*args, **kwargs))[: None if limit is None else limit]


class OtherArgument(ReferenceMemory):
    async def update_session_title(self, session_id: str, title: str) -> None:
        if not isinstance(title, str):
            raise type("Wrong", (ValueError,), {})("name must be a str")
        await super().update_session_title(session_id, title)


class Wide(ReferenceMemory):
    async def get_session(self, session_id: str) -> Any:
        record = await super().get_session(session_id)
        return record and {**record, "seq": 1}


@pytest.mark.parametrize("broken", [OldestPage, OtherArgument, Wide])
def test_a_difference_is_found_and_reproduced(broken: type[ReferenceMemory]) -> None:
    """A difference is shown with the answers of both backends, after the few calls that lead to it."""
    compared = Differential(
        make_reference_factory(ReferenceMemory), make_reference_factory(broken), names=("sound", "broken")
    )
    # Hypothesis draws constants from the loaded modules, so the same seed can give other examples; a busy machine has
    # no time to shorten all of them.
    findings = (compared.explore(replace(QUICK, seed=seed)) for seed in range(1, 9))
    finding = next((found for found in findings if found is not None and found.lines <= 30), None)
    assert finding is not None, "no seed found the difference in a few calls"
    compile(finding.code, "reproduction", "exec")
    assert "sound: " in finding.sentence or "the stores differ" in finding.sentence
