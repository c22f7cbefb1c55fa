"""The metrics, by their names in OpenTelemetry's semantic conventions for databases, and a few of our own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation, get_meter_provider

import flux_memory
from flux_memory.backends.observation import Observer, StoreName, observed_handles
from flux_memory.backends.pool_stats import PoolStats
from flux_memory.operations.telemetry.gathering import Gathering

OwnAttributes = dict[str, str | int]
"""Attributes of a store, a pool or a call, by name."""

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.34.0"
"""The release of the semantic conventions whose names are used."""
CALL_BUCKETS_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""Upper bounds for the duration of calls: those that the conventions prescribe."""
POOL_BUCKETS_SECONDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""Upper bounds for waits and uses: a statement takes a fraction of a millisecond."""
BATCH_BUCKETS_CALLS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds for the number of adds that share a statement or a transaction."""


def name_store(store: StoreName) -> OwnAttributes:
    """Return the attributes by which the spans and durations of a store's calls are told apart."""
    found: OwnAttributes = {"db.system.name": store.system}
    if store.namespace:
        found["db.namespace"] = store.namespace
    if store.address:
        found["server.address"] = store.address
        found["server.port"] = store.port
    return found


def name_pool(store: StoreName) -> OwnAttributes:
    """Return the attributes by which pools are told apart."""
    return {"db.system.name": store.system, "db.client.connection.pool.name": store.pool}


class Instruments:
    """The instruments of one meter provider, made once: a second one of the same name would take no callbacks.

    Args:
        provider: Takes the metrics.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self.observers: list[Observer] = []
        """The observers whose handles the callbacks report."""
        self.gathering: Final = Gathering()
        """The values of the histograms of each call: OpenTelemetry gets them before it collects."""
        meter = provider.get_meter("flux_memory", flux_memory.__version__, SCHEMA_URL)

        def seconds(name: str, description: str, buckets: Sequence[float] = POOL_BUCKETS_SECONDS) -> Histogram:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=buckets
            )

        self.duration: Final = seconds(
            "db.client.operation.duration", "Duration of calls of the memory.", CALL_BUCKETS_SECONDS
        )
        self.wait_time: Final = seconds("db.client.connection.wait_time", "Time until a call had a connection.")
        self.use_time: Final = seconds("db.client.connection.use_time", "Time for which a call used a connection.")
        self.create_time: Final = seconds("db.client.connection.create_time", "Time to open a connection.")
        self.timeouts: Final = meter.create_counter(
            "db.client.connection.timeouts",
            unit="{timeout}",
            description="Calls whose deadline passed before they had a connection.",
        )
        self.retries: Final = meter.create_counter(
            "flux_memory.retries",
            unit="{retry}",
            description="Statements that ran again because of another transaction or process.",
        )
        self.reconnects: Final = meter.create_counter(
            "flux_memory.reconnects",
            unit="{reconnect}",
            description="Connections that were lost in a call or could not be opened, and were tried again.",
        )
        self.batch_size: Final = meter.create_histogram(
            "flux_memory.batch.size",
            unit="{call}",
            description="Adds that shared a statement on PostgreSQL, or writes that shared a transaction on SQLite.",
            explicit_bucket_boundaries_advisory=BATCH_BUCKETS_CALLS,
        )
        gauges: dict[str, tuple[str, str, Callable[[PoolStats], dict[str, int]]]] = {
            "count": (
                "{connection}",
                "Open connections, by their state.",
                lambda stats: {"idle": stats.idle, "used": stats.in_use},
            ),
            "pending_requests": (
                "{request}",
                "Calls and statements that wait for a connection.",
                lambda stats: {"": stats.waiting},
            ),
            "max": ("{connection}", "The largest number of connections.", lambda stats: {"": stats.max_size}),
            "idle.max": ("{connection}", "The largest number of idle ones.", lambda stats: {"": stats.max_size}),
            "idle.min": ("{connection}", "The idle connections that are kept.", lambda stats: {"": stats.min_size}),
        }
        for name, (unit, description, read) in gauges.items():
            meter.create_observable_up_down_counter(
                f"db.client.connection.{name}", [self._reporting(read)], unit=unit, description=description
            )

    def _reporting(
        self, read: Callable[[PoolStats], dict[str, int]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return a callback that sums a figure over the pools of one name."""

        def report(_: CallbackOptions) -> Iterable[Observation]:
            self.gathering.hand_over()
            sums: dict[tuple[StoreName, str], int] = {}
            for handle in [handle for observer in list(self.observers) for handle in observed_handles(observer)]:
                stats = handle.pool_stats()
                # A closed handle has no pool, and disappears from the metrics.
                for state, number in read(stats).items() if stats.max_size else ():
                    key = (handle.store, state)
                    sums[key] = sums.get(key, 0) + number
            for (store, state), number in sums.items():
                named = {"db.client.connection.state": state} if state else {}
                yield Observation(number, {**name_pool(store), **named})

        return report


_MADE: Final[weakref.WeakKeyDictionary[MeterProvider, Instruments]] = weakref.WeakKeyDictionary()
_GLOBAL: Final[list[Instruments]] = []


def instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a meter provider, or of the global one."""
    if provider is None:
        if not _GLOBAL:
            _GLOBAL.append(Instruments(get_meter_provider()))
        return _GLOBAL[0]
    if provider not in _MADE:
        _MADE[provider] = Instruments(provider)
    return _MADE[provider]
