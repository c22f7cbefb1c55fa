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
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider

from flux_memory import ConversationMemory, Memory, PostgresConversationMemory

CONTENT = "x" * 500


class Discarded(SpanExporter):
    """Takes spans and drops them: the cost of sending them is not this library's."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def make_providers() -> dict[str, Any]:
    """Return the OpenTelemetry providers of each way to measure."""
    spans = TracerProvider()
    spans.add_span_processor(BatchSpanProcessor(Discarded()))
    return {
        "metrics": {"meter_provider": MeterProvider([InMemoryMetricReader()]), "tracer_provider": NoOpTracerProvider()},
        "metrics and spans": {"meter_provider": MeterProvider([InMemoryMetricReader()]), "tracer_provider": spans},
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
