"""Tests how telemetry is switched on, and that an installation without it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from flux_memory import (
    InvalidTypeError,
    Settings,
    create_memory,
)
from flux_memory.operations.telemetry import instrument
from flux_memory.testkit import ReferenceMemory, ReferenceStore

WITHOUT_PACKAGE: Final = """
import sys
sys.modules["opentelemetry"] = None
from flux_memory.operations.telemetry import instrument
instrument()
"""

SET_UP_LATE: Final = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from flux_memory import ConversationMemory
from flux_memory.operations.telemetry import instrument

async def main():
    async with ConversationMemory(sys.argv[1]) as memory:
        instrument(memory)
        await memory.ping()
        tracers, spans = TracerProvider(), InMemorySpanExporter()
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(tracers)
        async with asyncio.timeout(30):
            while not spans.get_finished_spans():
                await memory.ping()
        print({span.name for span in spans.get_finished_spans()})

asyncio.run(main())
"""


@pytest.mark.parametrize("wrong", ["chat.db", 1, ReferenceMemory(ReferenceStore())])
def test_something_else_cannot_be_instrumented(wrong: Any) -> None:
    """The message names what can be instrumented."""
    with pytest.raises(InvalidTypeError, match="memory must be a ConversationMemory, a Postgres"):
        instrument(wrong)


@pytest.mark.asyncio
async def test_the_setting_switches_it_on(path: Path) -> None:
    """`FLUX_MEMORY_TELEMETRY=1` needs no code; `create_memory()` instruments the memory that it makes."""
    async with create_memory(Settings(database_url=f"sqlite:///{path}", telemetry=True)) as memory:
        assert memory._life.observers.active is not None
        await memory.ping()
    async with create_memory(Settings(database_url=f"sqlite:///{path}")) as plain:
        assert plain._life.observers.active is None


def test_traces_may_be_set_up_later(path: Path) -> None:
    """A framework may set up its traces after the memory was made: its calls have spans a second later."""
    done = subprocess.run([sys.executable, "-c", SET_UP_LATE, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "{'ping'}\n"


def test_a_missing_package_is_named() -> None:
    """The error says what to install."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "flux_memory.errors.FluxMemoryError: telemetry needs the package opentelemetry-api; install it with: pip "
        "install 'flux-memory[otel]'"
    )


def test_the_library_itself_does_not_import_it() -> None:
    """Without telemetry the package is neither needed nor loaded."""
    program = (
        "import sys; from flux_memory import *; import flux_memory.cli;"
        " assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
