"""Measures one memory with telemetry off or on, in a process of its own: `observed_memory.py ENGINE TARGET`.

It reads orders from its input, one JSON object a line, and answers each with the calls a second and the CPU time.
Without telemetry it also runs on a release of the library that has none.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory

CONTENT = "x" * 500


EXPORT_SECONDS: Final = 1.0
"""Seconds between two exports of the metrics; ten to sixty are usual."""


class DiscardedSpans(SpanExporter):
    """Takes spans and drops them: the cost of sending them is not this library's."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class DiscardedMetrics(MetricExporter):
    """Takes metrics and drops them, likewise."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Nothing is open."""


def make_meters() -> MeterProvider:
    """Return a provider that collects the metrics regularly."""
    return MeterProvider([PeriodicExportingMetricReader(DiscardedMetrics(), EXPORT_SECONDS * 1_000)])


def make_providers() -> dict[str, Any]:
    """Return the OpenTelemetry providers of each way to measure."""
    spans = TracerProvider()
    spans.add_span_processor(BatchSpanProcessor(DiscardedSpans()))
    return {
        "metrics": {"meter_provider": make_meters()},
        "metrics and spans": {"meter_provider": make_meters(), "tracer_provider": spans},
    }


def observe(memory: Memory, providers: dict[str, Any] | None) -> AbstractContextManager[object]:
    """Instrument a memory during a block, unless there are no providers."""
    if providers is None:
        return nullcontext()
    from flux_memory.operations.telemetry import instrument  # noqa: PLC0415 - an older release has none

    return instrument(memory, **providers)


async def run(memory: Memory, work: str, callers: int, seconds: float) -> dict[str, float]:
    """Return the calls a second, and the microseconds of this process's CPU for each call."""
    ends = time.perf_counter() + seconds
    made = 0

    async def call_again(session: str) -> None:
        nonlocal made
        while time.perf_counter() < ends:
            if work == "add_message":
                await memory.add_message(session, "user", CONTENT)
            else:
                await memory.get_history(session, 10)
            made += 1

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call_again(f"session {number}") for number in range(callers)))
    return {
        "ops": made / (time.perf_counter() - began),
        "cpu_us": (time.process_time() - used) / made * 1_000_000,
    }


async def serve(engine: str, target: str) -> None:
    """Answer orders until the input ends."""
    providers = make_providers()
    memory: Any = ConversationMemory(target) if engine == "sqlite" else PostgresConversationMemory(target)
    async with memory:
        for number in range(64):
            session = f"session {number}"
            if await memory.get_session(session) is None:
                await memory.create_session(session_id=session)
                await memory.add_messages(session, [{"role": "user", "content": CONTENT}] * 10)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            with observe(memory, providers.get(order.pop("way"))):
                answer = await run(memory, **order)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(*sys.argv[1:]))
    else:
        uvloop.run(serve(*sys.argv[1:]))
