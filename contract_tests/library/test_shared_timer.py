"""Tests the timer that the deadlines of a handle's calls share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flux_memory import ConversationMemory
from flux_memory.backends.shared_timer import Expiring, SharedTimer

pytestmark = pytest.mark.asyncio


class Limited(Expiring):
    """Notes when it expires, and may be added again."""

    def __init__(self, timer: SharedTimer, *, more: float | None = None) -> None:
        self.timer = timer
        self.more = more
        self.ended: list[float] = []
        self.done = asyncio.Event()

    def expire(self) -> None:
        self.ended.append(self.timer.loop.time())
        if self.more is None:
            self.done.set()
        else:
            self.timer.add(self, self.more)
            self.more = None


async def test_each_limit_ends_at_its_own_time() -> None:
    """A shorter limit that begins later ends first, and none ends early."""
    timer = SharedTimer(asyncio.get_running_loop())
    began = timer.loop.time()
    limits = {seconds: Limited(timer) for seconds in (0.06, 0.02, 0.04, 0.0)}
    for seconds, limited in limits.items():
        timer.add(limited, seconds)
    await limits[0.06].done.wait()
    assert sorted(limits, key=lambda seconds: limits[seconds].ended) == [0.0, 0.02, 0.04, 0.06]
    for seconds, limited in limits.items():
        (ended,) = limited.ended
        assert ended - began >= seconds


async def test_a_removed_limit_does_not_end() -> None:
    """The other limits keep their times, also if the first of all was removed."""
    timer = SharedTimer(asyncio.get_running_loop())
    removed, kept = Limited(timer), Limited(timer)
    timer.add(removed, 0.01)
    timer.add(kept, 0.03)
    timer.remove(removed)
    timer.remove(removed)
    await kept.done.wait()
    assert not removed.ended


async def test_a_limit_may_begin_again_as_it_ends() -> None:
    """A call that the thread of SQLite has taken gets a second limit; one that begins while others end counts, too."""
    timer = SharedTimer(asyncio.get_running_loop())
    again, other = Limited(timer, more=0.02), Limited(timer)
    timer.add(again, 0.01)
    timer.add(other, 30.0)
    await again.done.wait()
    first, second = again.ended
    assert second - first >= 0.02
    assert not other.ended
    timer.remove(other)


async def test_a_closed_handle_leaves_no_timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that opens a handle for each request does not gather timers on its event loop."""
    loop = asyncio.get_running_loop()
    made: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def note(*args: Any, **options: Any) -> asyncio.TimerHandle:
        made.append(call_at(*args, **options))
        return made[-1]

    monkeypatch.setattr(loop, "call_at", note)
    async with ConversationMemory(tmp_path / "chat.db") as memory:
        await memory.count_sessions()
    assert made
    assert all(handle.cancelled() for handle in made)


async def test_many_limits_need_one_timer_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with the same deadline cost the event loop nothing; that is what the timer is for."""
    timer = SharedTimer(asyncio.get_running_loop())
    made = []
    call_at = timer.loop.call_at
    monkeypatch.setattr(timer.loop, "call_at", lambda *args: made.append(args) or call_at(*args))
    for _ in range(1_000):
        limited = Limited(timer)
        timer.add(limited, 30.0)
        timer.remove(limited)
    assert len(made) == 1
