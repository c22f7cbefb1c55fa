"""Clauses on metadata filters and values that look alike: of other types, in another spelling, of unusual types."""

from __future__ import annotations

import asyncio
from typing import Final

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import UNUSUAL_MAPPINGS
from flux_memory.testkit.contract.filters import SPELLINGS, TYPES, Cases
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
        promise="A metadata filter takes the same types as metadata: tuples, mappings and subclasses of `str`, `int` "
        "and `float`.",
        impact="A filter by an enum member finds nothing, although the session was created with it.",
        needs=NEEDED,
    )
    async def test_filter_by_unusual_types(self, store: StoreUnderTest) -> None:
        memory = store.open()
        for name, (given, plain) in UNUSUAL_MAPPINGS.items():
            session = await memory.create_session(metadata={"case": name, **plain})
            for wanted in (given, plain):
                found = [row["id"] for row in await memory.get_sessions(metadata={"case": name, **wanted})]
                assert found == [session], f"the filter does not find its session: {name}"


async def _finds(memory: Memory, cases: Cases) -> None:
    sessions = await asyncio.gather(*(memory.create_session(metadata=metadata) for metadata, _, _ in cases))
    answers = await asyncio.gather(*(memory.get_sessions(None, metadata=wanted) for _, wanted, _ in cases))
    for session, answer, (metadata, wanted, expected) in zip(sessions, answers, cases, strict=True):
        verb = "does not contain" if expected else "contains"
        found = any(row["id"] == session for row in answer)
        assert found is expected, f"according to the filter, {metadata} {verb} {wanted}"
