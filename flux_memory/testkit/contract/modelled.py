"""The clause that compares a backend with the reference model, on sequences of calls that Hypothesis generates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.model.reduce_to_claims import NEEDED
from flux_memory.testkit.contract.under_test import StoreUnderTest


class ModelContract(Binding):
    """The promises of calls in any order."""

    @clause(
        "FM-MOD-001",
        promise="For any calls, in any order, concurrent or cancelled part-way, the reference model explains every "
        "answer.",
        impact="Rare combinations of calls lose messages, return wrong answers or hang.",
        needs=NEEDED,
    )
    def test_the_reference_model_explains_everything(self, store: StoreUnderTest) -> None:
        # Hypothesis is slow to import, and only this clause needs it.
        from flux_memory.testkit.contract.model.exploration import FAST, explore, thorough  # noqa: PLC0415

        chosen = thorough() if store.includes("ten minutes of random calls") else FAST
        profile = replace(chosen, call_seconds=store.timeouts.call_seconds)
        if store.seed is not None:
            profile = replace(profile, seed=store.seed)
        store.seeds["model"] = profile.seed
        if finding := explore(store.factory, profile, store.capabilities, store.max_id_length):
            pytest.fail(f"{finding.sentence}\n\nto reproduce:\n\n{finding.code}", pytrace=False)
