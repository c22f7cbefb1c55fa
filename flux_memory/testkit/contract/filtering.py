"""Clauses on metadata filters at any depth: types, spelling, nesting and numbers."""

from __future__ import annotations

import asyncio
from typing import Final

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.filters import DIGITS, NESTING, SPELLINGS, TYPES, Cases
from flux_memory.testkit.contract.under_test import StoreUnderTest

NEEDED: Final = Capability.SESSIONS | Capability.SESSION_METADATA | Capability.METADATA_FILTER


class FilteringContract(Binding):
    """The promises of metadata filters on values that look alike."""

    @clause(
        "FM-LST-015",
        promise="A metadata filter takes no value for one of another type, at any depth: null, a missing key, "
        "booleans, numbers, and texts that look like them or like JSON differ.",
        impact="A filter returns sessions whose setting is missing, or was stored as text.",
        needs=NEEDED,
    )
    async def test_filter_by_types(self, store: StoreUnderTest) -> None:
        await _finds(store.open(), TYPES)

    @clause(
        "FM-LST-016",
        promise="A metadata filter compares keys and texts byte for byte, at any depth; paths, patterns, operators and "
        "the names of a record's fields have no meaning in it.",
        impact="A value from a request body becomes a query, and returns other users' sessions.",
        needs=NEEDED,
    )
    async def test_filter_by_spelling(self, store: StoreUnderTest) -> None:
        await _finds(store.open(), SPELLINGS)

    @clause(
        "FM-LST-017",
        promise="A metadata filter matches level by level: an object does not match an array, an index is not a key, "
        "and an empty object or array matches any of its kind.",
        impact="A filter by a nested setting finds a session that has the value in another place.",
        needs=NEEDED,
    )
    async def test_filter_by_nesting(self, store: StoreUnderTest) -> None:
        await _finds(store.open(), NESTING)

    @clause(
        "FM-LST-018",
        promise="A metadata filter compares numbers by their exact value at any depth, and at the limits of doubles "
        "and of 64 bits.",
        impact="A filter by a nested id finds the session with the next id.",
        needs=NEEDED,
    )
    async def test_filter_by_digits(self, store: StoreUnderTest) -> None:
        await _finds(store.open(), DIGITS)


async def _finds(memory: Memory, cases: Cases) -> None:
    sessions = await asyncio.gather(*(memory.create_session(metadata=metadata) for metadata, _, _ in cases))
    answers = await asyncio.gather(*(memory.get_sessions(None, metadata=wanted) for _, wanted, _ in cases))
    for session, answer, (metadata, wanted, expected) in zip(sessions, answers, cases, strict=True):
        verb = "does not contain" if expected else "contains"
        found = any(row["id"] == session for row in answer)
        assert found is expected, f"according to the filter, {metadata} {verb} {wanted}"
