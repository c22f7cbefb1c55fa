"""The pytest11 entry point: the options, and the names of the modules with the hooks and fixtures behind them.

Every pytest run in an environment with this package imports it: nothing heavy here, nor in the modules it names.
"""

from __future__ import annotations

from typing import Final

import pytest

# Before the contract is imported, or its failures would be bare assertion errors.
pytest.register_assert_rewrite("flux_memory.testkit.contract")

pytest_plugins: Final = ["flux_memory.testkit.servers.fixtures", "flux_memory.testkit.report"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("flux-memory", "flux-memory")
    group.addoption(
        "--flux-postgres",
        default="auto",
        metavar="auto|docker|local|off|DSN",
        help="Where the throwaway PostgreSQL is from. auto: FLUX_MEMORY_TEST_DSN, then Docker, then local binaries.",
    )
    group.addoption(
        "--flux-postgres-image",
        default=None,
        metavar="IMAGE",
        help="The image for Docker. Default: FLUX_MEMORY_TEST_IMAGE, then postgres:16-alpine.",
    )
    group.addoption(
        "--flux-postgres-required",
        action="store_true",
        help="A test that needs PostgreSQL fails, instead of being skipped, when there is none.",
    )
    group.addoption(
        "--flux-memory-factory",
        default=None,
        metavar="MODULE:CALLABLE",
        help="The memory for `pytest --pyargs flux_memory.testkit.contract`: takes an empty directory, returns a handle.",
    )
