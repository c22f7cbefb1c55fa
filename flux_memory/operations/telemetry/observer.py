"""Turns what handles report into spans and metrics."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from typing import Final

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    NoOpTracer,
    ProxyTracer,
    ProxyTracerProvider,
    Tracer,
    TracerProvider,
    get_tracer,
    get_tracer_provider,
)

import flux_memory
from flux_memory.backends.observation import Observer, Observers, StoreName
from flux_memory.operations.telemetry.gathering import GatheredValues
from flux_memory.operations.telemetry.instruments import (
    SCHEMA_URL,
    Instruments,
    OwnAttributes,
    instruments_of,
    name_pool,
    name_store,
)
from flux_memory.operations.telemetry.observed_calls import ObservedCall, ObservedOperation, TimedCall

SET_UP_SECONDS: Final = 1.0
"""Seconds between two looks for a set-up of traces after this one's: a span that nothing takes costs a microsecond."""


class TelemetryObserver(Observer):
    """Makes a span and a duration of each call, and counts what the pools do.

    Args:
        tracer_provider: Makes the spans; by default the global one.
        meter_provider: Takes the metrics; by default the global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = get_tracer("flux_memory", flux_memory.__version__, tracer_provider, SCHEMA_URL)
        self._instruments = instruments_of(meter_provider)

    def start(self) -> None:
        """Report the sizes of the pools from now on."""
        self._instruments.observers.append(self)

    def stop(self) -> None:
        """Report the sizes of the pools no longer."""
        if self in self._instruments.observers:
            self._instruments.observers.remove(self)

    def bind(self, handle: Observers) -> Observer:
        return HandleObserver(self._tracer, self._instruments, handle.store)


class HandleObserver(Observer):
    """Makes the spans and metrics of one handle; what is the same for all its calls is made once.

    Args:
        tracer: Makes the spans.
        instruments: Take the metrics.
        store: The names of the handle's store.
    """

    def __init__(self, tracer: Tracer, instruments: Instruments, store: StoreName) -> None:
        self._tracer = tracer
        self._makes_spans = not isinstance(tracer, NoOpTracer | ProxyTracer)
        self._look_at = 0.0 if isinstance(tracer, ProxyTracer) else math.inf
        """When to look next whether the application has set up traces."""
        self._instruments = instruments
        self._store = name_store(store)
        self._pool: Final = name_pool(store)
        self._operations: dict[str, ObservedOperation] = {}
        gathering = instruments.gathering
        self._wait_times: Final = gathering.values_of(instruments.wait_time, self._pool)
        self._use_times: Final = gathering.values_of(instruments.use_time, self._pool)
        self._batch_sizes: Final = gathering.values_of(instruments.batch_size, self._pool)

    def call(self, operation: str, handle: Observers) -> AbstractContextManager[object]:
        observed = self._operations.get(operation)
        if observed is None:
            named = {**self._store, "db.operation.name": operation}
            observed = self._operations[operation] = ObservedOperation(operation, named, self._gather_durations)
        if not self._makes_spans:
            now = time.perf_counter()
            if now < self._look_at or not self._look_for_traces(now):
                return TimedCall(observed, now)
        return ObservedCall(observed, self._tracer)

    def waited(self, handle: Observers, seconds: float) -> None:
        self._wait_times.add(seconds)

    def used(self, handle: Observers, seconds: float) -> None:
        self._use_times.add(seconds)

    def connected(self, handle: Observers, seconds: float) -> None:
        self._instruments.create_time.record(seconds, self._pool)

    def timed_out(self, handle: Observers) -> None:
        self._instruments.timeouts.add(1, self._pool)

    def retried(self, handle: Observers, reason: str) -> None:
        self._instruments.retries.add(1, {**self._pool, "error.type": reason})

    def reconnected(self, handle: Observers, reason: str) -> None:
        self._instruments.reconnects.add(1, {**self._pool, "error.type": reason})

    def batched(self, handle: Observers, calls: int) -> None:
        self._batch_sizes.add(calls)

    def _look_for_traces(self, now: float) -> bool:
        """Return whether calls have spans from now on."""
        # An unset global provider is a proxy, and so is the tracer: it makes real spans once there is a real provider.
        self._makes_spans = not isinstance(get_tracer_provider(), ProxyTracerProvider)
        self._look_at = now + SET_UP_SECONDS
        return self._makes_spans

    def _gather_durations(self, attributes: OwnAttributes) -> GatheredValues:
        return self._instruments.gathering.values_of(self._instruments.duration, attributes)
