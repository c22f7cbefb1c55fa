"""The test kit: the contract, its clauses and a reference model. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flux_memory.lazy import import_on_use

if TYPE_CHECKING:
    from flux_memory.testkit.capabilities import ALL, CORE, Capability
    from flux_memory.testkit.clauses import CLAUSES, CONTRACT_VERSION, Clause, clause
    from flux_memory.testkit.contract import MemoryContract
    from flux_memory.testkit.contract.outages import Outage, network_outages
    from flux_memory.testkit.contract.routes import Proxied
    from flux_memory.testkit.declarations import known_failure, unverifiable
    from flux_memory.testkit.proxy import Proxy
    from flux_memory.testkit.reference import ReferenceMemory, ReferenceStore

__all__ = [
    "ALL",
    "CLAUSES",
    "CONTRACT_VERSION",
    "CORE",
    "Capability",
    "Clause",
    "MemoryContract",
    "Outage",
    "Proxied",
    "Proxy",
    "ReferenceMemory",
    "ReferenceStore",
    "clause",
    "known_failure",
    "network_outages",
    "unverifiable",
]

__getattr__, __dir__ = import_on_use(
    __name__,
    {
        "capabilities": (
            "ALL",
            "CORE",
            "Capability",
        ),
        "clauses": (
            "CLAUSES",
            "CONTRACT_VERSION",
            "Clause",
            "clause",
        ),
        "contract": ("MemoryContract",),
        "contract.outages": (
            "Outage",
            "network_outages",
        ),
        "contract.routes": ("Proxied",),
        "declarations": (
            "known_failure",
            "unverifiable",
        ),
        "proxy": ("Proxy",),
        "reference": (
            "ReferenceMemory",
            "ReferenceStore",
        ),
    },
)
