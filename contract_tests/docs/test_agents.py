"""Runs the adapters of the guide to agent frameworks as printed, with the frameworks' own objects, on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from recipe_environment import PROJECT, find_recipe_files, make_recipe_environment, run_in_recipe

PAGE: Final = PROJECT / "docs/agents.md"

OPENAI_AGENTS: Final = r"""
import asyncio

from agents import Agent, ModelResponse, Runner, Usage, function_tool
from agents.memory.session import Session
from agents.models.interface import Model
from agents_session import MemorySession
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from flux_memory import ConflictError, create_memory

RAW = "raw \x00 and \ud800"


class Scripted(Model):
    calls = 0

    async def get_response(self, system_instructions, input, *_, **__):
        self.calls += 1
        if self.calls % 2:
            kind = dict(type="function_call", id=f"fc_{self.calls}")
            output = ResponseFunctionToolCall(arguments='{"of": 2}', call_id=f"call_{self.calls}", name="look", **kind)
        else:
            text = ResponseOutputText(text=f"saw {len(input)}: {RAW}", type="output_text", annotations=[])
            kind = dict(type="message", role="assistant", status="completed")
            output = ResponseOutputMessage(id=f"msg_{self.calls}", content=[text], **kind)
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise AssertionError("no run streams")


@function_tool
def look(of: int) -> str:
    "Looks."
    return RAW


async def main():
    async with create_memory() as memory:
        session = MemorySession(memory, "trip", "ann")
        assert isinstance(session, Session)
        assert (await session.get_items(), await session.pop_item()) == ([], None)
        agent = Agent(name="guide", model=Scripted(), tools=[look])
        said = [(await Runner.run(agent, text, session=session)).final_output for text in ("one", "two")]
        assert said == [f"saw 3: {RAW}", f"saw 7: {RAW}"], said
        items = await session.get_items()
        assert [item.get("type") for item in items[1:4]] == ["function_call", "function_call_output", "message"], items
        assert items[2]["output"] == RAW
        assert await session.get_items(3) == items[-3:]
        assert await session.pop_item() == items[-1]
        assert await session.get_items() == items[:-1]
        try:
            await MemorySession(memory, "trip", "bob").add_items(items[:1])
        except ConflictError:
            await session.clear_session()
            assert await session.get_items() == []
            print("done")


asyncio.run(main())
"""
PYDANTIC_AI: Final = """
import asyncio

from conversations import MemoryConversationStore
from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationConflict
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel

from flux_memory import create_memory

agent = Agent(FunctionModel(lambda messages, info: ModelResponse(parts=[TextPart(f"saw {len(messages)}")])))


async def turn(store, conversation, text):
    result = await agent.run(text, conversation=conversation)
    try:
        return len(await store.save(result, scope="ann"))
    except ConversationConflict:
        return 0


async def count(store, conversation_id, **options):
    conversation = await store.load(conversation_id, **options)
    return None if conversation is None else len(conversation.messages)


async def main():
    async with create_memory() as memory:
        store = MemoryConversationStore(memory)
        new = [Conversation(conversation_id="trip") for _ in range(6)]
        assert sorted(await asyncio.gather(*(turn(store, each, "first") for each in new))) == [0] * 5 + [2]
        loaded = [await store.load("trip") for _ in range(6)]
        assert sorted(await asyncio.gather(*(turn(store, each, "next") for each in loaded))) == [0] * 5 + [2]

        async def insist(text):
            own = MemoryConversationStore(memory)
            while not await turn(own, await own.load("trip"), text):
                pass

        await asyncio.gather(*(insist(f"turn {number}") for number in range(5)))
        assert (await count(store, "trip"), await count(store, "trip", limit=3)) == (14, 3)
        assert (await count(store, "trip", scope="ann"), await count(store, "trip", scope="bob")) == (14, None)
        entries = await store.load_entries("trip")
        assert [entry.parent_id for entry in entries] == [None, *(entry.id for entry in entries[:-1])]

        fork = await store.fork("trip", at=4, new_conversation_id="detour")
        assert await turn(store, fork, "elsewhere") == 2
        try:
            await store.fork("trip", new_conversation_id="detour")
            raise SystemExit("a fork replaced a conversation")
        except ConversationConflict:
            pass
        left = await store.load("trip")
        branch = await store.branch("trip", at=4, expected_revision=left.revision)
        assert await turn(store, branch, "again") == 2
        record = await store.read_record("trip")
        assert await count(store, "trip") == 6
        back = await store.branch("trip", from_entry=record.branches[0], expected_revision=record.revision)
        assert len(back.messages) == 14
        assert [each.conversation_id for each in await store.list_conversations(scope="ann")] == ["trip", "detour"]
        assert await store.list_conversations(scope="bob") == []
        assert len(await store.list_conversations(limit=1)) == 1
        await store.delete("trip", scope="bob")
        await store.delete("trip")
        assert (await count(store, "trip"), await count(store, "detour")) == (None, 6)
        assert await turn(store, left, "too late") == 0
        print("done")


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def agents_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and the frameworks."""
    return make_recipe_environment(tmp_path_factory, "application")


@pytest.fixture(params=["sqlite", "postgres"])
def store_variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of an empty store."""
    if request.param == "sqlite":
        return {"DATABASE_BACKEND": "sqlite"}
    return {"DATABASE_BACKEND": "postgres", "POSTGRES_DSN": request.getfixturevalue("flux_empty_database")}


@pytest.mark.parametrize(
    ("heading", "driver"), [("OpenAI Agents", OPENAI_AGENTS), ("Pydantic AI", PYDANTIC_AI)], ids=["openai", "pydantic"]
)
def test_an_adapter_serves_the_framework(
    agents_python: str, tmp_path: Path, store_variables: dict[str, str], heading: str, driver: str
) -> None:
    """Promise: nothing that a framework saves is lost or reordered, and of writers that compete one wins."""
    for name, content in find_recipe_files(PAGE, heading).items():
        (tmp_path / name).write_text(content)
    (tmp_path / "driver.py").write_text(driver)
    done = run_in_recipe(agents_python, "driver.py", cwd=tmp_path, OPENAI_AGENTS_DISABLE_TRACING="1", **store_variables)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stdout + done.stderr
