"""Outages: the ways in which a binding can put its store out of reach for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from flux_memory import Memory
from flux_memory.testkit.proxy import Proxy

RETRY_PAUSE_SECONDS = 0.05
"""Between two tries of a caller that was refused; the event loop turns meanwhile."""


@dataclass(frozen=True, slots=True)
class Outage:
    """One way in which the store can be out of reach: a network that is cut, a lock that another client holds."""

    name: str
    open: Callable[[], Memory]
    """Opens one more handle on the store, by a way that the outage interrupts."""
    away: Callable[[], AbstractAsyncContextManager[None]]
    """In this context no write of such a handle gets through; after it, each new call does."""
    loses_connections: bool = False
    """Connections that were open during the outage stay silent after it."""


def network_outages(proxy: Proxy, open_memory: Callable[[], Memory]) -> tuple[Outage, ...]:
    """Return the outages of a store behind a proxy: a server that is down, and a network that swallows everything.

    Args:
        proxy: Stands before the store's server.
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
            # The connections of the outage stay silent, as after a firewall forgot them.
            proxy.forget()

    return (
        Outage("server down", open_memory, down),
        Outage("silent network", open_memory, silent, loses_connections=True),
    )
