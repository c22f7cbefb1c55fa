"""Runs the state machine on a store for as long as a profile allows, and returns the shortest finding."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from flux_memory import MAX_ID_LENGTH, Memory
from flux_memory.testkit.capabilities import ALL, Capability
from flux_memory.testkit.contract.model.findings import EnoughError, Finding, Findings
from flux_memory.testkit.contract.model.reduction import reduced
from flux_memory.testkit.contract.model.state_machine import MemoryMachine
from flux_memory.testkit.timeouts import CALL_SECONDS


@dataclass(frozen=True, slots=True)
class Profile:
    """How much to explore: rounds of examples, each with a number of steps, until the time is over."""

    examples: int
    steps: int
    seconds: float = 0.0
    seed: int = 0
    shrinking: float = 20.0
    """How many seconds to search for a shorter example of a finding."""
    most_seconds: float = 60.0
    """How many seconds to explore at most: a store with slow calls is explored less."""
    call_seconds: float = CALL_SECONDS
    """How long a call may take."""


FAST: Final = Profile(examples=12, steps=20, seed=20_260, shrinking=5.0)
"""A few seconds, with the same examples each time, so that unrelated changes do not make a run fail."""


def thorough() -> Profile:
    """Return a profile of ten minutes, with different examples each time."""
    seed = random.SystemRandom().randrange(2**32)
    return Profile(examples=150, steps=40, seconds=600.0, seed=seed, most_seconds=600.0)


def explore(
    factory: Callable[[], Memory],
    profile: Profile = FAST,
    claims: Capability = ALL,
    longest_id: int = MAX_ID_LENGTH,
) -> Finding | None:
    """Explore a store, and return the shortest sequence of calls that violates a promise, if there is one.

    Args:
        factory: Each call opens another handle on the same store, which this function empties.
        profile: How much to explore.
        claims: What the store claims; other calls are not made.
        longest_id: The length of the longest id that the store accepts, in characters.
    """
    findings = Findings(profile.shrinking, call_seconds=profile.call_seconds, seconds=profile.most_seconds)
    run_machine(
        lambda: MemoryMachine(factory, findings, claims, longest_id), profile, lambda: findings.shortest is not None
    )
    found = findings.shortest
    return None if found is None else reduced(factory, found, profile.shrinking, claims, longest_id)


def run_machine(machine: Callable[[], RuleBasedStateMachine], profile: Profile, found: Callable[[], bool]) -> None:
    """Run a state machine as a profile says, until it finds something.

    Raises:
        Exception: The machine itself failed.
    """
    until = time.monotonic() + profile.seconds
    seed = profile.seed
    chosen = settings(
        max_examples=profile.examples,
        stateful_step_count=profile.steps,
        # The seed repeats a finding; a database would add a directory to the project.
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
        except EnoughError:
            return
        except Exception:
            # Concurrent calls depend on timing, so a smaller example may pass, which Hypothesis reports as an error.
            # The finding counts all the same.
            if not found():
                raise
            return
        if time.monotonic() >= until:
            return
        seed += 1
