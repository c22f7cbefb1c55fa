"""The test kit: the contract, its clauses and a reference model. Names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flux_memory.testkit.capabilities import ALL, Capability
    from flux_memory.testkit.clauses import CLAUSES, CONTRACT_VERSION, Clause, clause
    from flux_memory.testkit.contract import MemoryContract
    from flux_memory.testkit.contract.outages import Outage, network_outages
    from flux_memory.testkit.declarations import known_failure
    from flux_memory.testkit.proxy import Proxy
    from flux_memory.testkit.reference import ReferenceMemory, ReferenceStore

__all__ = [
    "ALL",
    "CLAUSES",
    "CONTRACT_VERSION",
    "Capability",
    "Clause",
    "MemoryContract",
    "Outage",
    "Proxy",
    "ReferenceMemory",
    "ReferenceStore",
    "clause",
    "known_failure",
    "network_outages",
]

_HOME: Final = {
    "ALL": "capabilities",
    "Capability": "capabilities",
    "known_failure": "declarations",
    "MemoryContract": "contract",
    "Outage": "contract.outages",
    "Proxy": "proxy",
    "ReferenceMemory": "reference",
    "ReferenceStore": "reference",
    "network_outages": "contract.outages",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'clauses')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
