"""What a binding declares: the capabilities that are claimed, and the clauses that fail or cannot be verified."""

from __future__ import annotations

import flux_memory.testkit.extra  # noqa: F401 - its error names the extra  # isort: skip

import inspect
import unittest
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import pytest

from flux_memory import MAX_CONTENT_BYTES, MAX_ID_LENGTH
from flux_memory.testkit.capabilities import ALL, NOTHING, Capability
from flux_memory.testkit.clauses import CLAUSES

Binding = TypeVar("Binding", bound=type)

_KNOWN_FAILURES: Final = "flux_known_failures"
_UNVERIFIABLE: Final = "flux_unverifiable"
_FIXTURES_OF_THE_KIT: Final = ("store", "flux_clause")


def capabilities_of(item: pytest.Item) -> Capability:
    """Return the capabilities that a clause's backend claims, without those that `--flux-without` names."""
    claimed: Capability = getattr(getattr(item, "cls", None), "capabilities", ALL)
    return claimed & ~named_capabilities(item.config.option.flux_without or "")


def limits_of(item: pytest.Item) -> dict[str, int]:
    """Return the limits that a clause's binding states and that are smaller than the library's, by name."""
    binding = getattr(item, "cls", None)
    limits = {"max_content_bytes": MAX_CONTENT_BYTES, "max_id_length": MAX_ID_LENGTH}
    stated = {name: getattr(binding, name, most) for name, most in limits.items()}
    return {name: value for name, value in stated.items() if value < limits[name]}


def named_capabilities(names: str) -> Capability:
    """Return the capabilities of a list such as `batch,several-handles`.

    Raises:
        pytest.UsageError: a name is not a capability.
    """
    named = NOTHING
    for name in names.replace(",", " ").split():
        try:
            named |= Capability[name.upper().replace("-", "_")]
        except KeyError:
            known = ", ".join(str(each.name) for each in Capability)
            raise pytest.UsageError(f"--flux-without: there is no {name}; there are {known}") from None
    return named


def known_failure(clause_id: str, *, reason: str) -> Callable[[Binding], Binding]:
    """Declare, above a subclass of the contract, that a clause does not hold, and why.

    The clause still runs and is reported as a known failure. Once it holds, it fails the run until the declaration is
    removed.

    Raises:
        ValueError: the clause does not exist, or the reason is empty.
    """
    return _declare(_KNOWN_FAILURES, clause_id, reason, f"say why {clause_id} does not hold")


def unverifiable(clause_id: str, *, reason: str) -> Callable[[Binding], Binding]:
    """Declare, above a subclass of the contract, that a clause cannot be verified through this binding, and why.

    A strict run accepts it, and reports show it with the reason. Once the clause can be verified, it fails the run
    until the declaration is removed.

    Raises:
        ValueError: the clause does not exist, or the reason is empty.
    """
    return _declare(_UNVERIFIABLE, clause_id, reason, f"say why {clause_id} cannot be verified")


def _declare(name: str, clause_id: str, reason: str, advice: str) -> Callable[[Binding], Binding]:
    if clause_id not in CLAUSES:
        raise ValueError(f"there is no clause {clause_id}")
    if not reason.strip():
        raise ValueError(advice)

    def declare(binding: Binding) -> Binding:
        setattr(binding, name, {**vars(binding).get(name, {}), clause_id: reason})
        return binding

    return declare


def why_known(item: pytest.Item, clause_id: str) -> str | None:
    """Return the reason of a clause's `known_failure`, if it is declared."""
    return _declared(item, _KNOWN_FAILURES, clause_id)


def why_unverifiable(item: pytest.Item, clause_id: str) -> str | None:
    """Return the reason for which a clause is declared `unverifiable`, if it is."""
    return _declared(item, _UNVERIFIABLE, clause_id)


def _declared(item: pytest.Item, name: str, clause_id: str) -> str | None:
    bases: tuple[type, ...] = getattr(getattr(item, "cls", None), "__mro__", ())
    # A binding has the declarations of all its bases, not those of the first only.
    reasons: Iterator[dict[str, str]] = (vars(base).get(name, {}) for base in bases)
    return next((each[clause_id] for each in reasons if clause_id in each), None)


def refuse_replacements(binding: type) -> None:
    """Check that a subclass of the contract replaces neither a clause nor the fixtures by which the kit runs it.

    Raises:
        TypeError: the subclass replaces one, or is a `unittest.TestCase`, in which pytest runs no fixtures for clauses.
    """
    if issubclass(binding, unittest.TestCase):
        raise TypeError(
            f"{binding.__name__} is a unittest.TestCase, whose tests cannot have the fixtures of a clause; remove "
            "TestCase from its bases"
        )
    for name in _FIXTURES_OF_THE_KIT:
        owners = [base for base in binding.__mro__ if name in vars(base)]
        if len(owners) > 1:
            raise TypeError(
                f"{binding.__name__} replaces the fixture {name}, by which the kit runs the clauses; override "
                "memory_factory instead"
            )
    for base in binding.__mro__:
        for name, member in vars(base).items():
            clause_id: Any = getattr(member, "flux_clause_id", None)
            if clause_id is not None and inspect.getattr_static(binding, name) is not member:
                raise TypeError(
                    f"{binding.__name__} replaces {name}, which is the clause {clause_id}. If it does not hold, write "
                    f'@known_failure("{clause_id}", reason="...") above the class; if it needs a capability that the '
                    "backend lacks, leave that out of `capabilities`"
                )
