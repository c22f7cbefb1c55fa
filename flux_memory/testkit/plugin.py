"""The pytest11 entry point: the options, and the names of the modules with the hooks and fixtures.

Every pytest run in an environment with this package imports it, so neither it nor those modules import anything heavy.
"""

from __future__ import annotations

from typing import Final

import pytest

from flux_memory.testkit.servers.options import add_server_options

# Required before the contract is imported; otherwise its failures are bare assertion errors.
pytest.register_assert_rewrite("flux_memory.testkit.contract")

pytest_plugins: Final = [
    "flux_memory.testkit.servers.fixtures",
    "flux_memory.testkit.servers.hooks",
    "flux_memory.testkit.run_evidence",
    "flux_memory.testkit.report",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("flux-memory", "flux-memory")
    group.addoption(
        "--flux-postgres",
        default="auto",
        metavar="auto|docker|local|off|DSN",
        help="The source of the throwaway PostgreSQL. auto: FLUX_MEMORY_TEST_DSN, then Docker, then local binaries. "
        "If a named source is not available, the tests that need it fail.",
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
        help="A test that needs PostgreSQL fails instead of being skipped if `auto` finds none.",
    )
    group.addoption(
        "--flux-keep-databases",
        action="store_true",
        help="Keep the PostgreSQL databases of a failed test and print their DSNs; a server started for the run stays "
        "until the next run.",
    )
    group.addoption(
        "--flux-memory-factory",
        default=None,
        metavar="MODULE:FUNCTION",
        help="The memory for `pytest --pyargs flux_memory.testkit.contract`: a directory in, a handle out.",
    )
    group.addoption(
        "--flux-without",
        default=None,
        metavar="NAMES",
        help="Capabilities that the memory does not claim, such as batch,titles; their clauses do not count.",
    )
    group.addoption(
        "--flux-profile",
        "--flux-model",
        dest="flux_profile",
        choices=("fast", "thorough"),
        default="fast",
        help="fast: seconds. thorough: the model explores for ten minutes, and the clauses that take long run, too.",
    )
    group.addoption(
        "--flux-report",
        default=None,
        metavar="DIR",
        help="Write the results of the clauses into this directory: JSON, Markdown, an HTML page and an SVG badge.",
    )
    group.addoption(
        "--flux-contract",
        default=None,
        metavar="VERSION",
        help="Hold backends to this version of the contract, such as 1.0; newer clauses do not fail the run.",
    )
    group.addoption(
        "--flux-strict",
        action="store_true",
        help="A clause that was not checked, or was deselected, fails the run.",
    )
    add_server_options(parser)
