"""Clauses on updates that only append messages, on the condition of a revision: a turn that its caller has decided."""

from __future__ import annotations

from typing import Any, Final

import pytest

from flux_memory import ConflictError, SessionNotFoundError
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.corpus import METADATA, TEXTS, same
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, another_handle, contents, gather_outcomes
from flux_memory.testkit.contract.updates import EVERY_PART, fill, state_of

SIZES: Final = (1, 2, 3, 40)
"""Messages of a turn: a question and its answer, tool calls with their results."""
RACERS: Final = 12
ROUNDS: Final = 3
PARTS: Final = ("role", "content", "metadata")


class ConditionalAppendsContract(Binding):
    """The promises of updates with a revision and messages, and no other part."""

    @clause(
        "FM-REV-060",
        promise="An update that only appends messages to a session of an expected revision stores all of them as "
        "given, in order, after those that are there, however many; the rest of the session stays as it is.",
        impact="Of a turn with tool calls one message is stored, or their order is another one.",
        needs=EVERY_PART | Capability.MESSAGE_METADATA,
    )
    async def test_conditional_appends(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        values = list(zip(TEXTS.values(), METADATA.values(), strict=False))

        async def check(size: int) -> None:
            session = await fill(memory)
            await memory.update_session(session, title=f"of {size}", merge_metadata={"size": size})
            before, history = await state_of(memory, session)
            batch: list[Any] = []
            for at in range(size):
                text, metadata = values[at % len(values)]
                batch.append({"role": f"role {at % 3}", "content": text, "metadata": metadata})
                if at % 4 != 3:
                    batch[-1]["message_id"] = f"new {size - at}"
            more: list[Any] = [{"role": "user", "content": f"{at}"} for at in range(size)]
            for append in (batch, more):
                returned = await memory.update_session(session, expected_revision=before["revision"], messages=append)
                new: Any = {key: returned[key] for key in ("updated_at", "revision")}
                expected = {**before, **new, "message_count": before["message_count"] + size}
                assert returned == expected
                after, longer = await state_of(other, session)
                assert after == returned
                assert longer[: len(history)] == history
                assert len(longer) == len(history) + size
                for found, given in zip(longer[len(history) :], append, strict=True):
                    shown = {key: found[key] for key in PARTS}
                    wanted = {"metadata": {}, **given}
                    assert same(shown, {key: wanted[key] for key in PARTS}), f"one of {size}: {found!r:.200}"
                    assert given.get("message_id") in {None, found["id"]}
                    assert found["created_at"] == returned["updated_at"]
                assert returned["revision"] != before["revision"]
                before, history = after, longer

        await together(map(check, SIZES))

    @clause(
        "FM-REV-061",
        promise="A conditional append is made as a whole or not at all: with another revision or an id that is taken "
        "it is a `ConflictError`, and a message that is stored already is not stored again.",
        impact="Half of a turn is stored, and the caller decides anew on a conversation that it has changed itself.",
        needs=EVERY_PART,
    )
    async def test_conditional_appends_as_a_whole(self, store: StoreUnderTest) -> None:
        memory = store.open()
        other = another_handle(store, memory)
        session = await fill(memory)
        old, _ = await state_of(memory, session)
        await memory.update_session(session, title="later")
        before = await state_of(memory, session)
        current = before[0]["revision"]
        x, y, taken = _message("x"), _message("y"), _message("m1", "another")
        refused: list[tuple[str, list[Any]]] = [
            *((old["revision"], batch) for batch in ([x], [x, y], [_stored(0), x])),
            *((current, batch) for batch in ([taken], [taken, x], [x, taken], [x, _stored(0), taken, y])),
            (current, [x, {**x, "content": "twice"}]),
        ]

        async def refuse(expected: str, batch: list[Any]) -> None:
            with pytest.raises(ConflictError):
                await memory.update_session(session, expected_revision=expected, messages=batch)

        await together(refuse(*each) for each in refused)
        assert await state_of(other, session) == before
        for batch in ([x], [x, y]):
            with pytest.raises(SessionNotFoundError):
                await memory.update_session("nowhere", expected_revision=current, messages=batch)
        said = contents(before[1])
        made: list[tuple[list[Any], list[str]]] = [
            ([x, x, y], ["x", "y"]),
            ([_stored(1), _message("z"), y], ["z"]),
            ([_stored(2), _stored(0)], []),
            ([_stored(1)], []),
            ([_message("last")], ["last"]),
        ]
        for batch, new in made:
            said += new
            current = (await memory.update_session(session, expected_revision=current, messages=batch))["revision"]
            record, history = await state_of(other, session)
            assert (record["revision"], record["message_count"], contents(history)) == (current, len(said), said)

    @clause(
        "FM-REV-062",
        promise="Of concurrent appends of several messages that expect the same revision exactly one is made, and its "
        "messages follow one another.",
        impact="Two workers answer the same question, and their tool calls are mixed.",
        needs=EVERY_PART,
    )
    async def test_racing_conditional_appends(self, store: StoreUnderTest) -> None:
        handles = [first := store.open(), another_handle(store, first)]
        session = await handles[0].create_session()
        said: list[str] = []
        for turn in range(ROUNDS):
            record, _ = await state_of(handles[0], session)
            batches = [
                [_message(f"{turn} {number} {at}") for at in range((2, 3, 1)[number % 3])] for number in range(RACERS)
            ]
            outcomes = await gather_outcomes(
                *(
                    handles[number % 2].update_session(session, expected_revision=record["revision"], messages=batch)
                    for number, batch in enumerate(batches)
                )
            )
            made = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, dict)]
            assert len(made) == 1, outcomes
            assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == RACERS - 1, outcomes
            said += [message["content"] for message in batches[made[0]]]
            after, history = await state_of(handles[1], session)
            assert after == outcomes[made[0]]
            assert (after["message_count"], contents(history)) == (len(said), said)


def _message(message_id: str, content: str = "") -> Any:
    return {"role": "user", "content": content or message_id, "message_id": message_id}


def _stored(at: int) -> Any:
    return _message(f"m{at}", f"{at}")
