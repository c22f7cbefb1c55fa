"""The contract bound to the memory that `--flux-memory-factory` names.

pytest --pyargs flux_memory.testkit.contract --flux-memory-factory=mypackage.testing:open_memory
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import cast

import pytest

from flux_memory import Memory
from flux_memory.testkit.contract import MemoryContract
from flux_memory.testkit.contract.under_test import Factory


class TestMemory(MemoryContract):
    """Every clause, on a store in a fresh directory."""

    @pytest.fixture
    def memory_factory(self, request: pytest.FixtureRequest, tmp_path: Path) -> Factory:
        """Open handles on the store in this test's directory."""
        open_memory = find_factory(request.config)
        directory = tmp_path / "store"
        directory.mkdir()
        return lambda: open_memory(directory)


def find_factory(config: pytest.Config) -> Callable[[Path], Memory]:
    """Return the callable that `--flux-memory-factory` names.

    Raises:
        pytest.UsageError: The option does not name a callable.
    """
    name: str = config.option.flux_memory_factory
    here = str(config.invocation_params.dir)
    if here not in sys.path:
        # As `python -m pytest` does: the module may be beside the project's tests.
        sys.path.insert(0, here)
    try:
        found = resolve_name(name)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise pytest.UsageError(f"--flux-memory-factory={name}: {said}; write module:function") from error
    if not callable(found):
        raise pytest.UsageError(f"--flux-memory-factory={name}: is a {type(found).__name__}; write module:function")
    return cast("Callable[[Path], Memory]", found)
