"""Runs the contract on published stores through their own APIs; each claims what its documentation offers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import google_adk
import langchain
import openai_agents
import pytest

from flux_memory.testkit import MemoryContract

# Resources that a peer leaves open are its own matter; the clauses about leaks report them.
pytestmark = pytest.mark.filterwarnings("ignore")


class TestSQLiteSession(MemoryContract):
    backend = "openai-agents SQLiteSession"
    backend_version = version("openai-agents")
    capabilities = openai_agents.CAPABILITIES

    @pytest.fixture
    def memory_factory(self, tmp_path: Path) -> Callable[[], openai_agents.SQLite]:
        return lambda: openai_agents.SQLite(tmp_path / "chat.db")


class TestSQLAlchemySession(MemoryContract):
    backend = "openai-agents SQLAlchemySession"
    backend_version = version("openai-agents")
    capabilities = openai_agents.CAPABILITIES

    @pytest.fixture
    def memory_factory(self, flux_empty_database: str) -> Callable[[], openai_agents.SQLAlchemy]:
        return lambda: openai_agents.SQLAlchemy(flux_empty_database)


class TestPostgresChatMessageHistory(MemoryContract):
    backend = "langchain-postgres PostgresChatMessageHistory"
    backend_version = version("langchain-postgres")
    capabilities = langchain.CAPABILITIES

    @pytest.fixture
    def memory_factory(self, flux_empty_database: str) -> Callable[[], langchain.LangChain]:
        return lambda: langchain.LangChain(flux_empty_database)


class TestDatabaseSessionService(MemoryContract):
    backend = "google-adk DatabaseSessionService"
    backend_version = version("google-adk")
    capabilities = google_adk.CAPABILITIES

    @pytest.fixture
    def memory_factory(self, flux_empty_database: str) -> Callable[[], google_adk.ADK]:
        return lambda: google_adk.ADK(flux_empty_database)
