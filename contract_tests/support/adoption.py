"""Checks of an adopted original database, which both engines must pass."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Final

RACER: Final = """
import asyncio, sys
import flux_memory

async def main():
    async with getattr(flux_memory, sys.argv[1])(sys.argv[2]) as memory:
        print("ready", flush=True)
        sys.stdin.readline()
        await memory.add_message("one", "user", sys.argv[3])

asyncio.run(main())
"""


async def check_adopted(memory: Any) -> None:
    """Check order (by time, ties in writing order), values, and that adding still works."""
    messages = await memory.get_history("one")
    assert [message["id"] for message in messages] == ["m3", "m4", "m1", "m6"]
    assert messages[0] == {
        "id": "m3",
        "role": "user",
        "content": "content of m3",
        "metadata": {"n": 1.0},
        "created_at": "2026-02-05T15:17:01.407069+00:00",
    }
    assert [message["id"] for message in await memory.get_history("two")] == ["m2", "m5"]
    session = await memory.get_session("one")
    assert session.pop("revision")
    assert session == {
        "id": "one",
        "user_id": "",
        "title": "title of one",
        "created_at": "2026-02-05T15:17:45.407069+00:00",
        "updated_at": "2026-02-05T15:17:45.407069+00:00",
        "metadata": {"lang": "ko"},
        "message_count": 4,
    }
    added = await memory.add_message("one", "user", "new")
    assert [message["id"] for message in await memory.get_history("one", 2)] == ["m6", added]


def race_to_add(backend: str, target: str) -> set[str]:
    """Let two processes open a store and add to its session `one` at once; return their outputs."""
    contents = [f"by {number}" for number in range(4)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, backend, target, content],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for content in contents
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    ends = [racer.communicate(timeout=30) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, [stderr for _, stderr in ends]
    return set(contents)
