"""Tests random input from outside: a little in each run, much of it with `nox -s fuzz`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz_targets
import pytest

from flux_memory.testkit.servers import Server


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory, flux_postgres_server: Server) -> Iterator[None]:
    """The place that the targets use."""
    dsn = flux_postgres_server.create_database()
    fuzz_targets.place.open(tmp_path_factory.mktemp("fuzz"), dsn)
    yield
    fuzz_targets.place.close()
    flux_postgres_server.drop_database(dsn)


@pytest.mark.parametrize("target", fuzz_targets.TARGETS.values(), ids=fuzz_targets.TARGETS)
def test_no_input_does_harm(target: Callable[[], None], record_property: Callable[[str, object], None]) -> None:
    """Only errors of the library, no hang, and no call touches another row; the inputs are counted."""
    target()
    tried = fuzz_targets.tried[target.__name__]
    assert tried >= 30
    record_property("inputs_tried", tried)


def test_a_feedback_file_is_refused(tmp_path: Path) -> None:
    """The original application's feedback is not a memory: it is refused, and nothing moves."""
    line = (
        '{"id": "a", "message_id": "m", "session_id": "s", "rating": 1, "comment": "좋은 답변입니다", '
        '"corrected_answer": null, "created_at": "2026-02-05T15:17:55.280357"}\n'
    )
    path = tmp_path / "feedback.jsonl"
    path.write_text(line * 3, encoding="utf-8")
    place = fuzz_targets.place
    with pytest.raises(fuzz_targets.FluxMemoryError, match=r"line 1 .* is not a quarantined row"):
        place.runner.run(fuzz_targets.migrate(fuzz_targets.Plan(sqlite_path=path, postgres_dsn=place.dsn, retry=True)))
    with pytest.raises(fuzz_targets.FluxMemoryError, match="is not a SQLite database"):
        place.runner.run(fuzz_targets.migrate(fuzz_targets.Plan(sqlite_path=path, postgres_dsn=place.dsn)))
