"""The names of the `user_properties` that carry results in test reports, also from xdist workers.

A JUnit file shows those of the item. Every pytest run imports this module, so it imports nothing heavy.
"""

from typing import Final

CLAUSE: Final = "flux_clause"
BACKEND: Final = "flux_backend"
BACKEND_VERSION: Final = "flux_backend_version"
SERVER: Final = "flux_server"
LIMITS: Final = "flux_limits"
"""The limits that a binding states and that are smaller than the library's, by name."""
FACTS: Final = "flux_facts"
"""The clause's texts: the xdist controller does not import the clauses of downstream projects."""
RESULT: Final = "flux_result"
CAPABILITY: Final = "flux_capability"
"""`{"name": ..., "claimed": ..., "outcome": ...}`, from a test of a contract class."""
SEED: Final = "flux_seed"
"""`[name, value]`, from any test: `record_property("flux_seed", ["model", 42])`."""
ADVICE: Final = "flux_advice"
"""What a memory lacks of its claims, and what to write instead, as one sentence."""
MUTANT: Final = "flux_mutant"
"""The name of a broken backend, from a test that passes if the backend is caught."""
