"""The names under which a test's report carries what it found out, from any worker to the run's end.

A JUnit file shows those that belong to the item. Every pytest run imports this module: nothing else here.
"""

from typing import Final

CLAUSE: Final = "flux_clause"
BACKEND: Final = "flux_backend"
BACKEND_VERSION: Final = "flux_backend_version"
SERVER: Final = "flux_server"
FACTS: Final = "flux_facts"
"""The clause's own words: the controller has not imported the clauses that a downstream project adds."""
RESULT: Final = "flux_result"
CAPABILITY: Final = "flux_capability"
"""`{"name": ..., "claimed": ..., "outcome": ...}`, from a test of a contract class."""
SEED: Final = "flux_seed"
"""`[name, value]`, from any test: `record_property("flux_seed", ["model", 42])`."""
MUTANT: Final = "flux_mutant"
"""The name of a broken backend, from a test that passes when it is caught."""
