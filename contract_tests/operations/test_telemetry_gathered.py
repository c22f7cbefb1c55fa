"""Values that are gathered reach OpenTelemetry before it collects: none is lost, none is counted twice."""

from __future__ import annotations

import gc
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

from flux_memory import ConversationMemory, PostgresConversationMemory, SessionNotFoundError
from flux_memory.operations.telemetry import instrument, sdk_histograms
from flux_memory.operations.telemetry.gathering import GATHERED_VALUES, Gathering

DURATION: Final = "db.client.operation.duration"
DELTA: Final = {Counter: AggregationTemporality.DELTA, Histogram: AggregationTemporality.DELTA}
NAMED: Final = {"db.namespace": "chat.db", "error.type": "X"}
Own = ConversationMemory | PostgresConversationMemory


class Kept(MetricExporter):
    """Keeps the last metrics as text."""

    exported = ""

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        self.exported = metrics_data.to_json()
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Nothing is open."""


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An SDK of a version whose private names are not known."""
    monkeypatch.setattr(sdk_histograms, "BELOW_VERSION", 0)
    sdk_histograms._is_proven.cache_clear()
    yield
    monkeypatch.undo()
    sdk_histograms._is_proven.cache_clear()


def points_of(reader: InMemoryMetricReader, name: str) -> list[Any]:
    """Collect, and return the points of a metric."""
    data: Any = reader.get_metrics_data()
    return [
        point
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def read(point: Any) -> dict[str, Any]:
    """Return a point without its times."""
    fields = ("attributes", "count", "sum", "value", "min", "max", "bucket_counts", "explicit_bounds", "scale")
    found = {field: getattr(point, field) for field in fields if hasattr(point, field)}
    # Sums of the same numbers in another order.
    return {key: pytest.approx(value) if isinstance(value, float) else value for key, value in found.items()}


def name_point(point: Any) -> str:
    """Return the attributes of a point in a form that has an order."""
    return str(sorted(point.attributes.items()))


def gather(meters: MeterProvider) -> tuple[Gathering, Any, Any]:
    """Return a gathering that hands over before collections, and two histograms."""
    gathering = Gathering()
    meter = meters.get_meter("test")

    def report(_: Any) -> tuple[()]:
        gathering.hand_over()
        return ()

    meter.create_observable_counter("asked", [report])
    single, many = (
        meter.create_histogram(name, explicit_bucket_boundaries_advisory=(0.1, 0.2, 0.5)) for name in ("single", "many")
    )
    return gathering, single, many


def test_the_private_names_of_the_sdk_are_where_they_were() -> None:
    """The error says which name has moved: until the module follows, every value costs ten microseconds again."""
    assert sdk_histograms.differences() == []


@pytest.mark.usefixtures("unproven")
@pytest.mark.asyncio
async def test_another_sdk_gets_values_one_by_one(
    open_memory: Callable[[], Own], caplog: pytest.LogCaptureFixture
) -> None:
    """With an SDK that is not known, metrics cost more, and are the same; the log says why."""
    reader = InMemoryMetricReader()
    async with open_memory() as memory:
        with (
            caplog.at_level(logging.INFO, "flux_memory"),
            instrument(memory, meter_provider=MeterProvider([reader]), tracer_provider=NoOpTracerProvider()),
        ):
            for _ in range(50):
                await memory.ping()
            (point,) = points_of(reader, DURATION)
            assert point.count == 50
    assert "recorded one by one, which costs more, with this OpenTelemetry SDK" in caplog.text


@pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
@pytest.mark.parametrize(
    "views",
    [
        [],
        [View(instrument_name="*", attribute_keys={"error.type"})],
        [View(instrument_name="*", attribute_keys=set())],
        [View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation((0.3, 0.7), record_min_max=False))],
        [View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())],
        [View(instrument_name="*", aggregation=SumAggregation())],
        [View(instrument_name="many", name="other", attribute_keys={"error.type"}), View(instrument_name="*")],
    ],
    ids=["none", "one attribute", "no attribute", "other buckets", "exponential", "sum", "two views"],
)
def test_views_apply_to_gathered_values(views: Sequence[View], temporality: dict[type, Any]) -> None:
    """Each reader has the same points as if each value had been recorded alone, also with views."""
    readers = [InMemoryMetricReader(temporality), InMemoryMetricReader()]
    gathering, single, many = gather(MeterProvider(readers, views=views))
    chance = random.Random(7)
    attributes = [NAMED, {"db.namespace": "chat.db"}, {"db.namespace": "other.db"}]
    held = [gathering.values_of(many, each) for each in attributes]
    for _ in range(3):
        for _ in range(2 * GATHERED_VALUES + 7):
            value = chance.choice((0.0, 0.1, 0.2, chance.random(), 3.0))
            number = chance.randrange(3)
            single.record(value, attributes[number])
            held[number].add(value)
        for reader in readers:
            data: Any = reader.get_metrics_data()
            points = {
                metric.name: [read(point) for point in sorted(metric.data.data_points, key=name_point)]
                for metric in data.resource_metrics[0].scope_metrics[0].metrics
            }
            assert points["many"] == points["single"]
            assert points["many"]


def test_a_metric_that_a_view_drops_costs_no_record() -> None:
    """A view that drops the times of connections is the way to pay nothing for them."""
    reader = InMemoryMetricReader()
    views = [View(instrument_name="many", aggregation=DropAggregation())]
    gathering, _, many = gather(MeterProvider([reader], views=views))
    values = gathering.values_of(many, NAMED)
    for _ in range(10):
        values.add(0.1)
    assert len(values._values) == 9
    assert points_of(reader, "many") == []
    assert values._values == []


@pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
def test_threads_add_while_others_collect(temporality: dict[type, Any]) -> None:
    """Loops, SQLite's threads and the exporter's work at once: the counts that were exported add up to the calls."""
    reader = InMemoryMetricReader(temporality)
    gathering, _, many = gather(MeterProvider([reader]))
    exported: list[int] = []
    ended = threading.Event()

    def add() -> None:
        values = gathering.values_of(many, NAMED)
        for _ in range(20 * GATHERED_VALUES + 3):
            values.add(0.1)

    def collect() -> None:
        while not ended.is_set():
            exported.extend(point.count for point in points_of(reader, "many"))

    adding = [threading.Thread(target=add) for _ in range(4)]
    collecting = threading.Thread(target=collect)
    for thread in (collecting, *adding):
        thread.start()
    for thread in adding:
        thread.join()
    ended.set()
    collecting.join()
    exported.extend(point.count for point in points_of(reader, "many"))
    assert (sum(exported) if temporality else exported[-1]) == 4 * (20 * GATHERED_VALUES + 3)


@pytest.mark.asyncio
async def test_the_values_of_a_closed_memory_are_exported(open_memory: Callable[[], Own]) -> None:
    """A short-lived process, or a file for each user: what a memory did before it was closed is in the next export."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    for _ in range(3):
        memory = open_memory()
        with instrument(memory, meter_provider=meters, tracer_provider=NoOpTracerProvider()):
            for _ in range(5):
                await memory.ping()
            with pytest.raises(SessionNotFoundError):
                await memory.add_message("missing", "user", "x")
            await memory.close()
        del memory
        gc.collect()
    counts = {point.attributes.get("error.type", ""): point.count for point in points_of(reader, DURATION)}
    assert counts == {"": 15, "SessionNotFoundError": 3}


@pytest.mark.asyncio
async def test_a_shutdown_exports_what_was_gathered(path: Path) -> None:
    """A process that ends between two exports has its last calls in the last one."""
    exporter = Kept()
    meters = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)])
    async with ConversationMemory(path) as memory:
        with instrument(memory, meter_provider=meters, tracer_provider=NoOpTracerProvider()):
            for _ in range(7):
                await memory.ping()
    meters.shutdown()
    (count,) = re.findall(r'"db.operation.name": "ping".*?"count": (\d+)', exporter.exported, re.DOTALL)
    assert count == "7"


def test_memories_that_are_gone_take_no_room() -> None:
    """A file for each user, opened one after the other: neither the gatherings nor what they held stay."""
    gathering, _, many = gather(MeterProvider([InMemoryMetricReader()]))
    for number in range(500):
        values = gathering.values_of(many, {"db.namespace": f"{number}.db"})
        for _ in range(3):
            values.add(0.1)
    del values
    assert len(gathering._known) == 0
    assert len(gathering._left) < 200


def test_a_reader_that_comes_later_gets_the_values_since() -> None:
    """An application may add an exporter while it runs."""
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    meters = MeterProvider(readers[:1])
    gathering, _, many = gather(meters)
    values = gathering.values_of(many, NAMED)
    for _ in range(10):
        values.add(0.1)
    assert [point.count for point in points_of(readers[0], "many")] == [10]
    meters.add_metric_reader(readers[1])
    for _ in range(5):
        values.add(0.1)
    assert [[point.count for point in points_of(reader, "many")] for reader in readers] == [[15], [5]]


def test_more_stores_than_the_sdk_keeps_apart_are_counted_together() -> None:
    """The SDK's limit of attributes holds for gathered values, and its point for the others has the rest."""
    reader = InMemoryMetricReader()
    views = [View(instrument_name="many", aggregation_cardinality_limit=3)]
    gathering, _, many = gather(MeterProvider([reader], views=views))
    held = [gathering.values_of(many, {"db.namespace": f"{number}.db"}) for number in range(5)]
    for values in held:
        for _ in range(10):
            values.add(0.1)
    points = points_of(reader, "many")
    assert sorted(point.count for point in points) == [10, 10, 10, 20]
    (rest,) = [point for point in points if point.count == 20]
    assert rest.attributes == {"otel.metric.overflow": True}


@pytest.mark.asyncio
async def test_a_sampled_call_is_an_exemplar(path: Path) -> None:
    """From a point of the durations, a trace of one such call can be opened; a call that is not sampled gives none."""
    reader = InMemoryMetricReader()
    tracers = TracerProvider()
    meters = MeterProvider([reader])
    async with ConversationMemory(path) as memory:
        with instrument(memory, meter_provider=meters, tracer_provider=TracerProvider(sampler=ALWAYS_OFF)):
            for _ in range(10):
                await memory.ping()
        with tracers.get_tracer("application").start_as_current_span("report"):
            assert [point.exemplars for point in points_of(reader, DURATION)] == [[]]
        with (
            instrument(memory, meter_provider=meters, tracer_provider=tracers),
            tracers.get_tracer("application").start_as_current_span("request") as request,
        ):
            for _ in range(10):
                await memory.ping()
    (point,) = points_of(reader, DURATION)
    assert point.count == 20
    assert {exemplar.trace_id for exemplar in point.exemplars} == {request.get_span_context().trace_id}
