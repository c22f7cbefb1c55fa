"""What goes wrong on PostgreSQL is said in one line, with advice that fits."""

from __future__ import annotations

import pytest
from raw_postgres import execute, with_parameter

from flux_memory import BackendUnavailableError, PostgresConversationMemory, SchemaError
from flux_memory.backends.postgres.errors import _ADVICE


def test_no_row_of_the_table_is_hidden_by_one_above_it() -> None:
    """The special stands before the general, or its advice is never given."""
    seen: tuple[type[BaseException], ...] = ()
    for causes, _, advice in _ADVICE:
        each = causes if isinstance(causes, tuple) else (causes,)
        assert not any(issubclass(cause, seen) for cause in each), advice
        seen += each


@pytest.mark.asyncio
async def test_no_host_is_what_the_dsn_asks_for(flux_postgres_clean_dsn: str) -> None:
    """No connection was lost: the hosts are others than the DSN wants."""
    dsn = with_parameter(flux_postgres_clean_dsn, "target_session_attrs=standby")
    async with PostgresConversationMemory(dsn, timeout=1) as memory:
        with pytest.raises(BackendUnavailableError, match="matches target_session_attrs"):
            await memory.count_sessions()


@pytest.mark.asyncio
async def test_a_message_is_one_line_and_the_cause_has_the_rest(flux_empty_database: str) -> None:
    """The server's hint, which may guess wrong, does not stand before our advice."""
    async with PostgresConversationMemory(flux_empty_database) as memory:
        await memory.count_sessions()
        await execute(flux_empty_database, "ALTER TABLE sessions RENAME title TO titles")
        with pytest.raises(SchemaError, match="the tables were changed by hand") as caught:
            await memory.get_sessions()
    assert "\n" not in str(caught.value)
    assert getattr(caught.value.__cause__, "hint", None)
