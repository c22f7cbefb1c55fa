"""What a binding says of its backend: what it does not claim, and which clauses are known not to hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest

from flux_memory.testkit.capabilities import ALL, NOTHING, Capability

Binding = TypeVar("Binding", bound=type)

_KNOWN_FAILURES: Final = "flux_known_failures"


def capabilities_of(item: pytest.Item) -> Capability:
    """Return what the backend of a clause claims, less what `--flux-without` names."""
    claimed: Capability = getattr(getattr(item, "cls", None), "capabilities", ALL)
    return claimed & ~named_capabilities(item.config.option.flux_without or "")


def named_capabilities(names: str) -> Capability:
    """Return the capabilities of a list such as `batch,several-handles`.

    Raises:
        pytest.UsageError: There is no capability of a name given.
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
    """Declare, above a contract's subclass, that a clause does not hold, and why. It runs, and is reported as known.

    Once it holds it fails the run, so that the declaration goes.

    Raises:
        ValueError: There is no such clause, or no reason.
    """
    from flux_memory.testkit.clauses import CLAUSES  # noqa: PLC0415 - the clauses' module need not know this one

    if clause_id not in CLAUSES:
        raise ValueError(f"there is no clause {clause_id}")
    if not reason.strip():
        raise ValueError(f"say why {clause_id} does not hold")

    def declare(binding: Binding) -> Binding:
        setattr(binding, _KNOWN_FAILURES, {**getattr(binding, _KNOWN_FAILURES, {}), clause_id: reason})
        return binding

    return declare


def why_known(item: pytest.Item, clause_id: str) -> str | None:
    """Return the reason that `known_failure` gives for a clause."""
    reasons: dict[str, str] = getattr(getattr(item, "cls", None), _KNOWN_FAILURES, {})
    return reasons.get(clause_id)


def refuse_replacements(binding: type) -> None:
    """Refuse a contract's subclass that overrides or deletes a clause.

    Raises:
        TypeError: It does.
    """
    for base in binding.__mro__:
        for name, member in vars(base).items():
            clause_id: Any = getattr(member, "flux_clause_id", None)
            if clause_id is not None and inspect.getattr_static(binding, name) is not member:
                raise TypeError(
                    f"{binding.__name__} replaces {name}, which is the clause {clause_id}. Where it does not hold, "
                    f'write @known_failure("{clause_id}", reason="...") above the class; where the backend lacks '
                    "what it needs, say so in `capabilities`"
                )
