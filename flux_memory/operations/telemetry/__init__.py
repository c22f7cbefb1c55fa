"""Metrics and traces by OpenTelemetry; the package `opentelemetry-api` comes with `flux-memory[otel]`.

from flux_memory.operations.telemetry import instrument

telemetry = instrument()  # all memories of the process, also those that are created later
...
telemetry.uninstrument()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from flux_memory.errors import FluxMemoryError, InvalidTypeError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from flux_memory.backends.observation import Observers
    from flux_memory.operations.telemetry.observer import TelemetryObserver
    from flux_memory.protocol import Memory
    from flux_memory.sync import SyncMemory

__all__ = ["Telemetry", "instrument"]


class Telemetry:
    """The instrumentation of one memory, or of all; `instrument()` makes it. `with` ends it at the end of the block."""

    def __init__(self, observer: TelemetryObserver, handle: Observers | None) -> None:
        self._observer = observer
        self._handle = handle

    def uninstrument(self) -> None:
        """Stop measuring. Safe to call again; the metrics keep what they have counted."""
        from flux_memory.backends.observation import detach_everywhere  # noqa: PLC0415 - only if it is used

        if self._handle is None:
            detach_everywhere(self._observer)
        else:
            self._handle.detach(self._observer)
        self._observer.stop()

    def __enter__(self) -> Self:
        """Return the instrumentation itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop measuring."""
        self.uninstrument()


def instrument(
    memory: Memory | SyncMemory | None = None,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Telemetry:
    """Measure the calls of memories, and what their connection pools do.

    The names are those of OpenTelemetry's semantic conventions for databases; `docs/operations/metrics.md` lists them.
    Spans and metrics hold names of methods, of errors, of the server and of the database: no content, no arguments, no
    ids, no password. A memory that is instrumented itself is not measured a second time by the instrumentation of all.

    Args:
        memory: The memory; `None` means all memories of this process without an instrumentation of their own, also
            those that are created later.
        tracer_provider: Makes the spans; by default the global one.
        meter_provider: Takes the metrics; by default the global one. Set it up before this call.

    Raises:
        FluxMemoryError: `opentelemetry-api` is not installed, or the memory is instrumented already.
        InvalidTypeError: `memory` is not a memory of this library.
    """
    from flux_memory.backends.observation import Observers, attach_everywhere  # noqa: PLC0415 - only if it is used

    try:
        from flux_memory.operations.telemetry.observer import TelemetryObserver  # noqa: PLC0415 - an optional package
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise FluxMemoryError(
            "telemetry needs the package opentelemetry-api; install it with: pip install 'flux-memory[otel]'"
        ) from error
    handle = None
    if memory is not None:
        # A `SyncMemory` holds the memory that it calls.
        life = getattr(getattr(memory, "_memory", memory), "_life", None)
        handle = getattr(life, "observers", None)
        if not isinstance(handle, Observers):
            raise InvalidTypeError(
                f"memory must be a ConversationMemory, a PostgresConversationMemory, a SyncMemory of one, or None, not "
                f"{type(memory).__name__}"
            )
    observer = TelemetryObserver(tracer_provider, meter_provider)
    if handle is None:
        attach_everywhere(observer)
    else:
        handle.attach(observer)
    observer.start()
    return Telemetry(observer, handle)
