"""Tests the benchmark of single calls: its stores fit the library's tables, and a missed target is named."""

# ruff: noqa: PLC0415 - the harness is importable only within the fixture
from __future__ import annotations

import json
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the benchmarks importable."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


def make_result(us: float, base_us: float, ops: float) -> dict[str, Any]:
    """Return a result of one pair on each engine, and of a hot session."""
    rounds = [{"us": us, "base_us": base_us}] * 3
    times = {"at_most": 1.3, "at_most_us": None, "rounds": rounds}
    difference = {"at_most": None, "at_most_us": 150, "rounds": rounds}
    about = {"at": "now", "commit": "c", "cores": 2, "cpu": "x", "python": "3", "load_before": 0.1, "rounds": 3}
    hot = {"ops": ops, "pgbench_ops": 100.0, "p99_us": 1.0, "fewest_to_most_of_a_writer": 0.5}
    return {
        "about": {**about, "server": "16"},
        "pairs": {"postgres": {"update / add": times}, "sqlite": {"sync / async": difference}},
        "cpu_us": {"get_history(50)": 140.0},
        "hot": [{**hot, "fewest_to_most_of_a_process": 0.75}] * 3,
    }


def test_a_missed_target_is_named() -> None:
    """A ratio, a difference and the calls of a hot session each have a target; the page marks the missed ones."""
    import call_costs

    good = make_result(130.0, 100.0, 100.0)
    assert call_costs.missed(good) == []
    assert "missed" not in call_costs.document(good)
    bad = make_result(400.0, 200.0, 99.0)
    ratio, difference, hot = call_costs.missed(json.loads(json.dumps(bad)))
    assert ratio.startswith("PostgreSQL update / add: 2.00 times")
    assert difference.startswith("SQLite sync / async: 2.00 times, 200 us more")
    assert hot.startswith("hot session / pgbench: 0.99 times")
    page = call_costs.document(bad)
    assert page.count("**missed**") == 2
    assert "| the slowest process's calls / the fastest's | 0.75 |" in page


@pytest.mark.asyncio(loop_scope="function")
async def test_a_call_and_its_base_are_made_equally_often() -> None:
    """Neither is always the first: what the machine does between two calls falls on both."""
    from harness.alternation import Pair, measure_round

    made: list[str] = []

    async def work() -> None:
        made.append("work")

    async def base() -> None:
        made.append("base")

    figure = await measure_round(Pair("pair", work, base, calls=50), random.Random(1))
    assert set(figure) == {"us", "base_us"}
    assert made.count("work") == made.count("base") == 50
    assert {made[at] for at in range(0, 100, 2)} == {"work", "base"}


async def check_pairs(memory: Memory, pairs: list[Any]) -> None:
    """Make each call of each pair twice, then compare the copies with the original."""
    for pair in pairs:
        for _ in range(2):
            await pair.work()
            await pair.base()
    updated = await memory.get_session("updated")
    assert updated is not None
    assert updated["message_count"] == 2
    await check_copies(memory)


async def check_copies(memory: Memory) -> None:
    """Compare each copy of the long session, of which there are two or more, with the original."""
    from harness import call_pairs

    history = await memory.get_history(call_pairs.LONG)
    alike = [each["id"] for each in await memory.get_sessions(None) if each["message_count"] == len(history)]
    assert len(alike) >= 3
    for session in alike:
        assert await memory.get_history(session) == history


@pytest.mark.asyncio(loop_scope="function")
async def test_the_calls_fit_the_tables_of_sqlite(tmp_path: Path) -> None:
    """The statements that copy a session bypass the library: they store the same, also after a change of the schema."""
    from harness import call_pairs

    async with AsyncExitStack() as stack:
        pairs, _ = await call_pairs.open_sqlite(stack, tmp_path)
        async with ConversationMemory(tmp_path / "pairs.db") as memory:
            await check_pairs(memory, pairs)
        async with ConversationMemory(tmp_path / "copies.db") as memory:
            await check_copies(memory)


@pytest.mark.asyncio(loop_scope="function")
async def test_the_calls_fit_the_tables_of_postgres(flux_memory_postgres_dsn: str) -> None:
    """The same on PostgreSQL, and each part of a read can be made alone."""
    from harness import call_pairs
    from harness.alternation import measure_cpu

    async with AsyncExitStack() as stack:
        pairs, parts = await call_pairs.open_postgres(stack, flux_memory_postgres_dsn)
        async with PostgresConversationMemory(flux_memory_postgres_dsn, min_size=1) as memory:
            await check_pairs(memory, pairs)
        assert set(await measure_cpu(parts, 1)) == set(parts)


@pytest.mark.asyncio(loop_scope="function")
async def test_large_stores_fit_the_tables(tmp_path: Path, flux_memory_postgres_dsn: str) -> None:
    """The growth benchmark fills the tables by SQL: the library reads sessions with metadata, and a history."""
    from harness import large

    path = tmp_path / "large.db"
    async with ConversationMemory(path) as sqlite, PostgresConversationMemory(flux_memory_postgres_dsn) as postgres:
        await sqlite.count_sessions()
        await postgres.count_sessions()
        large.fill_sqlite(path, sessions=300, messages=20)
        await large.fill_postgres(flux_memory_postgres_dsn, sessions=300, messages=20)
        for memory in (sqlite, postgres):
            assert len(await memory.get_sessions(None, metadata={"lang": "en"})) == 150
            (found,) = await memory.get_sessions(user_id="user-1", metadata={"number": 7})
            assert found["title"] == "Conversation 7"
            assert len(await memory.get_history(large.LONG)) == 20
