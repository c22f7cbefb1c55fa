"""Outages: the ways in which a binding can make its store unreachable for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from flux_memory import Memory
from flux_memory.testkit.proxy import Proxy

RETRY_PAUSE_SECONDS = 0.05
"""The pause between two attempts of a call that failed."""


@dataclass(frozen=True, slots=True)
class Outage:
    """One way in which the store can be unreachable: a broken network, a lock that another client holds."""

    name: str
    open: Callable[[], Memory]
    """Opens another handle on the store, over a path that the outage interrupts."""
    away: Callable[[], AbstractAsyncContextManager[None]]
    """A context in which no write of such a handle reaches the store; after it, every new call does."""
    loses_connections: bool = False
    """Connections that were open during the outage remain silent after it."""
    has_own_path: bool = False
    """Only handles that it opened are away: other outages may be at the same time."""
    heal: Callable[[], None] = lambda: None
    """Ends the connections that the outage left silent, so that a handle need not wait for them."""


async def in_each(outages: Sequence[Outage], check: Callable[[Outage], Awaitable[None]]) -> None:
    """Check something in each outage: in those with a path of their own at the same time, beside the others in turn.

    Raises:
        BaseException: A check failed.
    """

    async def in_turn() -> None:
        for outage in outages:
            if not outage.has_own_path:
                await check(outage)

    apart = [check(outage) for outage in outages if outage.has_own_path]
    for outcome in await asyncio.gather(*apart, in_turn(), return_exceptions=True):
        if outcome is not None:
            raise outcome


def network_outages(proxy: Proxy, open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
    """Return the outages of a store behind a proxy: a server that is down, and a network that drops all packets.

    Args:
        proxy: The proxy in front of the store's server.
        open_memory: Opens a handle through the proxy.
    """

    @asynccontextmanager
    async def down() -> AsyncIterator[None]:
        proxy.interrupt()
        try:
            yield
        finally:
            proxy.heal()

    @asynccontextmanager
    async def silent() -> AsyncIterator[None]:
        proxy.silence()
        try:
            yield
        finally:
            # Connections of the outage remain silent, as if a firewall had dropped their state.
            proxy.forget()

    return (
        Outage("server down", open_memory, down),
        Outage("silent network", open_memory, silent, loses_connections=True, heal=proxy.heal),
    )
