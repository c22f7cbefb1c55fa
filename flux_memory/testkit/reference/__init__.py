"""The reference model: the contract in plain Python, with no engine underneath, to judge backends and clauses by."""

from flux_memory.testkit.reference.memory import ReferenceMemory
from flux_memory.testkit.reference.store import ReferenceStore

__all__ = ["ReferenceMemory", "ReferenceStore"]
