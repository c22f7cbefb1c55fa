"""Finds what a claimed capability needs and a memory does not have: advice before the first clause, never a verdict."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Final

from flux_memory import FluxMemoryError, Memory
from flux_memory.testkit.capabilities import ALL, CORE, NOTHING, Capability
from flux_memory.testkit.contract.claimed_calls import CALLS, ClaimedCall

Missing = Mapping[Capability, Sequence[str]]
"""The calls that a memory lacks by capability, such as `pop_message()` or `get_history(after=)`."""

_SHOWN: Final = 8
"""Calls that the advice names; of more, it gives their number."""


def find_missing(memory: object, claimed: Capability) -> Missing:
    """Return the methods and keyword arguments that the claimed capabilities need and this memory does not have."""
    missing = _find(memory, claimed, lambda each: not each.also)
    # Without the capability that brings a call, no other one needs it.
    works = claimed & ~_all_of(missing)
    return missing | _find(memory, works, lambda each: bool(each.also) and each.also in works)


def advise(missing: Missing, claimed: Capability, *, plugged_in: bool = False) -> str:
    """Return one sentence on what a memory lacks, and what to write in its binding instead of implementing it.

    Args:
        missing: What `find_missing` found; not empty.
        claimed: The capabilities that the binding claims.
        plugged_in: The binding is the kit's own, whose claims are an option of pytest.
    """
    lacks = sorted(
        {lack for each in missing.values() for lack in each}, key=lambda lack: (not lack.endswith("()"), lack)
    )
    more = f" and {len(lacks) - _SHOWN} more" if len(lacks) > _SHOWN else ""
    left_out = _all_of(missing)
    if plugged_in:
        names = ",".join(str(each.name).lower().replace("_", "-") for each in left_out)
        return f"the memory has no {', '.join(lacks[:_SHOWN])}{more}; add them, or pass --flux-without={names}"
    return f"the memory has no {', '.join(lacks[:_SHOWN])}{more}; add them, or write {_write(claimed & ~left_out)}"


def _find(memory: object, claimed: Capability, wanted: Callable[[ClaimedCall], bool]) -> dict[Capability, list[str]]:
    found = {
        capability: [_find_lack(memory, each.method, each.argument) for each in calls if wanted(each)]
        for capability, calls in CALLS.items()
        if capability in claimed
    }
    lacks = {capability: list(dict.fromkeys(filter(None, each))) for capability, each in found.items()}
    return {capability: each for capability, each in lacks.items() if each}


def _all_of(capabilities: Iterable[Capability]) -> Capability:
    return reduce(or_, capabilities, NOTHING)


def _find_lack(memory: object, method: str, argument: str) -> str | None:
    declared = getattr(Memory, method)
    try:
        found = getattr(memory, method)
    except AttributeError:
        return f"{method}()" if callable(declared) else method
    except FluxMemoryError:
        # `memory.feedback` of a memory without feedback: the protocol's own refuses.
        return method
    if not callable(declared):
        return None
    wanted = inspect.signature(declared).parameters.get(argument)
    # Other arguments are passed by their position, under any name.
    if wanted is None or wanted.kind is not inspect.Parameter.KEYWORD_ONLY:
        return None
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return None
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return None if takes_any or argument in parameters else f"{method}({argument}=)"


def _write(claims: Capability) -> str:
    """Return the line of a binding that makes these claims, as `capabilities = CORE`."""
    less_than_all = f"ALL & ~({_list(ALL & ~claims)})"
    more_than_core = " | ".join(filter(None, ["CORE", _list(claims & ~CORE)]))
    if without := CORE & ~claims:
        more_than_core = f"({more_than_core}) & ~({_list(without)})".replace("(CORE)", "CORE")
    return f"`capabilities = {min(more_than_core, less_than_all, key=len)}` in the class"


def _list(capabilities: Capability) -> str:
    return " | ".join(f"Capability.{each.name}" for each in capabilities)
