"""A schema with distributed tables, on the cluster that the environment names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from cluster_stores import COORDINATOR, distributed_schema, empty, in_schema, new_schema, schema_on_one_worker


@pytest.fixture(scope="session")
def distributed() -> Iterator[str]:
    """The name of a schema whose tables `distribute` has distributed."""
    with asyncio.Runner() as runner:
        entered = distributed_schema()
        yield runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


@pytest.fixture
def emptied(distributed: str) -> str:
    """The same schema, whose tables are empty."""
    asyncio.run(empty(in_schema(COORDINATOR, distributed)))
    return distributed


@pytest.fixture
def fresh_schema() -> Iterator[str]:
    """The name of a schema without tables."""
    with asyncio.Runner() as runner:
        entered = new_schema()
        yield runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def on_one_worker() -> Iterator[str]:
    """The name of a schema that Citus distributes as a whole."""
    with asyncio.Runner() as runner:
        entered = schema_on_one_worker()
        yield runner.run(entered.__aenter__())
        runner.run(entered.__aexit__(None, None, None))
