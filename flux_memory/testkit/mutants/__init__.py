"""Deliberately broken memories: each is the proof that the clause named for its break bites."""

from flux_memory.testkit.mutants import (
    cancelled,
    claimed,
    combined,
    impatient,
    journalled,
    listed,
    lived,
    ordered,
    raced,
    stored,
    valued,
    worded,
)
from flux_memory.testkit.mutants.catalogue import MUTANTS, Mutant, broken

__all__ = [
    "MUTANTS",
    "Mutant",
    "broken",
    "cancelled",
    "claimed",
    "combined",
    "impatient",
    "journalled",
    "listed",
    "lived",
    "ordered",
    "raced",
    "stored",
    "valued",
    "worded",
]
