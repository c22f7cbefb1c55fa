"""Names the extra of a missing package. Modules that need the extra import this one before anything else."""

from __future__ import annotations

from importlib.util import find_spec

for _name in ("pytest", "pytest_asyncio", "hypothesis"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"the contract of flux_memory.testkit needs {_name}: pip install 'flux-memory[testkit]'", name=_name
        )
