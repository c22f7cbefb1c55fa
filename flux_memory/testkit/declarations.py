"""What a binding declares of its backend: the capabilities it claims, and the clauses known to fail."""

from __future__ import annotations

import flux_memory.testkit.extra  # noqa: F401 - its error names the extra  # isort: skip

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest

from flux_memory.testkit.capabilities import ALL, NOTHING, Capability
from flux_memory.testkit.clauses import CLAUSES

Binding = TypeVar("Binding", bound=type)

_KNOWN_FAILURES: Final = "flux_known_failures"


def capabilities_of(item: pytest.Item) -> Capability:
    """Return the capabilities that a clause's backend claims, without those that `--flux-without` names."""
    claimed: Capability = getattr(getattr(item, "cls", None), "capabilities", ALL)
    return claimed & ~named_capabilities(item.config.option.flux_without or "")


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
    if clause_id not in CLAUSES:
        raise ValueError(f"there is no clause {clause_id}")
    if not reason.strip():
        raise ValueError(f"say why {clause_id} does not hold")

    def declare(binding: Binding) -> Binding:
        setattr(binding, _KNOWN_FAILURES, {**getattr(binding, _KNOWN_FAILURES, {}), clause_id: reason})
        return binding

    return declare


def why_known(item: pytest.Item, clause_id: str) -> str | None:
    """Return the reason of a clause's `known_failure`, if it is declared."""
    reasons: dict[str, str] = getattr(getattr(item, "cls", None), _KNOWN_FAILURES, {})
    return reasons.get(clause_id)


def refuse_replacements(binding: type) -> None:
    """Check that a subclass of the contract neither overrides nor deletes a clause.

    Raises:
        TypeError: the subclass replaces a clause.
    """
    for base in binding.__mro__:
        for name, member in vars(base).items():
            clause_id: Any = getattr(member, "flux_clause_id", None)
            if clause_id is not None and inspect.getattr_static(binding, name) is not member:
                raise TypeError(
                    f"{binding.__name__} replaces {name}, which is the clause {clause_id}. If it does not hold, write "
                    f'@known_failure("{clause_id}", reason="...") above the class; if it needs a capability that the '
                    "backend lacks, leave that out of `capabilities`"
                )
