"""Generates the stored messages and the calls from a seed, the same for every contender."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import cycle
from typing import Any, Final, NamedTuple

HISTORY_LIMIT: Final = 50
LONG_SESSIONS: Final = 5
"""Number of sessions with a long history."""
LONG_HISTORY: Final = 1_000
"""Messages of each long session."""
SHORT_SESSIONS: Final = {"postgres": 1_000, "sqlite": 100}
"""Number of sessions for adds: enough that adds rarely collide, and few enough for the peers' open files."""
_FIRST_SHORT: Final = 1_000_000_000_000_000_000
_FIRST_LONG: Final = 2_000_000_000_000_000_000
_CONTENT_CHARACTERS: Final = 500
_POOL_SAMPLES: Final = 512
_DRAWN_CALLS: Final = 8_192
_READ_SHARE: Final = 0.8
_WORDS: Final = (
    "the", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "they", "at",
    "one", "have", "this", "from", "by", "hot", "some", "what", "there", "out", "other", "were", "all", "your", "when",
)  # fmt: skip


class Sample(NamedTuple):
    """One message: content of about 500 characters, metadata of about 150 bytes."""

    role: str
    content: str
    metadata: dict[str, Any]


class MeasuredCall(NamedTuple):
    """One call of a measurement."""

    read: bool
    session: str
    sample: Sample


def short_session(number: int) -> str:
    """Return the id of a session for adds; its digits fit a pgbench variable."""
    return str(_FIRST_SHORT + number)


def long_session(number: int) -> str:
    """Return the id of a session with a long history."""
    return str(_FIRST_LONG + number)


def samples(seed: int | str, count: int = _POOL_SAMPLES) -> list[Sample]:
    """Return random messages."""
    rng = random.Random(seed)
    return [_sample(rng, number) for number in range(count)]


def picks(engine: str, work: str, seed: int | str) -> Iterator[MeasuredCall]:
    """Return an endless iterator over the calls of a measurement.

    Args:
        engine: `postgres` or `sqlite`.
        work: `add`, `hot` (adds to one session), `history`, `mix` (four reads of a history for each add) or `list`.
        seed: The seed of the random numbers.
    """
    rng = random.Random(seed)
    pool = samples(seed)
    share = {"add": 0.0, "hot": 0.0, "mix": _READ_SHARE}.get(work, 1.0)
    session, sessions = {"add": (short_session, SHORT_SESSIONS[engine]), "hot": (short_session, 1)}.get(
        work, (long_session, LONG_SESSIONS)
    )
    return cycle(
        [
            MeasuredCall(rng.random() < share, session(rng.randrange(sessions)), rng.choice(pool))
            for _ in range(_DRAWN_CALLS)
        ]
    )


def as_json(sample: Sample) -> str:
    """Return a sample's metadata as text."""
    return json.dumps(sample.metadata)


def _sample(rng: random.Random, number: int) -> Sample:
    text = " ".join(rng.choices(_WORDS, k=_CONTENT_CHARACTERS // 3))[:_CONTENT_CHARACTERS]
    metadata = {
        "model": "gpt-4o-mini",
        "tokens": rng.randrange(4_000),
        "latency_ms": round(rng.random() * 3_000, 2),
        "sources": [f"doc-{rng.randrange(10_000)}", f"doc-{rng.randrange(10_000)}"],
        "trace_id": f"{rng.getrandbits(64):016x}",
        "finish_reason": "stop",
    }
    return Sample("assistant" if number % 2 else "user", text, metadata)
