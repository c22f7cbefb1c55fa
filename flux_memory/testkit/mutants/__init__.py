"""Deliberately broken memories, in modules named like the clause groups: each proves its clause."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from flux_memory.testkit.mutants.catalogue import MUTANTS, Mutant, broken

__all__ = ["MUTANTS", "Mutant", "broken"]

# An import adds the module's mutants to the catalogue.
for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
