"""Clauses on ids of other systems: up to 255 characters, of any shape, in each place that takes an id."""

from __future__ import annotations

from typing import Any, Final

from flux_memory import Memory
from flux_memory.testkit.capabilities import Capability
from flux_memory.testkit.clauses import clause
from flux_memory.testkit.contract.binding import Binding
from flux_memory.testkit.contract.pace import together
from flux_memory.testkit.contract.under_test import StoreUnderTest, contents

LENGTHS: Final = {"x": (1, 36, 37, 80, 254, 255), "\u20ac": (37, 255), "\U0001f44d": (80, 255)}
"""Numbers of characters, around the limits of stores; by the character."""
SHAPES: Final = (
    "19:6f0b2c9a1d3e4b7fa8c5d2e1f0a9b8c7@thread.v2",
    "19:meeting_ZDk3YTc0MmItMzE5Yy00ODk3LWI2ZmUtY2U5MDcxYmM1ZTNj@thread.v2;messageid=1700000000000",
    "a:1qhNLqpUtmuI6U35gzjsJn7uRnCkW8NiZALHfN8AMxdbprS1uta2aT_jytfIlsZR3UZeg3TsIONKInBHsdjzj3PtfHuhkxxvS2",
    "!OEKYBzTbnYwQXkgGbA:matrix.example.org",
    "!rOoM:matrix.example.org",
    "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg",
    "1700000000.000100",
    "1700000000.0001",
    "C024BE91L/1700000000.000100",
    "msg_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d41",
    "msg_67CCD3ACC8D48190A77525DC6DE64B4104BECB25C45C1D41",
    "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
    "call_9WkRkzsV5Vq0x0JjZ6uXrY2B",
    "run--5c0e6a3e-6a0f-4d0f-9d4e-1b8a7d6c5e4f-0",
    "lc_run--019a2b3c-4d5e-7f60-8192-a3b4c5d6e7f8",
    "019a2b3c-4d5e-7f60-8192-a3b4c5d6e7f8",
    "019A2B3C-4D5E-7F60-8192-A3B4C5D6E7F8",
    "{019a2b3c-4d5e-7f60-8192-a3b4c5d6e7f8}",
    "019a2b3c4d5e7f608192a3b4c5d6e7f8",
    "e-8f14e45f-ceea-467f-a8a1-6b7f0b1c2d3e",
    "projects/123/locations/us-central1/reasoningEngines/456/sessions/789",
    "projects/123/locations/us-central1/reasoningEngines/456/sessions/0789",
    "https://example.org/chat?thread=1&user=a%20b#m-7",
    "https://example.org/chat?thread=1&user=a b#m-7",
    "urn:uuid:019a2b3c-4d5e-7f60-8192-a3b4c5d6e7f8",
    "wa:+4915112345678",
    "user@example.org/2026-11-30T12:00:00+00:00",
    "arn:aws:bedrock:eu-central-1:123456789012:session/abc",
    "0",
    "00",
    "1e5",
    "null",
)
"""Ids as Teams, Matrix, Slack, OpenAI, LangChain, ADK and others make them; some differ in one character."""


class LongIdsContract(Binding):
    """The promises to callers who bring their ids from another system."""

    @clause(
        "FM-LIM-030",
        promise="Ids of 1 to 255 characters, or as many as the binding says, work in each call; those that differ in "
        "the last character are different.",
        impact="Conversations of a chat platform share their history: their ids begin with the same 36 characters.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.CURSOR
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.TITLES,
    )
    async def test_long_ids_work_everywhere(self, store: StoreUnderTest) -> None:
        memory = store.open()
        longest = store.max_id_length
        ids = [
            character * (length - 1) + last
            for character, lengths in LENGTHS.items()
            for length in sorted({min(length, longest) for length in (*lengths, longest - 1)})
            for last in "aA"
        ]
        await _use_everywhere(store, memory, ids)

    @clause(
        "FM-LIM-031",
        promise="An id of any shape is kept as it is: with colons, slashes, dots, spaces, percent signs, digits only, "
        "or as a UUID in any notation.",
        impact="The ids of a chat platform, or of a model provider, cannot be used, or two of them become one.",
        needs=Capability.BATCH
        | Capability.MESSAGE_IDS
        | Capability.IDEMPOTENT_IDS
        | Capability.CURSOR
        | Capability.SESSIONS
        | Capability.SESSION_IDS
        | Capability.TITLES,
    )
    async def test_ids_of_other_systems(self, store: StoreUnderTest) -> None:
        memory = store.open()
        await _use_everywhere(store, memory, [one for one in SHAPES if len(one) <= store.max_id_length])


async def _use_everywhere(store: StoreUnderTest, memory: Memory, ids: list[str]) -> None:
    """Use each id for a session and for its messages, and check that each call finds its own."""

    async def make(at: int, session: str) -> None:
        assert await memory.create_session(f"title {at}", session_id=session) == session
        # In each session the same ids, in another order.
        names = ids[at:] + ids[:at]
        assert await memory.add_message(session, "user", f"{at} 0", message_id=names[0]) == names[0]
        batch: list[Any] = [
            {"role": "r", "content": f"{at} {number}", "message_id": name}
            for number, name in enumerate(names)
            if number in {1, 2, len(names) - 1}
        ]
        assert await memory.add_messages(session, batch) == [one["message_id"] for one in batch]

    async def check(at: int, session: str) -> None:
        names = [(ids[at:] + ids[:at])[number] for number in (0, 1, 2, -1)]
        said = [f"{at} {number}" for number in (0, 1, 2, len(ids) - 1)]
        rows = await memory.get_history(session)
        assert ([row["id"] for row in rows], contents(rows)) == (names, said)
        record = await memory.get_session(session)
        assert record is not None
        assert (record["id"], record["title"], record["message_count"]) == (session, f"title {at}", 4)
        # A retry is recognized by the whole id.
        assert await memory.add_message(session, "user", f"{at} 0", message_id=names[0]) == names[0]
        await memory.update_session_title(session, f"renamed {at}")

        async def read_beside(number: int) -> None:
            assert contents(await memory.get_history(session, before=names[number])) == said[:number]
            if Capability.FORWARD_CURSOR in store.capabilities:
                assert contents(await memory.get_history(session, after=names[number])) == said[number + 1 :]

        await together(map(read_beside, (1, 3)))
        if Capability.MESSAGE_LOOKUP in store.capabilities:
            assert await together(memory.get_message(session, name) for name in names) == rows

    await together(make(at, session) for at, session in enumerate(ids))
    await together(check(at, session) for at, session in enumerate(ids))
    listed = await memory.get_sessions(None)
    assert sorted(row["id"] for row in listed) == sorted(ids)
    assert {row["id"]: row["title"] for row in listed} == {one: f"renamed {at}" for at, one in enumerate(ids)}
    if Capability.LIST_CURSOR in store.capabilities:
        for at in (0, len(ids) // 2, len(ids) - 2):
            assert await memory.get_sessions(None, before=listed[at]) == listed[at + 1 :]
    await _remove_everywhere(store, memory, ids)


async def _remove_everywhere(store: StoreUnderTest, memory: Memory, ids: list[str]) -> None:
    """Delete every other session, copy its neighbour to its id, and pop a message of each session that is left."""
    doomed, kept = ids[::2], ids[1::2]
    await together(map(memory.delete_session, doomed))
    if Capability.FORK in store.capabilities:
        for at, name in enumerate(doomed[: len(kept)]):
            through = (await memory.get_history(kept[at]))[at % 4]["id"]
            assert await memory.fork_session(kept[at], through=through, new_session_id=name) == name
            assert await memory.get_history(name) == (await memory.get_history(kept[at]))[: at % 4 + 1]
            await memory.delete_session(name)
    if Capability.POP in store.capabilities:
        popped = [await memory.pop_message(name) for name in kept]
        places = [ids.index(name) for name in kept]
        assert [row and row["content"] for row in popped] == [f"{at} {len(ids) - 1}" for at in places]
    assert sorted(row["id"] for row in await memory.get_sessions(None)) == sorted(kept)
