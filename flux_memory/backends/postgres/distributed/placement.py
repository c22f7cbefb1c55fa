"""Finds the server that holds a session as Citus does: by the hash of the session's id."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Any, Final, NamedTuple

from flux_memory.backends.postgres.arrays import write_texts

SELECT_SHARDS: Final = """
SELECT pg_dist_shard.shardid, shardminvalue::int, groupid, groupid = (SELECT groupid FROM pg_dist_local_group)
FROM pg_class AS sessions
JOIN pg_namespace ON pg_namespace.oid = relnamespace
JOIN pg_dist_shard ON logicalrelid::oid = sessions.oid
JOIN pg_dist_placement ON pg_dist_placement.shardid = pg_dist_shard.shardid AND shardstate = 1
WHERE relname = 'sessions' AND quote_ident(nspname::text) = $1
ORDER BY 2
"""
SELECT_HASHES: Final = """
SELECT ARRAY (SELECT worker_hash(id::varchar) FROM unnest($1::text::text[]) WITH ORDINALITY AS item (id, position)
ORDER BY position)::text
"""
PROBES: Final = ("", "a", "12 bytes long", "01a22ec5-f9d3-797c-9a4b-30fc5d5b7e9d", "대화 " * 21)
"""Ids whose hashes are compared with the server's before the hashes are relied on."""
HASHED_IDS: Final = 10_000
"""Ids whose hashes are kept."""
_ALL_BITS: Final = 0xFFFFFFFF
_MIX: Final = ((0, 2, 4), (1, 0, 6), (2, 1, 8), (0, 2, 16), (1, 0, 19), (2, 1, 4))
_LAST: Final = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))


class Shard(NamedTuple):
    """A part of the sessions, and where it is."""

    id: int
    first_hash: int
    """The lowest hash of its sessions' ids."""
    server: int
    """The number of the group of servers that holds it."""
    is_here: bool
    """Whether the server that was asked holds it."""


class Placement:
    """The shards of the sessions and their servers, as they were when they were last read.

    Args:
        schema: The schema of the tables; its name is quoted.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._shards: list[Shard] = []
        self._firsts: list[int] = []
        self.is_here = False
        """Whether the server that was asked holds a shard."""

    async def read(self, connection: Any) -> None:
        """Read the shards; there are none if sessions have copies on several servers, or another hash."""
        shards = [Shard(*row) for row in await connection.fetch(SELECT_SHARDS, self._schema)]
        firsts = [shard.first_hash for shard in shards]
        hashes = [hash_id.__wrapped__(probe) for probe in PROBES]
        self.is_here = any(shard.is_here for shard in shards)
        has_copies = len(set(firsts)) < len(firsts)
        is_known = await connection.fetchval(SELECT_HASHES, write_texts(PROBES)) == f"{{{','.join(map(str, hashes))}}}"
        self._shards, self._firsts = ([], []) if has_copies or not is_known else (shards, firsts)

    def find_shard(self, session_id: str) -> Shard | None:
        """Return the shard of a session, or `None` if the shards are not known."""
        number = bisect_right(self._firsts, hash_id(session_id))
        return self._shards[number - 1] if number else None

    def find_server(self, session_id: str) -> int | None:
        """Return the server of a session, or `None` if the shards are not known."""
        shard = self.find_shard(session_id)
        return None if shard is None else shard.server


@lru_cache(maxsize=HASHED_IDS)
def hash_id(text: str) -> int:
    """Return PostgreSQL's hash of a text, which is Bob Jenkins' of 2006, as a signed number of 32 bits."""
    data = text.encode()
    state = [0x9E3779B9 + len(data) + 3923095 & _ALL_BITS] * 3
    whole = len(data) // 12 * 12
    for start in range(0, whole, 12):
        state = [
            state[part] + int.from_bytes(data[start + 4 * part : start + 4 * part + 4], "little") & _ALL_BITS
            for part in range(3)
        ]
        for changed, other, bits in _MIX:
            third = 3 - changed - other
            value = state[changed] - state[other] & _ALL_BITS
            turned = state[other]
            state[changed] = value ^ (turned << bits & _ALL_BITS | turned >> 32 - bits)
            state[other] = turned + state[third] & _ALL_BITS
    rest = data[whole:].ljust(12, b"\0")
    # The lowest byte of the last word is left to the length.
    parts = (rest[:4], rest[4:8], b"\0" + rest[8:11])
    state = [word + int.from_bytes(part, "little") & _ALL_BITS for word, part in zip(state, parts, strict=True)]
    for changed, other, bits in _LAST:
        turned = state[other]
        state[changed] = (state[changed] ^ turned) - (turned << bits & _ALL_BITS | turned >> 32 - bits) & _ALL_BITS
    return state[2] - (state[2] >> 31 << 32)
