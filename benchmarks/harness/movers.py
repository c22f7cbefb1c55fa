"""Ways to move a SQLite memory into PostgreSQL, each into its own database."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import asyncpg

from flux_memory import PostgresConversationMemory

LIMIT: Final = "limit: server-side COPY, then keys"
OURS: Final = "flux-memory"
POPULATED: Final = "flux-memory, populated target, batches of 2 MB"
REPLACED: Final = "flux-memory, replacing the same rows"
ORIGINAL: Final = "executemany, batches of 100"
PGLOADER: Final = "pgloader"
DUCKDB: Final = "DuckDB"
DUCKDB_EXTENSIONS: Final = ("sqlite_scanner", "postgres_scanner")
FIGURES: Final = ("seconds", "preflight", "verify", "total", "mb")
"""Figures of a way: seconds of the load, the preflight, the verification and the total; megabytes of memory."""

TABLES: Final = """
CREATE TABLE sessions (
    id VARCHAR(255) NOT NULL, created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL,
    user_id TEXT DEFAULT '', message_count BIGINT NOT NULL DEFAULT 0, revision UUID NOT NULL
);
CREATE TABLE session_details (
    session_id VARCHAR(255) NOT NULL, title TEXT NOT NULL DEFAULT '', metadata JSONB NOT NULL DEFAULT '{}'
);
CREATE TABLE messages (
    id VARCHAR(255) NOT NULL, session_id VARCHAR(255) NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    metadata JSONB DEFAULT '{}', created_at TIMESTAMP NOT NULL, seq BIGINT NOT NULL
);
"""
COLUMNS: Final = {
    "sessions": "id, created_at, updated_at, user_id, message_count, revision",
    "session_details": "session_id, title, metadata",
    "messages": "id, session_id, role, content, metadata, created_at, seq",
}
KEYS: Final = """
ALTER TABLE sessions ADD PRIMARY KEY (id);
CREATE INDEX ON sessions (updated_at, id COLLATE "C");
CREATE INDEX ON sessions (user_id, updated_at, id COLLATE "C");
ALTER TABLE session_details ADD PRIMARY KEY (session_id);
ALTER TABLE session_details ADD FOREIGN KEY (session_id) REFERENCES sessions ON DELETE CASCADE;
CREATE INDEX ON session_details USING gin (metadata jsonb_path_ops);
ALTER TABLE messages ADD PRIMARY KEY (session_id, seq), ADD UNIQUE (session_id, id);
ALTER TABLE messages ADD FOREIGN KEY (session_id) REFERENCES sessions ON DELETE CASCADE;
"""
ORIGINAL_TABLES: Final = """
CREATE TABLE sessions (
    id VARCHAR(36) NOT NULL, title TEXT DEFAULT '', created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL,
    metadata JSONB DEFAULT '{}', user_id TEXT DEFAULT ''
);
CREATE TABLE messages (
    id VARCHAR(36) NOT NULL, session_id VARCHAR(36) NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    metadata JSONB DEFAULT '{}', created_at TIMESTAMP NOT NULL
);
"""
ORIGINAL_KEYS: Final = """
ALTER TABLE sessions ADD PRIMARY KEY (id);
ALTER TABLE messages ADD PRIMARY KEY (id), ADD FOREIGN KEY (session_id) REFERENCES sessions ON DELETE CASCADE;
CREATE INDEX ON messages (session_id, created_at);
"""
ORIGINAL_SESSION: Final = """
INSERT INTO sessions (id, title, created_at, updated_at, metadata, user_id) VALUES ($1, $2, $3, $4, $5, $6)
"""
ORIGINAL_MESSAGE: Final = """
INSERT INTO messages (id, session_id, role, content, metadata, created_at) VALUES ($1, $2, $3, $4, $5, $6)
"""
CHILD: Final = """
import asyncio, glob, json, os, sys, threading, time
from pathlib import Path
from flux_memory.transfer import Plan, migrate

def peak(pid):
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)

def watch():
    # Sampled while children live: a zombie no longer reports its peak, and the parent's rusage of it includes the
    # parent's own pages.
    while not done.wait(0.05):
        for thread in glob.glob("/proc/self/task/*/children"):
            try:
                for child in Path(thread).read_text().split():
                    peaks[child] = max(peak(child), peaks.get(child, 0))
            except OSError:
                pass

peaks, done = {}, threading.Event()
watching = threading.Thread(target=watch)
watching.start()
began = time.monotonic()
path, dsn, batch, replace = sys.argv[1:]
plan = Plan(sqlite_path=Path(path), postgres_dsn=dsn, batch_size=int(batch), replace=replace == "replace")
report = asyncio.run(migrate(plan))
total = time.monotonic() - began
done.set()
watching.join()
assert report.exit_code == 0, report
megabytes = (peak("self") + max(peaks.values(), default=0)) / 1024
print(json.dumps({**report.seconds, "total": total, "mb": megabytes}))
"""
_BATCH_ROWS: Final = 100
_LARGE_BATCH: Final = "10000"

Figures = dict[str, float]


@dataclass(frozen=True)
class Mover:
    """One way to move."""

    run: Callable[[Any, Path, Path], Figures]
    """Moves the source to the server, with a directory for files; returns the figures."""
    there: Callable[[], bool] = lambda: True
    """Whether it is installed."""


def _fresh(server: Any, work: Callable[[str], Any]) -> Any:
    dsn = server.create_database()
    try:
        return work(dsn)
    finally:
        server.drop_database(dsn)


def settle(server: Any) -> None:
    """Flush the disk and checkpoint the server, so that no mover pays for the one before."""
    os.sync()
    _fresh(server, lambda dsn: _execute(dsn, "CHECKPOINT"))


def _execute(dsn: str, *scripts: str) -> float:
    async def work() -> float:
        connection = await asyncpg.connect(dsn)
        began = time.monotonic()
        for script in scripts:
            await connection.execute(script, timeout=3600)
        seconds = time.monotonic() - began
        await connection.close()
        return seconds

    return asyncio.run(work())


def _ours(server: Any, source: Path, directory: Path, batch: str = "100", prepare: str = "") -> Figures:
    def work(dsn: str) -> Figures:
        if prepare:
            asyncio.run(_make_tables(dsn))
            _execute(dsn, prepare)
        figures = _move(source, dsn, directory, batch)
        if not prepare:
            _write_limit_files(dsn, directory)
        return figures

    return _fresh(server, work)


def _replaced(server: Any, source: Path, directory: Path) -> Figures:
    def work(dsn: str) -> Figures:
        _move(source, dsn, directory, "100")
        # As in `settle`, the second move does not pay for the first.
        os.sync()
        _execute(dsn, "CHECKPOINT")
        return _move(source, dsn, directory, "100", "replace")

    return _fresh(server, work)


def _move(source: Path, dsn: str, directory: Path, batch: str, replace: str = "") -> Figures:
    command = [sys.executable, "-c", CHILD, str(source), dsn, batch, replace]
    environment = {**os.environ, "TMPDIR": str(directory)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    figures: Figures = json.loads(done.stdout)
    figures["seconds"] = figures.pop("load")
    return figures


async def _make_tables(dsn: str) -> None:
    async with PostgresConversationMemory(dsn, min_size=1) as memory:
        await memory.count_sessions()


def _populated(server: Any, source: Path, directory: Path) -> Figures:
    other = "INSERT INTO sessions (id, created_at, updated_at) VALUES ('there', now(), now())"
    return _ours(server, source, directory, _LARGE_BATCH, other)


def _write_limit_files(dsn: str, directory: Path) -> None:
    """Let the server write the files that the limit reads: the same rows in the same order."""
    for table, names in COLUMNS.items():
        _execute(dsn, f"COPY {table} ({names}) TO '{directory / table}.copy' (FORMAT binary)")


def _limit(server: Any, _source: Path, directory: Path) -> Figures:
    copy = [
        f"COPY {table} ({names}) FROM '{directory / table}.copy' (FORMAT binary, FREEZE)"
        for table, names in COLUMNS.items()
    ]
    begin = f"BEGIN; SET LOCAL maintenance_work_mem = '1GB'; {TABLES}"
    return _fresh(server, lambda dsn: {"seconds": _execute(dsn, begin, *copy, KEYS, "COMMIT")})


def _original(server: Any, source: Path, _directory: Path) -> Figures:
    """Move as the original application did: batches of a hundred rows, by `executemany`."""

    async def work(dsn: str) -> Figures:
        connection = await asyncpg.connect(dsn)
        await connection.execute(ORIGINAL_TABLES + ORIGINAL_KEYS)
        began = time.monotonic()
        with closing(sqlite3.connect(source)) as db:
            sessions = db.execute("SELECT id, title, created_at, updated_at, metadata, user_id FROM sessions")
            while rows := sessions.fetchmany(_BATCH_ROWS):
                await connection.executemany(
                    ORIGINAL_SESSION, [(*row[:2], _time(row[2]), _time(row[3]), *row[4:]) for row in rows]
                )
            messages = db.execute("SELECT id, session_id, role, content, metadata, created_at FROM messages")
            while rows := messages.fetchmany(_BATCH_ROWS):
                await connection.executemany(ORIGINAL_MESSAGE, [(*row[:5], _time(row[5])) for row in rows])
        seconds = time.monotonic() - began
        await connection.close()
        return {"seconds": seconds}

    return _fresh(server, lambda dsn: asyncio.run(work(dsn)))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _pgloader(server: Any, source: Path, directory: Path) -> Figures:
    script = directory / "pgloader.load"

    def work(dsn: str) -> Figures:
        script.write_text(
            f"LOAD DATABASE FROM sqlite://{source} INTO {dsn} WITH include drop, create tables, create indexes, "
            # The defaults exhaust the heap of Debian's build.
            "prefetch rows = 1000, concurrency = 1;"
        )
        began = time.monotonic()
        subprocess.run(["pgloader", "--root-dir", str(directory), str(script)], check=True, stdout=subprocess.DEVNULL)
        return {"seconds": time.monotonic() - began}

    return _fresh(server, work)


def _duckdb(server: Any, source: Path, directory: Path) -> Figures:
    import duckdb  # noqa: PLC0415 - optional
    from duckdb_extensions import import_extension  # noqa: PLC0415 - optional

    def work(dsn: str) -> Figures:
        _execute(dsn, ORIGINAL_TABLES + ORIGINAL_KEYS)
        began = time.monotonic()
        with duckdb.connect(config={"extension_directory": str(directory / "duckdb")}) as db:
            for name in DUCKDB_EXTENSIONS:
                import_extension(name, con=db)
                db.execute(f"LOAD {name}")
            db.execute(
                f"ATTACH '{source}' AS source (TYPE sqlite, READ_ONLY); ATTACH '{dsn}' AS target (TYPE postgres)"
            )
            db.execute(
                "INSERT INTO target.sessions (id, title, created_at, updated_at, metadata, user_id) "
                "SELECT id, title, created_at::timestamp, updated_at::timestamp, metadata, user_id FROM source.sessions"
            )
            db.execute(
                "INSERT INTO target.messages (id, session_id, role, content, metadata, created_at) "
                "SELECT id, session_id, role, content, metadata, created_at::timestamp FROM source.messages"
            )
        return {"seconds": time.monotonic() - began}

    return _fresh(server, work)


def _has_duckdb() -> bool:
    # Extensions installed as packages save DuckDB the download.
    return all(map(find_spec, ("duckdb_extensions", *(f"duckdb_extension_{name}" for name in DUCKDB_EXTENSIONS))))


# Ours is first: it writes the files that the limit reads.
ALL: Final[dict[str, Mover]] = {
    OURS: Mover(_ours),
    LIMIT: Mover(_limit),
    POPULATED: Mover(_populated),
    REPLACED: Mover(_replaced),
    ORIGINAL: Mover(_original),
    PGLOADER: Mover(_pgloader, lambda: shutil.which("pgloader") is not None),
    DUCKDB: Mover(_duckdb, _has_duckdb),
}
