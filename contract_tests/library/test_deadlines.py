"""Tests `deadline()`: the calls it applies to, and the values it refuses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from flux_memory import InvalidInputError, deadline
from flux_memory.backends.deadlines import seconds_for


def test_the_innermost_block_counts() -> None:
    """Outside any block the handle's own timeout applies, also after an error."""
    assert seconds_for(30.0) == 30.0
    with deadline(5):
        assert seconds_for(30.0) == 5.0
        with contextlib.suppress(ZeroDivisionError), deadline(0.5):
            assert seconds_for(30.0) == 0.5
            raise ZeroDivisionError
        assert seconds_for(30.0) == 5.0
    assert seconds_for(30.0) == 30.0


@pytest.mark.asyncio
async def test_a_block_holds_for_its_own_task_and_those_it_starts() -> None:
    """Concurrent tasks do not affect each other's deadlines."""

    async def seconds() -> float:
        await asyncio.sleep(0)
        return seconds_for(30.0)

    with deadline(5):
        started = asyncio.create_task(seconds())
    assert await asyncio.gather(started, asyncio.create_task(seconds())) == [5.0, 30.0]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_a_deadline_that_makes_no_sense_is_refused(wrong: Any) -> None:
    """The error is raised where the mistake is, at the block's start."""
    with pytest.raises(InvalidInputError, match="seconds"), deadline(wrong):
        pass
