"""Runs the contract on SQLite, and tests damage that only raw access to the file can cause."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from shutil import copy
from typing import Any, Final

import pytest
from bound_stores import Corrupt, ReadRaw, make_sqlite_corrupter, make_sqlite_reader, run_async_clause
from outage_stores import make_lock_outages, make_sqlite_locks

from flux_memory import ConversationMemory, NewMessage
from flux_memory.testkit import ALL, Capability, MemoryContract
from flux_memory.testkit.contract.hooks import HoldLocks
from flux_memory.testkit.contract.outages import Outage
from flux_memory.testkit.contract.under_test import StoreUnderTest
from flux_memory.testkit.verdicts import BindingFault, Unverified

DAMAGES: Final = {
    "bad JSON": "UPDATE messages SET metadata = '{' WHERE session_id = ? AND id = ?",
    "JSON of another kind": "UPDATE messages SET metadata = '[]' WHERE session_id = ? AND id = ?",
    "bad UTF-8 in JSON": "UPDATE messages SET metadata = CAST(x'7bff7d' AS TEXT) WHERE session_id = ? AND id = ?",
    "bad UTF-8 in a role": "UPDATE messages SET role = CAST(x'c3' AS TEXT) WHERE session_id = ? AND id = ?",
    "bad UTF-8": "UPDATE messages SET content = CAST(x'ff80' AS TEXT) WHERE session_id = ? AND id = ?",
    "a blob": "UPDATE messages SET content = x'00' WHERE session_id = ? AND id = ?",
    "no time": "UPDATE messages SET created_at = 'soon' WHERE session_id = ? AND id = ?",
    "a time out of range": "UPDATE messages SET created_at = '99999-01-01T00:00:00' WHERE session_id = ? AND id = ?",
}


@pytest.fixture(scope="module")
def created_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the library's tables: a copy takes less time than most clauses, and a new file more."""
    path = tmp_path_factory.mktemp("created") / "chat.db"

    async def create() -> None:
        async with ConversationMemory(path) as memory:
            assert await memory.count_sessions() == 0

    asyncio.run(create())
    return path


class TestSQLite(MemoryContract):
    backend = "SQLite"
    backend_version = f"flux-memory {version('flux-memory')}"
    capabilities = ALL & ~Capability.NETWORKED

    @pytest.fixture
    def memory_factory(self, path: Path, created_file: Path) -> Callable[[], ConversationMemory]:
        copy(created_file, path)
        return lambda: ConversationMemory(path)

    @pytest.fixture
    def fresh_memory_factory(self, tmp_path: Path) -> Callable[[], ConversationMemory]:
        return lambda: ConversationMemory(tmp_path / "fresh.db")

    @pytest.fixture
    def outages(self, path: Path) -> Sequence[Outage]:
        return make_lock_outages(path)

    @pytest.fixture
    def hold_locks(self, path: Path) -> HoldLocks:
        return make_sqlite_locks(path)

    @pytest.fixture
    def corrupt_message(self, path: Path) -> Corrupt:
        return make_sqlite_corrupter(path, DAMAGES["bad JSON"])

    @pytest.fixture
    def read_raw(self, path: Path) -> ReadRaw:
        return make_sqlite_reader(path)


@pytest.mark.asyncio
@pytest.mark.parametrize("sql", DAMAGES.values(), ids=DAMAGES)
async def test_every_kind_of_damage_stays_in_its_row(tmp_path: Path, sql: str) -> None:
    """A damaged row of any kind raises an error that names it, and the others stay readable."""
    path = tmp_path / "chat.db"
    store = StoreUnderTest(lambda: ConversationMemory(path), corrupt_message=make_sqlite_corrupter(path, sql))
    await run_async_clause("FM-LIF-011", store)


class Encoding(ConversationMemory):
    """Stores text in base64, as a backend that encrypts does."""

    async def add_message(self, session_id: str, role: str, content: str, *args: Any, **kwargs: Any) -> str:
        return await super().add_message(session_id, role, encode(content), *args, **kwargs)

    async def add_messages(self, session_id: str, messages: Iterable[NewMessage]) -> list[str]:
        encoded: list[NewMessage] = [{**message, "content": encode(message["content"])} for message in messages]
        return await super().add_messages(session_id, encoded)


def encode(text: str) -> str:
    return b64encode(text.encode()).decode()


@pytest.mark.asyncio
async def test_an_encoded_text_is_compared_as_its_binding_decodes_it(path: Path) -> None:
    """A backend may store text in any form: `read_raw` decodes it, and may leave out the role."""
    plain = make_sqlite_reader(path)

    async def read(session_id: str, message_id: str) -> dict[str, Any] | None:
        stored = await plain(session_id, message_id)
        return stored and {"content": b64decode(stored["content"]).decode()}

    await run_async_clause("FM-TXT-030", StoreUnderTest(lambda: Encoding(path), read_raw=read))
    with pytest.raises(AssertionError, match="the store holds another content"):
        await run_async_clause("FM-TXT-030", StoreUnderTest(lambda: Encoding(path), read_raw=plain))


@pytest.mark.asyncio
async def test_a_message_that_is_not_in_the_store_fails(path: Path) -> None:
    """An acknowledged message that another client does not find was not stored."""

    async def read(session_id: str, message_id: str) -> None:
        return None

    with pytest.raises(pytest.fail.Exception, match="read_raw does not find the message"):
        await run_async_clause("FM-TXT-030", StoreUnderTest(lambda: ConversationMemory(path), read_raw=read))


@pytest.mark.asyncio
@pytest.mark.parametrize("clause_id", ["FM-TXT-030", "FM-TXT-031"])
async def test_a_reader_that_gives_nothing_to_compare_verifies_nothing(path: Path, clause_id: str) -> None:
    """A misspelt key, such as `contents`, would otherwise compare nothing and pass."""

    async def read(session_id: str, message_id: str) -> dict[str, Any]:
        return {"contents": "text"}

    with pytest.raises(Unverified, match=r"read_raw returned 'contents' of a message; return its '(content|meta)"):
        await run_async_clause(clause_id, StoreUnderTest(lambda: ConversationMemory(path), read_raw=read))


@pytest.mark.asyncio
async def test_a_reader_that_gives_a_row_is_at_fault(path: Path) -> None:
    """The memory broke no promise."""

    async def read(session_id: str, message_id: str) -> Any:
        return ("user", "text")

    with pytest.raises(BindingFault, match="read_raw returned a tuple, not a mapping"):
        await run_async_clause("FM-TXT-030", StoreUnderTest(lambda: ConversationMemory(path), read_raw=read))
