"""Spans and metrics of a memory, by OpenTelemetry's own SDK: names, errors, pools, and nothing of the contents."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from raw_postgres import execute, with_address
from sqlite_locks import WRITE_LOCK, hold_lock
from waiting import wait_until

from flux_memory import (
    BackendUnavailableError,
    ConflictError,
    ConversationMemory,
    FluxMemoryError,
    PostgresConversationMemory,
    SessionNotFoundError,
    deadline,
)
from flux_memory.operations.telemetry import Telemetry, instrument
from flux_memory.sync import SyncMemory

Own = ConversationMemory | PostgresConversationMemory

SECRET: Final = "the-secret-of-ann"
PREFIX: Final = "db.client.connection."


class Exported:
    """What an SDK has received: its spans, and its metrics by name."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))

    def instrument(self, memory: Any = None) -> Telemetry:
        return instrument(memory, tracer_provider=self.tracers, meter_provider=self.meters)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        """Return the points of a metric; none if it has none."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str, **wanted: str) -> float:
        """Return the sum of a counter or gauge, or the number of a histogram's values."""
        return sum(
            getattr(point, "count", None) if hasattr(point, "count") else point.value
            for point in self.points(name)
            if all(point.attributes.get(key.replace("__", ".")) == value for key, value in wanted.items())
        )

    def everything(self) -> str:
        data = self._reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans) + (data.to_json() if data else "")


@pytest.fixture
def exported() -> Exported:
    return Exported()


@pytest.fixture
def measured(exported: Exported) -> Iterator[Exported]:
    """An SDK that measures all memories of the process during a test."""
    with exported.instrument():
        yield exported


async def converse(memory: Own) -> None:
    """Call each kind of method with a secret in every argument."""
    session = await memory.create_session(SECRET, {SECRET: SECRET}, session_id=SECRET, user_id=SECRET)
    await memory.add_message(session, SECRET, SECRET, {SECRET: SECRET}, message_id=SECRET)
    await memory.add_messages(session, [{"role": "user", "content": SECRET}])
    await memory.get_history(session)
    await memory.get_sessions(metadata={SECRET: SECRET})
    await memory.update_session(session, title=SECRET)
    with pytest.raises(SessionNotFoundError):
        await memory.add_message(f"missing {SECRET}", "user", SECRET)
    with pytest.raises(ConflictError):
        await memory.create_session(session_id=SECRET)


@pytest.mark.asyncio
async def test_each_call_is_a_span_and_a_duration(measured: Exported, open_memory: Callable[[], Own]) -> None:
    """The names are those of the semantic conventions; a call that fails has the class of its error and no more."""
    async with open_memory() as memory:
        await converse(memory)
        await memory.ping()
    spans = {(span.name, span.status.status_code): span for span in measured.spans}
    ok = ("create_session", "add_message", "add_messages", "get_history", "get_sessions", "update_session", "ping")
    assert spans.keys() == {
        *((name, StatusCode.UNSET) for name in ok),
        ("add_message", StatusCode.ERROR),
        ("create_session", StatusCode.ERROR),
    }
    store = memory._life.observers.store
    for (name, status), span in spans.items():
        assert span.kind is SpanKind.CLIENT
        assert span.attributes is not None
        assert span.attributes["db.operation.name"] == name
        assert span.attributes["db.system.name"] == store.system
        assert span.attributes["db.namespace"] == store.namespace
        assert ("error.type" in span.attributes) == (status is StatusCode.ERROR)
        assert span.attributes.get("server.port", 0) == store.port
        assert not span.events
    assert spans["add_message", StatusCode.ERROR].attributes["error.type"] == "SessionNotFoundError"  # type: ignore[index]
    duration = "db.client.operation.duration"
    assert measured.total(duration) == len(measured.spans) == 9
    assert measured.total(duration, db__operation__name="create_session", error__type="ConflictError") == 1


@pytest.mark.asyncio
async def test_feedback_has_names_of_its_own(measured: Exported, open_memory: Callable[[], Own]) -> None:
    """`memory.feedback` has methods such as `get`, whose name alone would say nothing."""
    async with open_memory() as memory:
        entry = await memory.feedback.add("one", 1, comment=SECRET)
        await memory.feedback.get()
        await memory.feedback.stats()
        await memory.feedback.delete(entry)
    assert [span.name for span in measured.spans] == [f"feedback.{name}" for name in ("add", "get", "stats", "delete")]
    assert SECRET not in measured.everything()


@pytest.mark.asyncio
async def test_nothing_of_the_contents_is_exported(measured: Exported, open_memory: Callable[[], Own]) -> None:
    """Spans and metrics leave the machine: no content, id, user, metadata or password may be in them."""
    async with open_memory() as memory:
        await converse(memory)
        password = getattr(memory, "_shown", "").count(":***@")
        assert SECRET not in measured.everything()
        assert "postgresql://" not in measured.everything()
    if password:
        target = memory._pool._target.arguments["password"]  # type: ignore[union-attr]
        assert str(target) not in json.dumps([span.to_json() for span in measured.spans])


@pytest.mark.asyncio
async def test_the_connections_are_reported_by_state(measured: Exported, flux_memory_postgres_dsn: str) -> None:
    """A scrape sees the connections in use and idle, their limits, and the calls that wait for one."""
    async with PostgresConversationMemory(flux_memory_postgres_dsn, min_size=0, max_size=2) as memory:
        await memory.ping()
        taken = [await memory._pool.take(), await memory._pool.take()]
        waiting = asyncio.create_task(memory.ping())
        await wait_until(lambda: _is_waiting(memory))
        state = "db__client__connection__state"
        assert measured.total(PREFIX + "count", **{state: "used"}) == 2
        assert measured.total(PREFIX + "count", **{state: "idle"}) == 0
        assert measured.total(PREFIX + "pending_requests") == 1
        assert measured.total(PREFIX + "max") == measured.total(PREFIX + "idle.max") == 2
        assert measured.total(PREFIX + "idle.min") == 0
        with deadline(0.05), pytest.raises(BackendUnavailableError):
            await memory.ping()
        for connection in taken:
            memory._pool.put_back(connection)
        await waiting
        (point,) = measured.points(PREFIX + "timeouts")
        assert point.value == 1
        assert point.attributes["db.client.connection.pool.name"] == memory._life.observers.store.pool
        for name in ("wait_time", "use_time", "create_time"):
            assert measured.total(PREFIX + name) >= 2, name
        assert max(each.max for each in measured.points(PREFIX + "wait_time")) >= 0.05
    assert measured.total(PREFIX + "count") == 0


async def _is_waiting(memory: Own) -> bool:
    return memory.pool_stats().waiting == 1


@pytest.mark.asyncio
async def test_retries_reconnects_and_batches_are_counted(measured: Exported, flux_empty_database: str) -> None:
    """The counters name why: a deadlock, a refused connection. Adds that share a statement are one batch."""
    dsn = flux_empty_database
    async with PostgresConversationMemory(dsn) as memory:
        session = await memory.create_session()
        await execute(
            dsn,
            "CREATE SEQUENCE refusals",
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('refusals') = 1 THEN"
            " RAISE EXCEPTION 'no' USING ERRCODE = 'deadlock_detected'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        await memory.add_message(session, "user", "x")
        await asyncio.gather(*(memory.add_message(session, "user", "x") for _ in range(30)))
    assert measured.total("flux_memory.retries", error__type="DeadlockDetectedError") == 1
    sizes = measured.points("flux_memory.batch.size")
    assert sum(each.sum for each in sizes) >= 31
    assert max(each.max for each in sizes) > 1
    async with PostgresConversationMemory(with_address(dsn, port=1), timeout=5) as away:
        with deadline(0.3), pytest.raises(BackendUnavailableError):
            await away.ping()
    assert measured.total("flux_memory.reconnects") >= 1


@pytest.mark.asyncio
async def test_a_file_has_the_same_metrics(measured: Exported, path: Path) -> None:
    """On SQLite the pool is one connection; a wait for another process's lock is a retry, and its end a timeout."""
    async with ConversationMemory(path) as memory:
        session = await memory.create_session()
        await asyncio.gather(*(memory.add_message(session, "user", "x") for _ in range(30)))
        with hold_lock(path, *WRITE_LOCK), deadline(0.3), pytest.raises(BackendUnavailableError):
            await memory.add_message(session, "user", "x")
        assert measured.total(PREFIX + "count") == measured.total(PREFIX + "max") == 1
        assert measured.total(PREFIX + "timeouts") == measured.total("flux_memory.retries") == 1
        for name in ("wait_time", "use_time"):
            assert measured.total(PREFIX + name) >= 31
        assert sum(each.sum for each in measured.points("flux_memory.batch.size")) == 31
        assert {each.attributes["db.client.connection.pool.name"] for each in measured.points(PREFIX + "max")} == {
            "chat.db"
        }


@pytest.mark.asyncio
async def test_a_span_is_the_child_of_the_callers(exported: Exported, open_memory: Callable[[], Own]) -> None:
    """A request's trace shows the calls that it made, also those that ran on the memory's own thread."""
    tracer = exported.tracers.get_tracer("application")
    async with open_memory() as memory:
        with exported.instrument(memory), tracer.start_as_current_span("request"):
            await memory.ping()
            await asyncio.to_thread(lambda: asyncio.run(memory.ping()))
    *pings, request = exported.spans
    assert [span.name for span in pings] == ["ping", "ping"]
    assert request.context is not None
    assert {span.parent.span_id for span in pings if span.parent} == {request.context.span_id}


@pytest.mark.asyncio
async def test_one_memory_of_several_is_measured(exported: Exported, tmp_path: Path) -> None:
    """`instrument(memory)` measures that memory alone, and ends with `uninstrument()`, also if that is called twice."""
    async with ConversationMemory(tmp_path / "one.db") as one, ConversationMemory(tmp_path / "two.db") as two:
        telemetry = exported.instrument(one)
        await one.ping()
        await two.ping()
        assert [span.name for span in exported.spans] == ["ping"]
        assert exported.total(PREFIX + "count") == 1
        telemetry.uninstrument()
        telemetry.uninstrument()
        await one.ping()
        assert len(exported.spans) == 1
        assert exported.total("db.client.operation.duration") == 1
        assert exported.points(PREFIX + "count") == []
        with exported.instrument(one):
            await one.ping()
            assert exported.total(PREFIX + "count") == 1, "a second instrumentation reports the pool again"


@pytest.mark.asyncio
async def test_a_memory_is_never_measured_twice(exported: Exported, path: Path) -> None:
    """A memory of its own instrumentation is not counted by that of all; a second one of the same kind is refused."""
    everything = Exported()
    async with ConversationMemory(path) as memory:
        with everything.instrument(), exported.instrument(memory):
            await memory.ping()
            assert (len(exported.spans), len(everything.spans)) == (1, 0)
            assert everything.points(PREFIX + "count") == []
            with pytest.raises(FluxMemoryError, match="this memory is instrumented already"):
                exported.instrument(memory)
            with pytest.raises(FluxMemoryError, match="all memories are instrumented already"):
                everything.instrument()
        await memory.ping()
    assert (len(exported.spans), len(everything.spans)) == (1, 0)


def test_a_memory_without_await_is_measured(exported: Exported, path: Path) -> None:
    """`SyncMemory` is instrumented like the memory that it calls."""
    with SyncMemory(ConversationMemory(path)) as memory, exported.instrument(memory):
        memory.create_session()
    assert [span.name for span in exported.spans] == ["create_session"]


@pytest.mark.asyncio
async def test_a_faulty_processor_does_not_fail_a_call(
    exported: Exported, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is stored: an exception from the application's telemetry would make the caller store it again."""

    class Faulty(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise OSError("no room")

        def on_end(self, span: ReadableSpan) -> None:
            raise OSError("no room")

    exported.tracers.add_span_processor(Faulty())
    async with ConversationMemory(path) as memory:
        with exported.instrument(memory), caplog.at_level(logging.ERROR, "flux_memory"):
            session = await memory.create_session()
            await memory.add_message(session, "user", "stored")
            assert [row["content"] for row in await memory.get_history(session)] == ["stored"]
    assert "the telemetry of a call failed" in caplog.text
