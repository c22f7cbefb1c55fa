"""Runs rounds: each measures every contender in every case once, in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from harness.contender_processes import Runner
from harness.results import Case, Run

WARM_UP_SECONDS: Final = 0.3
"""Seconds before a measurement counts."""


class Turn(NamedTuple):
    """One measurement of a round: a contender in a case."""

    contender: str
    case: Case
    runner: Runner


def measure(
    run: Run, turns: Sequence[Turn], *, rounds: int, seconds: float, seed: int, progress: Callable[[Turn], None]
) -> None:
    """Take every turn in every round, and add its figures to the run.

    Args:
        run: The result, to which the figures are added.
        turns: The measurements of each round.
        rounds: The number of rounds.
        seconds: The duration of each measurement.
        seed: The seed of the order and of the calls. All contenders of a case make the same calls in a round.
        progress: Called before each measurement.
    """
    rng = random.Random(seed)
    for number in range(rounds):
        for turn in _shuffle(turns, rng):
            progress(turn)
            task = {
                "engine": turn.case.engine,
                "work": turn.case.work,
                "concurrency": turn.case.concurrency,
                "warmup": WARM_UP_SECONDS,
                "seconds": seconds,
                "seed": f"{seed}-{number}-{turn.case}",
            }
            run.add(turn.case, turn.contender, turn.runner.measure(task))


def _shuffle(turns: Sequence[Turn], rng: random.Random) -> list[Turn]:
    """Return the turns in random order, case by case, so that the contenders of a case run close together."""
    cases = sorted({turn.case for turn in turns})
    rng.shuffle(cases)
    order: list[Turn] = []
    for case in cases:
        contenders = [turn for turn in turns if turn.case == case]
        order += rng.sample(contenders, len(contenders))
    return order
