"""Deliberately broken memories: each proves that its clause catches the break."""

from flux_memory.testkit.mutants import (
    cancelled,
    capped,
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
    "capped",
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
