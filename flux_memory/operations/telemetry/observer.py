"""Turns what handles report into spans and metrics."""

from __future__ import annotations

import logging
import time
import weakref
from types import TracebackType
from typing import Final

from opentelemetry.context import attach, detach
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)

import flux_memory
from flux_memory.backends.observation import Observer, Observers
from flux_memory.operations.telemetry.instruments import (
    SCHEMA_URL,
    Attributes,
    Instruments,
    instruments_of,
    name_pool,
    name_store,
)

_LOG: Final = logging.getLogger("flux_memory.telemetry")


class TelemetryObserver(Observer):
    """Makes a span and a duration of each call, and counts what the pools do.

    Args:
        tracer_provider: Makes the spans; by default the global one.
        meter_provider: Takes the metrics; by default the global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = get_tracer("flux_memory", flux_memory.__version__, tracer_provider, SCHEMA_URL)
        self._instruments = instruments_of(meter_provider)
        self._named: weakref.WeakKeyDictionary[Observers, _Named] = weakref.WeakKeyDictionary()

    def start(self) -> None:
        """Report the sizes of the pools from now on."""
        self._instruments.observers.append(self)

    def stop(self) -> None:
        """Report the sizes of the pools no longer."""
        if self in self._instruments.observers:
            self._instruments.observers.remove(self)

    def call(self, operation: str, handle: Observers) -> ObservedCall:
        return ObservedCall(self._tracer, self._instruments, operation, self._names(handle))

    def waited(self, handle: Observers, seconds: float) -> None:
        self._instruments.wait_time.record(seconds, self._names(handle).pool)

    def used(self, handle: Observers, seconds: float) -> None:
        self._instruments.use_time.record(seconds, self._names(handle).pool)

    def connected(self, handle: Observers, seconds: float) -> None:
        self._instruments.create_time.record(seconds, self._names(handle).pool)

    def timed_out(self, handle: Observers) -> None:
        self._instruments.timeouts.add(1, self._names(handle).pool)

    def retried(self, handle: Observers, reason: str) -> None:
        self._instruments.retries.add(1, {**self._names(handle).pool, "error.type": reason})

    def reconnected(self, handle: Observers, reason: str) -> None:
        self._instruments.reconnects.add(1, {**self._names(handle).pool, "error.type": reason})

    def batched(self, handle: Observers, calls: int) -> None:
        self._instruments.batch_size.record(calls, self._names(handle).pool)

    def _names(self, handle: Observers) -> _Named:
        found = self._named.get(handle)
        if found is None:
            found = self._named[handle] = _Named(handle)
        return found


class _Named:
    """The attributes of a handle, made once."""

    __slots__ = ("_operations", "pool", "store")

    def __init__(self, handle: Observers) -> None:
        self.store = name_store(handle.store)
        self.pool = name_pool(handle.store)
        self._operations: dict[str, Attributes] = {}

    def of(self, operation: str) -> Attributes:
        """Return the attributes of a call that succeeds."""
        found = self._operations.get(operation)
        if found is None:
            found = self._operations[operation] = {**self.store, "db.operation.name": operation}
        return found


class ObservedCall:
    """The span and the duration of one call; as a context manager.

    The error of a call is named by its class alone: its message may hold an id. A sampler, a processor or an exporter
    of the application that raises does not fail the call.
    """

    __slots__ = ("_attributes", "_began", "_instruments", "_operation", "_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, instruments: Instruments, operation: str, named: _Named) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._operation = operation
        self._attributes = named.of(operation)

    def __enter__(self) -> Span:
        """Start the span, under the caller's, and make it the current one."""
        try:
            self._span = self._tracer.start_span(self._operation, kind=SpanKind.CLIENT, attributes=self._attributes)
        except Exception:  # noqa: BLE001 - the application's, see above; logged
            _log_failure()
            self._span = INVALID_SPAN
        self._token = attach(set_span_in_context(self._span))
        self._began = time.perf_counter()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Record the duration and end the span."""
        seconds = time.perf_counter() - self._began
        detach(self._token)
        attributes = self._attributes
        try:
            if kind is not None:
                attributes = {**attributes, "error.type": kind.__name__}
                self._span.set_attribute("error.type", kind.__name__)
                self._span.set_status(Status(StatusCode.ERROR))
            self._instruments.duration.record(seconds, attributes)
            self._span.end()
        except Exception:  # noqa: BLE001 - as above
            _log_failure()


def _log_failure() -> None:
    _LOG.exception("the telemetry of a call failed in the application's OpenTelemetry set-up; the call goes on")
