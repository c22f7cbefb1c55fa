"""Measures one call of a memory: its duration, and its span if there is a tracer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from opentelemetry.context import attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from flux_memory.operations.telemetry.gathering import GatheredValues
from flux_memory.operations.telemetry.instruments import OwnAttributes

_LOG: Final = logging.getLogger("flux_memory.telemetry")


class ObservedOperation:
    """A method of a handle: its name, its attributes, and the durations of its calls.

    Args:
        name: The name.
        attributes: The attributes of a call that succeeds.
        gather: Returns what gathers the durations of calls with the attributes given.
    """

    def __init__(self, name: str, attributes: OwnAttributes, gather: Callable[[OwnAttributes], GatheredValues]) -> None:
        self.name = name
        self.attributes = attributes
        self._gather = gather
        self.durations: Final = gather(attributes)
        """Of calls that succeed."""
        self._failures: dict[type[BaseException], GatheredValues] = {}

    def durations_with(self, error: type[BaseException]) -> GatheredValues:
        """Return what gathers the durations of calls that end with an error of this class."""
        found = self._failures.get(error)
        if found is None:
            found = self._failures[error] = self._gather({**self.attributes, "error.type": error.__name__})
        return found


class TimedCall:
    """The duration of one call, without a span; as a context manager.

    Args:
        operation: The method that is called.
        began: The time of `time.perf_counter()` at which the call begins.
    """

    __slots__ = ("_began", "_operation")

    def __init__(self, operation: ObservedOperation, began: float) -> None:
        self._operation = operation
        self._began = began

    def __enter__(self) -> None:
        """The clock runs already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Add the duration."""
        seconds = time.perf_counter() - self._began
        operation = self._operation
        (operation.durations if kind is None else operation.durations_with(kind)).add(seconds)


class ObservedCall:
    """The span and the duration of one call; as a context manager.

    The error of a call is named by its class alone: its message may hold an id. A sampler, a processor or an exporter
    of the application that raises does not fail the call.
    """

    __slots__ = ("_began", "_context", "_operation", "_span", "_token", "_tracer")

    def __init__(self, operation: ObservedOperation, tracer: Tracer) -> None:
        self._operation = operation
        self._tracer = tracer

    def __enter__(self) -> Span:
        """Start the span, under the caller's, and make it the current one."""
        operation = self._operation
        try:
            self._span = self._tracer.start_span(operation.name, kind=SpanKind.CLIENT, attributes=operation.attributes)
        except Exception:  # noqa: BLE001 - the application's, see above; logged
            _log_failure()
            self._span = INVALID_SPAN
        self._context = set_span_in_context(self._span)
        self._token = attach(self._context)
        self._began = time.perf_counter()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Add the duration and end the span."""
        seconds = time.perf_counter() - self._began
        detach(self._token)
        durations = self._operation.durations
        try:
            if kind is not None:
                durations = self._operation.durations_with(kind)
                self._span.set_attribute("error.type", kind.__name__)
                self._span.set_status(Status(StatusCode.ERROR))
            if self._span.get_span_context().trace_flags.sampled:
                durations.add_sampled(seconds, self._context)
            else:
                durations.add(seconds)
            self._span.end()
        except Exception:  # noqa: BLE001 - as above
            _log_failure()


def _log_failure() -> None:
    _LOG.exception("the telemetry of a call failed in the application's OpenTelemetry set-up; the call goes on")
