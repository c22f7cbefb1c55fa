"""Without the extra `testkit`, its names say what to install, and everything else of the package works."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

from flux_memory import testkit

NEEDED: Final = ("pytest", "pytest_asyncio", "hypothesis")
INDEPENDENT: Final = ("ALL", "CORE", "Capability", "Proxy", "ReferenceMemory", "ReferenceStore")
ENTRIES: Final = {
    **{name: f"from flux_memory.testkit import {name}" for name in testkit.__all__ if name not in INDEPENDENT},
    "the contract's package": "from flux_memory.testkit.contract import MemoryContract",
    "a group of clauses": "from flux_memory.testkit.contract.order import OrderContract",
    "the outages": "from flux_memory.testkit.contract.outages import network_outages",
    "the differential test": "from flux_memory.testkit.differential import Differential",
}
"""The imports that need the extra."""
WORKING: Final = {
    **{name: f"from flux_memory.testkit import {name}" for name in INDEPENDENT},
    "the servers": "from flux_memory.testkit.servers import start_server",
    "the histories": "from flux_memory.testkit.histories import History, Journal, Recorder, check, read_stored",
    "the mutants": "from flux_memory.testkit.mutants import MUTANTS",
    "the command": "import flux_memory.cli.contract, flux_memory.testkit.evidence.diff",
    "the library": "import flux_memory; flux_memory.ConversationMemory, flux_memory.PostgresConversationMemory",
}
"""The imports that do not."""

TRY: Final = """
import json, sys

sys.modules[sys.argv[1]] = None
sys.modules[sys.argv[1]] = None
results = {}
for name, entry in json.loads(sys.stdin.read()).items():
    try:
        exec(entry)
    except ImportError as error:
        results[name] = f"{type(error).__name__}: {error}"
    else:
        results[name] = ""
print(json.dumps(results))
"""


def try_imports(missing: str, entries: dict[str, str]) -> dict[str, str]:
    """Try the imports in one process that does not have a package, and return the error of each."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, missing], input=json.dumps(entries), capture_output=True, text=True, check=True
    )
    results: dict[str, str] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("missing", NEEDED)
def test_each_import_names_the_extra(missing: str) -> None:
    """An import that cannot work says how to make it work."""
    wanted = (
        f"ModuleNotFoundError: the contract of flux_memory.testkit needs {missing}: pip install 'flux-memory[testkit]'"
    )
    assert try_imports(missing, ENTRIES) == dict.fromkeys(ENTRIES, wanted)


@pytest.mark.parametrize("missing", NEEDED)
def test_the_rest_needs_no_extra(missing: str) -> None:
    """The servers, the reference, the network and the command work where pytest is not installed."""
    assert try_imports(missing, WORKING) == dict.fromkeys(WORKING, "")
