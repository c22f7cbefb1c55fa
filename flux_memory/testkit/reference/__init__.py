"""The reference model: the contract in plain Python, without an engine, to check backends and clauses against."""

from flux_memory.testkit.reference.memory import ReferenceMemory
from flux_memory.testkit.reference.store import ReferenceStore

__all__ = ["ReferenceMemory", "ReferenceStore"]
