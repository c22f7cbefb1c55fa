"""One process of a soak: many users on one handle, sampled every second, and checked for leaks at the end.

Reads the fields of `Orders` as JSON from stdin. Prints one line of JSON a second, and a last one with the resources
that are left after `close()`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flux_memory import (
    ConversationMemory,
    FluxMemoryError,
    Memory,
    PostgresConversationMemory,
)
from flux_memory.testkit.histories import Journal, Recorder, call_as_anyone
from harness.contender_worker import resident_mb

THINK_SECONDS: Final = 0.3
"""Mean seconds between two calls of a user."""
CALLS: Final = {
    "add": 12,
    "batch": 3,
    "newest": 4,
    "all": 1,
    "sessions": 2,
    "title": 1,
    "pop": 1,
    "update": 2,
    "fork": 0.3,
    "delete": 0.4,
}
"""Relative frequency of each kind of call."""


@dataclass
class Orders:
    """The orders of one process."""

    engine: str
    target: str
    """A DSN, or the path of a file."""
    shared: str
    """A session that all users add to."""
    users: int
    seconds: float
    timeout: float
    journals: str
    name: str


class Soak:
    """The users of one process, and the outcomes of their calls."""

    def __init__(self, memory: Memory, orders: Orders) -> None:
        self.memory = memory
        self.orders = orders
        self.ended: Counter[str] = Counter()
        """Calls by how they ended: `ok`, `refused` at a short deadline, `left` (cancelled), or the error's class."""
        self.until = time.monotonic() + orders.seconds

    async def run(self) -> None:
        """Let the users call until the time is up, and print a sample every second."""
        sampling = asyncio.create_task(self._sample())
        await asyncio.gather(*(self._user(number) for number in range(self.orders.users)))
        sampling.cancel()
        await asyncio.wait([sampling])

    async def _user(self, number: int) -> None:
        chance = random.Random(f"{self.orders.name}-{number}")
        own = ""
        while time.monotonic() < self.until:
            await asyncio.sleep(chance.uniform(0, 2 * THINK_SECONDS))
            (kind,) = chance.choices(list(CALLS), CALLS.values())
            try:
                if not own:
                    own = await self.memory.create_session("new", {"user": number}, user_id=f"user-{number}")
                    self.ended["ok"] += 1
                else:
                    ended = await call_as_anyone(self._call(kind, own, chance, number), chance)
                    self.ended["ok" if ended == "answered" else ended] += 1
                    own = "" if kind == "delete" else own
            except FluxMemoryError as error:
                self.ended[type(error).__name__] += 1
                own = "" if kind == "delete" else own

    def _call(self, kind: str, own: str, chance: random.Random, number: int) -> Callable[[], Awaitable[Any]]:
        memory = self.memory
        session = own if chance.random() < 0.9 else self.orders.shared
        text = "x" * chance.randrange(400)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "add": lambda: memory.add_message(session, "user", text, {"user": number}),
            "batch": lambda: memory.add_messages(session, [{"role": "user", "content": text} for _ in range(4)]),
            "newest": lambda: memory.get_history(session, 20),
            "all": lambda: memory.get_history(own),
            "sessions": lambda: memory.get_sessions(10, user_id=f"user-{number}"),
            "title": lambda: memory.update_session_title(own, text[:40]),
            "pop": lambda: memory.pop_message(own),
            "update": lambda: self._update(own, text),
            "fork": lambda: memory.fork_session(own, title="fork"),
            "delete": lambda: memory.delete_session(own),
        }
        return calls[kind]

    async def _update(self, own: str, text: str) -> None:
        """Append to a session that nothing changed since it was read."""
        session = await self.memory.get_session(own)
        if session is not None:
            await self.memory.update_session(
                own,
                expected_revision=session["revision"],
                merge_metadata={"length": len(text)},
                messages=[{"role": "assistant", "content": text}],
            )

    async def _sample(self) -> None:
        before: Counter[str] = Counter()
        while True:
            await asyncio.sleep(1)
            now = self.ended.copy()
            tell(
                at=time.monotonic(),
                name=self.orders.name,
                ended=now - before,
                rss_mb=round(resident_mb(), 1),
                **_held(),
            )
            before = now


def tell(**line: Any) -> None:
    """Print a line of JSON for the parent process."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _held() -> dict[str, int]:
    return {
        # Includes the descriptor of the listing itself.
        "files": len(os.listdir("/dev/fd")),  # noqa: PTH208 - a count, every second
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


async def _soak(orders: Orders) -> None:
    # Start the event loop's default executor before counting: it stays until the end.
    await asyncio.to_thread(os.getpid)
    with closing(Journal(Path(orders.journals) / f"{orders.name}.jsonl")) as journal:
        before = _held()
        memory: Memory = (
            PostgresConversationMemory(orders.target, timeout=orders.timeout)
            if orders.engine == "postgres"
            else ConversationMemory(orders.target, timeout=orders.timeout)
        )
        soak = Soak(Recorder(memory, journal, orders.name), orders)
        await soak.run()
        began = time.monotonic()
        await memory.close()
        closing_took = time.monotonic() - began
        # Sockets and threads may take a moment to end.
        patience = time.monotonic() + 5
        gc.collect()
        while (after := _held()) != before and time.monotonic() < patience:  # noqa: ASYNC110 - the system has no event for it
            await asyncio.sleep(0.05)
    tell(name=orders.name, orders=asdict(orders) | {"target": ""}, before=before, after=after, closing=closing_took)


if __name__ == "__main__":
    asyncio.run(_soak(Orders(**json.loads(sys.stdin.read()))))
