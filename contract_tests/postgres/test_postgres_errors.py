"""Tests the messages of PostgreSQL failures: one line, with fitting advice."""

from __future__ import annotations

import pytest
from raw_postgres import execute, with_parameter

from flux_memory import BackendUnavailableError, PostgresConversationMemory, SchemaError
from flux_memory.backends.postgres.errors import _ADVICE


def test_no_row_of_the_table_is_hidden_by_one_above_it() -> None:
    """A specific row comes before a general one, or its advice would never be given."""
    seen: tuple[type[BaseException], ...] = ()
    for causes, _, advice in _ADVICE:
        each = causes if isinstance(causes, tuple) else (causes,)
        assert not any(issubclass(cause, seen) for cause in each), advice
        seen += each


@pytest.mark.asyncio
async def test_no_host_has_the_demanded_role(flux_memory_postgres_dsn: str) -> None:
    """No connection was lost: the hosts have another role than the DSN demands."""
    dsn = with_parameter(flux_memory_postgres_dsn, "target_session_attrs=standby")
    async with PostgresConversationMemory(dsn, timeout=1) as memory:
        with pytest.raises(BackendUnavailableError, match="matches target_session_attrs"):
            await memory.count_sessions()


@pytest.mark.asyncio
async def test_a_message_is_one_line_and_the_cause_has_the_rest(flux_empty_database: str) -> None:
    """The server's hint, which may be a wrong guess, does not precede the library's advice."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
        await execute(flux_empty_database, "ALTER TABLE session_details RENAME title TO titles")
        with pytest.raises(SchemaError, match="the tables were changed by hand") as caught:
            await memory.get_sessions()
    assert "\n" not in str(caught.value)
    assert getattr(caught.value.__cause__, "hint", None)
