"""Shortens findings that depend on timing: drops steps, calls and cancellations while the finding remains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.contract.model.findings import Finding, Findings, Step, UnexplainedError
from flux_memory.testkit.contract.model.state_machine import MemoryMachine

_REPLAYS = 3
"""How often a shorter sequence has to pass before it is discarded."""


def reduced(
    factory: Callable[[], Memory], finding: Finding, seconds: float, claims: Capability, longest_id: int
) -> Finding:
    """Return the shortest finding within the time."""
    until = time.monotonic() + seconds
    shorter = True
    while shorter:
        shorter = False
        for steps in _shorter(finding.steps):
            if time.monotonic() > until:
                return finding
            if (found := _replayed(factory, steps, claims, longest_id)) is not None:
                finding, shorter = found, True
                break
    return finding


def _replayed(
    factory: Callable[[], Memory], steps: tuple[Step, ...], claims: Capability, longest_id: int
) -> Finding | None:
    for _ in range(_REPLAYS):
        findings = Findings(0)
        machine = MemoryMachine(factory, findings, claims, longest_id)
        try:
            for step in steps:
                step.take(machine)
        except UnexplainedError:
            return findings.shortest
        finally:
            machine.teardown()
    return None


def _shorter(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """Yield shorter sequences, the shortest first; all keep the first step, which opens the store."""
    size = len(steps) // 2
    while size:
        for at in range(1, len(steps), size):
            yield steps[:at] + steps[at + size :]
        size //= 2
    for at, step in enumerate(steps):
        for simpler in step.simpler():
            yield (*steps[:at], simpler, *steps[at + 1 :])
