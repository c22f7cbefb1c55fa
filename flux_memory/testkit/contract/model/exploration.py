"""Lets the state machine loose on a store, for as long as a profile says, and returns the shortest finding."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from flux_memory import Memory
from flux_memory.testkit.capabilities import ALL, Capability
from flux_memory.testkit.contract.model.machine import EnoughError, Finding, Findings, MemoryMachine
from flux_memory.testkit.contract.model.reduction import reduced


@dataclass(frozen=True, slots=True)
class Profile:
    """How much is tried: rounds of examples, each of so many steps, until the seconds are over."""

    examples: int
    steps: int
    seconds: float = 0.0
    seed: int = 0
    shrinking: float = 20.0
    """For how many seconds a shorter example of what was found is looked for."""


FAST: Final = Profile(examples=24, steps=20, seed=20_260, shrinking=5.0)
"""A few seconds, and the same examples each time, so that a run does not fail for what changed elsewhere."""


def thorough() -> Profile:
    """Return a profile of ten minutes, of other examples each time."""
    return Profile(examples=150, steps=40, seconds=600.0, seed=random.SystemRandom().randrange(2**32))


def explore(factory: Callable[[], Memory], profile: Profile = FAST, claims: Capability = ALL) -> Finding | None:
    """Try a store, and return the shortest sequence of calls that no promise explains, if there is one.

    Args:
        factory: Each call opens one more handle on the same store, which this empties.
        profile: How much is tried.
        claims: What the store has; nothing else is asked of it.
    """
    findings = Findings(profile.shrinking)
    run_machine(lambda: MemoryMachine(factory, findings, claims), profile, lambda: findings.shortest is not None)
    found = findings.shortest
    return None if found is None else reduced(factory, found, profile.shrinking, claims)


def run_machine(machine: Callable[[], RuleBasedStateMachine], profile: Profile, found: Callable[[], bool]) -> None:
    """Run a state machine as a profile says, until it has found something.

    Raises:
        Exception: The machine itself is broken.
    """
    until = time.monotonic() + profile.seconds
    seed = profile.seed
    chosen = settings(
        max_examples=profile.examples,
        stateful_step_count=profile.steps,
        # What was found last time shows by the seed; a database would be one more directory in the project.
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        verbosity=Verbosity.quiet,
    )
    while True:

        def start() -> RuleBasedStateMachine:
            return machine()

        start._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined]  # noqa: SLF001 - what `@seed` sets
        try:
            run_state_machine_as_test(start, settings=chosen)  # type: ignore[arg-type]
        except (Exception, EnoughError):
            # Timing decides what concurrent calls do, so a smaller example may not fail again, which is an error of
            # its own to Hypothesis; what was seen counts.
            if not found():
                raise
            return
        if time.monotonic() >= until:
            return
        seed += 1
