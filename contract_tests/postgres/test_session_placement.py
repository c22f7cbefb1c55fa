"""The hash by which a handle finds the server of a session is that of the server."""

from __future__ import annotations

import random

import pytest
from raw_postgres import fetch_rows

from flux_memory.backends.postgres.distributed.placement import hash_id

ALPHABET = "abcdef0123456789-ÿé대화🙂\\\"' "


@pytest.mark.asyncio
async def test_a_session_id_has_the_hash_of_the_server(flux_postgres_dsn: str) -> None:
    """A wrong one would gather adds for the wrong server, which refuses them."""
    numbers = random.Random(1)
    ids = ["".join(numbers.choices(ALPHABET, k=length)) for length in [*range(64), 255] for _ in range(3)]
    rows = await fetch_rows(flux_postgres_dsn, "SELECT id, hashtext(id) FROM unnest($1::text[]) AS given (id)", ids)
    assert [(each, hash_id(each)) for each in ids] == [tuple(row) for row in rows]
