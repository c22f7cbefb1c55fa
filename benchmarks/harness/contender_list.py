"""The catalogue of contenders: their engine, their workloads, and the features they lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OURS: Final = "flux-memory"


@dataclass(frozen=True)
class Entry:
    """One contender on one engine."""

    name: str
    engine: str
    load: str
    """`module:Class` below `harness.contenders`; empty for pgbench."""
    role: str
    """`ours`, `ceiling` or `peer`."""
    works: tuple[str, ...]
    lacks: str = ""
    """Features that the library has and this contender lacks, printed with the figures."""
    own_environment: bool = False
    """Whether it runs in the peers' environment, without the library; see `peers.txt`."""
    gated: bool = False
    """Whether a gate needs it; the short run includes it then."""


ALL: Final = (
    Entry(OURS, "postgres", "flux:FluxPostgres", "ours", ("add", "history", "mix", "list"), gated=True),
    Entry(
        f"{OURS}, commits not flushed",
        "postgres",
        "flux:FluxPostgresUnflushed",
        "ours",
        ("add", "mix"),
        "synchronous_commit=off: a crash of the server forgets acknowledged messages",
    ),
    Entry(
        "pgbench",
        "postgres",
        "",
        "ceiling",
        ("add", "history", "list"),
        "a C program that sends the library's own statements, prepared, and discards the rows",
        gated=True,
    ),
    Entry(
        "asyncpg, raw",
        "postgres",
        "raw_asyncpg:RawAsyncpg",
        "ceiling",
        ("add", "history", "list"),
        "the library's own statements on kept connections; input is not checked, rows are not converted",
        gated=True,
    ),
    Entry(
        "openai-agents SQLAlchemySession",
        "postgres",
        "openai_agents:SQLAlchemy",
        "peer",
        ("add", "history", "mix"),
        "no metadata, no message ids, no listing; one object for each conversation, kept here between calls",
        own_environment=True,
        gated=True,
    ),
    Entry(
        "google-adk DatabaseSessionService",
        "postgres",
        "google_adk:ADK",
        "peer",
        ("add", "history", "mix"),
        "ordered by the client's clock, then by random id; a listing has no limit",
        own_environment=True,
    ),
    Entry(
        "langchain-postgres",
        "postgres",
        "langchain:History",
        "peer",
        ("add", "history", "mix"),
        "no sessions, no listing; reads the whole history, cut to 50 here",
        own_environment=True,
    ),
    Entry(
        "llama-index SQLAlchemyChatStore",
        "postgres",
        "llama_index:ChatStore",
        "peer",
        ("add", "history", "mix"),
        "no sessions, no listing; its limit takes the oldest, so the whole history is read and cut to 50 here",
        own_environment=True,
    ),
    Entry(
        "asyncpg, a transaction a call",
        "postgres",
        "original:Postgres",
        "peer",
        ("add", "history", "mix"),
        "the original application's way: ordered by a clock, input is not checked",
    ),
    Entry(OURS, "sqlite", "flux:FluxSQLite", "ours", ("add", "history", "mix", "list"), gated=True),
    Entry(
        "sqlite3, raw",
        "sqlite",
        "raw_sqlite:RawSQLite",
        "ceiling",
        ("add", "history"),
        "synchronous calls one after another, which block the event loop; synchronous=FULL; input is not checked",
        gated=True,
    ),
    Entry(
        "sqlite3, on a thread",
        "sqlite",
        "raw_sqlite:SQLiteOnAThread",
        "ceiling",
        ("add", "history"),
        "the same calls handed to one thread and back, without blocking the event loop; nothing is shared or checked",
        gated=True,
    ),
    Entry(
        "openai-agents SQLiteSession",
        "sqlite",
        "openai_agents:SQLite",
        "peer",
        ("add", "history", "mix"),
        "no metadata, no message ids, no listing; WAL, and SQLite's built-in default for synchronous, usually FULL",
        own_environment=True,
        gated=True,
    ),
    Entry(
        "openai-agents AsyncSQLiteSession",
        "sqlite",
        "openai_agents:AsyncSQLite",
        "peer",
        ("add", "history", "mix"),
        "no metadata, no message ids, no listing; a thread and a connection for each conversation",
        own_environment=True,
    ),
    Entry(
        "aiosqlite, a connection a call",
        "sqlite",
        "original:SQLite",
        "peer",
        ("add", "history", "mix"),
        "the original application's way: ordered by a clock, input is not checked, the rollback journal",
    ),
)


def chosen(*, everything: bool, peers: bool) -> list[Entry]:
    """Return the contenders of a run."""
    return [each for each in ALL if (everything or each.gated) and (peers or not each.own_environment)]
