"""The one place where a handle reports what it does, to the observers that metrics, traces and the slow log attach."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from flux_memory.backends.pool_stats import Counters, CountingPool, PoolStats, sum_stats
from flux_memory.errors import FluxMemoryError

if TYPE_CHECKING:
    from flux_memory.dsn import Dsn


class StoreName(NamedTuple):
    """The names by which telemetry tells stores apart; none of them is a secret."""

    system: str
    """`sqlite` or `postgresql`, as in OpenTelemetry's `db.system.name`."""
    namespace: str
    """The database, or the file's name without its directory."""
    address: str = ""
    """The host or the socket's directory; empty for a file, a borrowed pool and several hosts."""
    port: int = 0
    pool: str = ""
    """The name of the pool: host, port and database, or the file's name."""


class Observer:
    """Is notified of what handles do. Each method does nothing; a subclass overrides what it needs.

    Methods are called on event loops and on SQLite's threads, and must neither block nor raise.
    """

    def bind(self, handle: Observers) -> Observer:
        """Return the observer that a handle notifies in place of this one, by default this one."""
        return self

    def call(self, operation: str, handle: Observers) -> AbstractContextManager[object]:
        """Return a context in which a call of the public API runs; its error passes through."""
        return nullcontext()

    def waited(self, handle: Observers, seconds: float) -> None:
        """Note that a connection was taken from the pool, after so many seconds."""

    def used(self, handle: Observers, seconds: float) -> None:
        """Note that a connection was given back, after so many seconds of use."""

    def connected(self, handle: Observers, seconds: float) -> None:
        """Note that a connection was opened, in so many seconds."""

    def timed_out(self, handle: Observers) -> None:
        """Note that a call's deadline passed before it had a connection."""

    def retried(self, handle: Observers, reason: str) -> None:
        """Note that a statement runs again because of another transaction."""

    def reconnected(self, handle: Observers, reason: str) -> None:
        """Note that a connection was lost, or could not be opened, and that another is tried."""

    def batched(self, handle: Observers, calls: int) -> None:
        """Note that adds share a statement or a transaction."""


class Observers:
    """The observers of one handle and of its twin, and their pools.

    Args:
        store: The names of the handle's store.
        slow: Logs slow calls; `None` if the handle has no threshold.
    """

    def __init__(self, store: StoreName, slow: Observer | None = None) -> None:
        self.store = store
        self._slow = slow
        self.records_statements: Final = slow is not None
        """Whether the texts of a call's statements are kept until the call ends."""
        self._own: Observer | None = None
        self._pools: list[tuple[weakref.ref[CountingPool], Counters]] = []
        self._ended = Counters()
        """What pools that are gone have done."""
        self.active: Observer | None = None
        """The observer to notify; `None`, if there are none, costs a call one comparison."""
        _HANDLES.add(self)
        self._refresh()

    def add_pool(self, pool: CountingPool, counters: Counters) -> None:
        """Add the pool of the handle, or of its twin.

        Args:
            pool: The pool; it may end before the handle does.
            counters: What it does, which is kept.
        """
        for entry in [entry for entry in self._pools if entry[0]() is None]:
            # The twin's thread may do the same.
            with suppress(ValueError):
                self._pools.remove(entry)
                self._ended.absorb(entry[1])
        self._pools.append((weakref.ref(pool), counters))

    def pool_stats(self) -> PoolStats:
        """Return the figures of the handle's pool, and of its twin's, together."""
        known = [*self._pools]
        pools = [pool for reference, _ in known if (pool := reference()) is not None]
        return sum_stats(pools, [self._ended, *(counters for _, counters in known)])

    def attach(self, observer: Observer) -> None:
        """Attach an observer to this handle, in place of the one that is attached to all.

        Raises:
            FluxMemoryError: The handle has one already.
        """
        if self._own is not None:
            raise FluxMemoryError("this memory is instrumented already; call uninstrument() of the first handle")
        self._own = observer
        self._refresh()

    def detach(self, observer: Observer) -> None:
        """Detach an observer; one that is not attached is not an error."""
        if self._own is observer:
            self._own = None
            self._refresh()

    def is_observed_by(self, observer: Observer) -> bool:
        """Return whether an observer is notified of this handle."""
        return (self._own or _EVERYWHERE[0]) is observer

    def _refresh(self) -> None:
        found = [each.bind(self) for each in (self._own or _EVERYWHERE[0], self._slow) if each is not None]
        self.active = _Several(found) if len(found) > 1 else found[0] if found else None


_HANDLES: weakref.WeakSet[Observers] = weakref.WeakSet()
_EVERYWHERE: list[Observer | None] = [None]
"""The observer of every handle without one of its own, also of handles that are made later."""


def attach_everywhere(observer: Observer) -> None:
    """Attach an observer to every handle of the process that has none of its own, now and later.

    Raises:
        FluxMemoryError: There is one already.
    """
    if _EVERYWHERE[0] is not None:
        raise FluxMemoryError("all memories are instrumented already; call uninstrument() of the first handle")
    # Before the handles are listed: one that is made meanwhile reads it, or is in the list.
    _EVERYWHERE[0] = observer
    _refresh_all()


def detach_everywhere(observer: Observer) -> None:
    """Detach an observer from every handle; one that is not attached is not an error."""
    if _EVERYWHERE[0] is observer:
        _EVERYWHERE[0] = None
        _refresh_all()


def observed_handles(observer: Observer) -> list[Observers]:
    """Return the handles of which an observer is notified."""
    return [handle for handle in _all_handles() if handle.is_observed_by(observer)]


def _refresh_all() -> None:
    for handle in _all_handles():
        handle._refresh()  # noqa: SLF001 - the same module


def _all_handles() -> list[Observers]:
    while True:
        try:
            return list(_HANDLES)
        except RuntimeError:
            continue


class _Several(Observer):
    """Notifies several observers, in order."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers

    @contextmanager
    def call(self, operation: str, handle: Observers) -> Iterator[None]:
        with ExitStack() as stack:
            for each in self._observers:
                stack.enter_context(each.call(operation, handle))
            yield

    def waited(self, handle: Observers, seconds: float) -> None:
        for each in self._observers:
            each.waited(handle, seconds)

    def used(self, handle: Observers, seconds: float) -> None:
        for each in self._observers:
            each.used(handle, seconds)

    def connected(self, handle: Observers, seconds: float) -> None:
        for each in self._observers:
            each.connected(handle, seconds)

    def timed_out(self, handle: Observers) -> None:
        for each in self._observers:
            each.timed_out(handle)

    def retried(self, handle: Observers, reason: str) -> None:
        for each in self._observers:
            each.retried(handle, reason)

    def reconnected(self, handle: Observers, reason: str) -> None:
        for each in self._observers:
            each.reconnected(handle, reason)

    def batched(self, handle: Observers, calls: int) -> None:
        for each in self._observers:
            each.batched(handle, calls)


def name_server(target: Dsn) -> StoreName:
    """Return the names of a PostgreSQL database. With several hosts, the address of a call is not known."""
    database = str(target.arguments.get("database", ""))
    hosts = [(host or "localhost", port) for host, port in target.addresses]
    pool = ",".join(f"{host}:{port}" for host, port in hosts) + f"/{database}"
    address, port = hosts[0] if len(hosts) == 1 else ("", 0)
    return StoreName("postgresql", database, address, port, pool)


def name_file(path: str) -> StoreName:
    """Return the names of a SQLite file: without its directory, which may name a user."""
    name = os.path.basename(path) or path  # noqa: PTH119 - `:memory:` is not a path
    return StoreName("sqlite", name, pool=name)
