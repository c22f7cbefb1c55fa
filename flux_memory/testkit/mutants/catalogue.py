"""The catalogue of breaks: a mixin that breaks a sound memory, and the clause that has to catch it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from flux_memory.testkit.reference import ReferenceMemory
    from flux_memory.testkit.reference.networked import NetworkedMemory

    Sound = ReferenceMemory
    Client = NetworkedMemory
else:
    # For type checkers, mixins have the base that they break; at run time `broken` adds the class of a memory.
    Sound = Client = object

Mixin = TypeVar("Mixin", bound=type)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One break: its name, its mixin, and the clause that catches it."""

    name: str
    caught_by: str
    mixin: type
    reference_only: bool


MUTANTS: Final[dict[str, Mutant]] = {}
"""Every break by its name."""


def caught_by(clause_id: str, *, reference_only: bool = False) -> Callable[[Mixin], Mixin]:
    """Add a mixin to the catalogue.

    Args:
        clause_id: The clause that has to catch the break.
        reference_only: The mixin uses the store of the reference model; other mixins break any memory.
    """

    def register(mixin: Mixin) -> Mixin:
        assert mixin.__name__ not in MUTANTS
        MUTANTS[mixin.__name__] = Mutant(mixin.__name__, clause_id, mixin, reference_only)
        return mixin

    return register


def broken(name: str, sound: type) -> Any:
    """Return a broken copy of a memory's class."""
    mixin = MUTANTS[name].mixin
    # State shared by the handles of one broken store must not leak into the next one.
    inherited = {key: value for each in reversed(mixin.__mro__) for key, value in vars(each).items()}
    shared = {key: copy.deepcopy(value) for key, value in inherited.items() if isinstance(value, dict | set | Random)}
    return type(f"{name}{sound.__name__}", (mixin, sound), shared)
