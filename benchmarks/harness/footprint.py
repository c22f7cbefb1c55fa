"""Measures the cost of the import, an idle handle and a burst, each in a fresh process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any, Final

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory
from harness import samples
from harness.contender_processes import BENCHMARKS
from harness.contender_worker import resident_mb

IMPORTS: Final = 11
HANDLES: Final = 20
BURST_CALLS: Final = 10_000
LAZY: Final = ("asyncpg", "aiosqlite", "sqlite3", "pydantic", "click", "rich", "pytest")
"""Modules that `import flux_memory` must not load."""


def import_time() -> dict[str, Any]:
    """Return the milliseconds of `import flux_memory`, and the modules of `LAZY` that it loaded."""
    program = f"import flux_memory, sys; print([name for name in {LAZY} if name in sys.modules])"
    said, taken = "", []
    for _ in range(IMPORTS):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
        )
        said = done.stdout.strip()
        (line,) = [line for line in done.stderr.splitlines() if line.endswith("| flux_memory")]
        taken.append(int(line.split("|")[1]) / 1000)
    return {"milliseconds": median(taken), "loaded": json.loads(said.replace("'", '"'))}


def idle_handle(engine: str, target: str) -> float:
    """Return the megabytes that an opened, idle handle adds."""
    return float(_in_a_process("idle", engine, target)["mb"])


def burst(engine: str, target: str) -> dict[str, Any]:
    """Start 10,000 adds at once on one handle; return the seconds, the failures and the growth in megabytes."""
    return _in_a_process("burst", engine, target)


def _in_a_process(what: str, engine: str, target: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "harness.footprint", what, engine, target],
        capture_output=True,
        text=True,
        check=True,
        cwd=BENCHMARKS,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _open(engine: str, target: str) -> Memory:
    return PostgresConversationMemory(target) if engine == "postgres" else ConversationMemory(Path(target))


async def _idle(engine: str, target: str) -> dict[str, Any]:
    async with _open(engine, target) as memory:
        # Loads the driver and creates the schema.
        await memory.count_sessions()
    before = resident_mb()
    handles = [_open(engine, target) for _ in range(HANDLES)]
    for handle in handles:
        await handle.count_sessions()
    grown = resident_mb() - before
    for handle in handles:
        await handle.close()
    return {"mb": grown / HANDLES}


async def _burst(engine: str, target: str) -> dict[str, Any]:
    most = 0.0
    pool = samples.samples(0)
    loop = asyncio.get_running_loop()
    async with _open(engine, target) as memory:
        sessions = [await memory.create_session() for _ in range(100)]
        await asyncio.gather(*(memory.add_message(session, *pool[0]) for session in sessions))
        before, began = resident_mb(), loop.time()
        adds = [
            asyncio.ensure_future(memory.add_message(sessions[n % len(sessions)], *pool[n % len(pool)]))
            for n in range(BURST_CALLS)
        ]
        while not all(add.done() for add in adds[-1:]):
            await asyncio.wait(adds[-1:], timeout=0.02)
            most = max(most, resident_mb())
        outcomes = await asyncio.gather(*adds, return_exceptions=True)
        seconds = loop.time() - began
        most = max(most, resident_mb())
        stored = sum(each["message_count"] for each in await memory.get_sessions(None)) - len(sessions)
    failures = [f"{type(each).__name__}: {each}" for each in outcomes if isinstance(each, BaseException)]
    return {
        "seconds": seconds,
        "grown_mb": most - before,
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "stored": stored,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run({"idle": _idle, "burst": _burst}[sys.argv[1]](*sys.argv[2:]))))
