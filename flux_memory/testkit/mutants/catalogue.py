"""The list of breaks: a mixin that spoils a sound memory, and the clause that must say so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from flux_memory.testkit.reference import ReferenceMemory

    Sound = ReferenceMemory
else:
    Sound = object
"""What a mixin spoils, for type checkers: at run time any memory's class may stand there."""

Mixin = TypeVar("Mixin", bound=type)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One break: what is broken, by what, and which clause catches it."""

    name: str
    caught_by: str
    mixin: type
    reference_only: bool


MUTANTS: Final[dict[str, Mutant]] = {}
"""Every break, by its name."""


def caught_by(clause_id: str, *, reference_only: bool = False) -> Callable[[Mixin], Mixin]:
    """Enter a mixin in the catalogue.

    Args:
        clause_id: The clause that is named for the break.
        reference_only: It reaches into the reference model's store; other breaks spoil any memory.
    """

    def register(mixin: Mixin) -> Mixin:
        assert mixin.__name__ not in MUTANTS
        MUTANTS[mixin.__name__] = Mutant(mixin.__name__, clause_id, mixin, reference_only)
        return mixin

    return register


def broken(name: str, sound: type) -> Any:
    """Return a broken copy of a memory's class."""
    mixin = MUTANTS[name].mixin
    # What the handles of one broken store share must not be shared with the next one.
    inherited = {key: value for each in reversed(mixin.__mro__) for key, value in vars(each).items()}
    shared = {key: copy.deepcopy(value) for key, value in inherited.items() if isinstance(value, dict | set | Random)}
    return type(f"{name}{sound.__name__}", (mixin, sound), shared)
