"""Tests the state machine: it accepts correct memories, finds broken ones, and prints a test that fails on them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bound_stores import make_reference_factory
from limited_memories import SMALL_ID_LENGTH, limited_factory

from flux_memory import ConversationMemory, Memory
from flux_memory.testkit import ALL, Capability, ReferenceMemory, ReferenceStore
from flux_memory.testkit.contract.model.answers import argument_of, difference
from flux_memory.testkit.contract.model.calls import (
    Answer,
    Answered,
    CancelPoint,
    CutOff,
    HangError,
    IdPlaceholder,
    ModelCall,
    Raised,
    Returned,
    at_once,
    resolved,
)
from flux_memory.testkit.contract.model.exploration import FAST, Profile, explore
from flux_memory.testkit.contract.model.findings import Finding
from flux_memory.testkit.contract.model.reduce_to_claims import NEEDED
from flux_memory.testkit.contract.model.states import State, explain
from flux_memory.testkit.mutants import MUTANTS, broken

# A broken memory may leave handles open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_leaks() -> Iterator[None]:
    """Collect leaked handles here, so that their warnings do not fail another test."""
    yield
    gc.collect()


QUICK = Profile(examples=30, steps=25, seed=2, shrinking=0.4)
SHORT = replace(QUICK, shrinking=1.5)
"""For a finding that a test reads: the others only have to be found."""


def find_with_some_seed(
    factory: Callable[[], Memory], claims: Capability = ALL, *, profile: Profile = QUICK, having: str = ""
) -> Finding:
    """Return the finding of the first seed whose code has this; Hypothesis's examples depend on the loaded modules."""
    for seed in range(2, 12):
        finding = explore(factory, replace(profile, seed=seed), claims)
        if finding is not None and having in finding.code:
            return finding
    pytest.fail("no seed found the break")


FOUND = (
    "BackwardsOnceRenamed",
    "NewestFirst",
    "BeforeIsInclusive",
    "RetriesDuplicate",
    "RetriesBump",
    "BatchIsALoop",
    "LargeFloatsBecomeInts",
    "InsertOrIgnore",
    "DeletesTheSessionOnly",
    "ReadsBump",
    "HandlesWriteBackWhatTheyRead",
    "DriverErrorsEscape",
)
"""One mutant of each kind that calls can reveal, including races and cancellations."""


def test_a_sound_memory_has_no_findings() -> None:
    """The reference model's answers are explained from the first to the last."""
    assert explore(make_reference_factory(ReferenceMemory), FAST) is None


@pytest.mark.parametrize("name", FOUND)
def test_a_break_is_found(name: str) -> None:
    """Each kind of mutant is found without the clause that is named for it."""
    assert name in MUTANTS
    finding = find_with_some_seed(make_reference_factory(broken(name, ReferenceMemory)))
    compile(finding.code, "reproduction", "exec")


LITTLE = {
    "titles": ALL & ~Capability.TITLES,
    "retries": ALL & ~Capability.IDEMPOTENT_IDS,
    "one handle": ALL & ~(Capability.SEVERAL_HANDLES | Capability.SEVERAL_PROCESSES),
    "no disk": ALL & ~Capability.DURABLE,
    "the least": NEEDED,
}


@pytest.mark.parametrize("name", LITTLE)
def test_a_memory_that_claims_little_is_asked_for_no_more(name: str, tmp_path: Path) -> None:
    """Neither a refusal nor a missing capability is a finding."""
    assert (
        explore(limited_factory(~LITTLE[name], tmp_path), replace(FAST, examples=12), LITTLE[name], SMALL_ID_LENGTH)
        is None
    )


@pytest.mark.parametrize("name", ["NewestFirst", "DeletesTheSessionOnly", "ReadsBump", "DriverErrorsEscape"])
def test_a_break_is_found_in_a_memory_that_claims_little(name: str) -> None:
    """Most backends lack some capability; the model still explores the rest, such as order."""
    finding = find_with_some_seed(make_reference_factory(broken(name, ReferenceMemory)), NEEDED)
    for other in ("add_messages", "title", "metadata=", "user_id=", "message_id=", "before=", "memory_2"):
        assert other not in finding.code, finding.code


class Doubles(ConversationMemory):
    """Reports one message too many, from the third on."""

    async def get_session(self, session_id: str) -> Any:
        record = await super().get_session(session_id)
        return record and {**record, "message_count": record["message_count"] // 2 * 2}


def test_a_reproduction_is_a_test(tmp_path: Path) -> None:
    """The printed code fails on the broken memory and passes on a correct one."""
    # A finding that is not shortened in time can be one of concurrent calls, which has no assertion.
    finding = find_with_some_seed(
        lambda: Doubles(tmp_path / "broken.db"), profile=replace(QUICK, shrinking=10), having="    assert "
    )
    names: dict[str, Any] = {}
    exec(compile(finding.code, "reproduction", "exec"), names)
    asyncio.run(names["test_reproduction"](lambda: ConversationMemory(tmp_path / "sound.db")))
    with pytest.raises(AssertionError):
        asyncio.run(names["test_reproduction"](lambda: Doubles(tmp_path / "again.db")))


class Hangs(ReferenceMemory):
    async def update_session_title(self, session_id: str, title: str) -> None:
        await super().update_session_title(session_id, title)
        await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_a_hanging_call_is_a_finding() -> None:
    """A call that never ends is a finding and does not block the run."""
    memory = Hangs(ReferenceStore())
    await memory.create_session(session_id="s")
    hanging = ModelCall("update_session_title", {"session_id": "s", "title": "t"})
    with pytest.raises(HangError, match="update_session_title"):
        await at_once([(memory, ModelCall("count_sessions", {}), None), (memory, hanging, None)], seconds=0.05)
    await memory.close()


@pytest.mark.asyncio
async def test_a_call_is_cancelled_where_it_waits() -> None:
    """A cut call is cancelled at its suspension point, and the others are not."""
    memory = Hangs(ReferenceStore())
    await memory.create_session(session_id="s")
    hanging = ModelCall("update_session_title", {"session_id": "s", "title": "t"})
    answers = await at_once(
        [(memory, hanging, CancelPoint(0, "asleep")), (memory, ModelCall("count_sessions", {}), None)]
    )
    assert answers == [CutOff(), Returned(1)]
    await memory.close()


def answered(method: str, answer: Answer, **arguments: Any) -> Answered:
    return Answered(0, ModelCall(method, arguments), answer)


def possible_states(*groups: Sequence[Answered]) -> list[State]:
    states = [State({})]
    for group in groups:
        states = explain(states, list(group))
    return states


CREATE = answered("create_session", Returned("s"), session_id="s")
COUNT_0, COUNT_1 = answered("count_sessions", Returned(0)), answered("count_sessions", Returned(1))


def test_concurrent_answers_are_explained_by_some_order() -> None:
    """Concurrent calls may take effect in any order that gives their answers, and in no other."""
    assert possible_states([CREATE, COUNT_0])
    assert possible_states([COUNT_1, CREATE])
    assert not possible_states([CREATE], [COUNT_0])
    assert not possible_states([CREATE, COUNT_0, answered("create_session", Returned("s"), session_id="s")])


def test_a_call_that_was_cut_off_takes_effect_once_or_never() -> None:
    """A cancelled write may show at once, later or never, but does not come and go."""
    cut = answered("create_session", CutOff(), session_id="s")
    assert possible_states([cut], [COUNT_0], [COUNT_1])
    assert possible_states([cut], [COUNT_0], [COUNT_0])
    assert not possible_states([cut], [COUNT_1], [COUNT_0])
    assert not possible_states([answered("count_sessions", CutOff())], [COUNT_1])


def test_an_id_generated_twice_is_not_a_retry() -> None:
    """A store that generates a taken id is not explained as one that recognised a retry."""
    add = answered("add_message", Returned("m"), session_id="s", role="user", content="x")
    assert possible_states([CREATE], [add])
    assert not possible_states([CREATE], [add], [add])


def test_answers_are_compared_by_type_value_and_argument() -> None:
    """1, 1.0 and True differ; so do error classes, and errors that do not name the argument."""
    assert difference(Returned({"k": [1]}), Returned({"k": [1]})) is None
    assert (difference(Returned({"k": [1]}), Returned({"k": [1.0]})) or ("",))[0] == "['k'][0]"
    assert difference(Returned(None), Raised(ValueError())) is not None
    memory = ReferenceMemory(ReferenceStore())
    with pytest.raises(ValueError, match="metadata") as caught:
        asyncio.run(memory.add_messages("s", [{"role": "r", "content": "c", "metadata": {"k": float("nan")}}]))
    asyncio.run(memory.close())
    assert argument_of(caught.value) == "messages[0].metadata"
    assert difference(Raised(caught.value), Raised(type(caught.value)("content is wrong"))) is not None
    assert difference(Raised(caught.value), Raised(type(caught.value)("see messages[0].metadata"))) is None


def test_picks_are_ids_that_are_there() -> None:
    """A placeholder becomes the id of an existing session, or of a message of that session."""
    known = {"s": ["m", "n"], "t": []}
    call = ModelCall("get_history", {"session_id": IdPlaceholder("session", 2), "before": IdPlaceholder("message", 1)})
    assert resolved(call, known).arguments == {"session_id": "s", "before": "n"}
    assert resolved(call, {}).arguments == {"session_id": "no session", "before": "no message"}
    batch = ModelCall("add_messages", {"session_id": "t", "messages": [{"message_id": IdPlaceholder("message", 0)}, 7]})
    assert resolved(batch, known).arguments["messages"] == [{"message_id": "no message"}, 7]
