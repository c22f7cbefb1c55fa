"""Adds many values at once to a histogram of OpenTelemetry's SDK, whose `record()` takes one, for ten microseconds.

The SDK has no public way. This module alone uses its private names, and only after it has proven, on a histogram of its
own, that the installed SDK then reports the same as for single records.
"""
# ruff: noqa: SLF001 - private names of the SDK, see above

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, Final

_LOG: Final = logging.getLogger("flux_memory.telemetry")

BELOW_VERSION: Final = 2
"""The first major version of the SDK with which this module is not tried at all."""
Attributes = Mapping[str, str | int]
"""The attributes of values, by name."""

PROOF: Final = (0.0, 0.5, 0.5, 1.0, 1.5, 7.0)
"""Values below, on, between and above the bounds of `PROOF_BUCKETS`."""
PROOF_BUCKETS: Final = (0.5, 1.0, 5.0)


class Added(Enum):
    """The outcome of `add_values`."""

    ALL = "all values were added"
    BUSY = "a collection runs: nothing was added, and it is worth another attempt"
    NONE = "the SDK has no place for several values: nothing was added"


class _Value:
    """The part of the SDK's measurement that its aggregations read."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


def add_values(
    histogram: Any,
    attributes: Attributes,
    values: Sequence[float],
    places: dict[int, Any],
    *,
    collecting: bool,
) -> Added:
    """Add values to a histogram that `takes_many`, as many calls of its `record()` would.

    The attributes must have been recorded before, by `record()`: the SDK then has a place for them.

    Args:
        histogram: The histogram.
        attributes: The attributes of the values.
        values: The values; without one, the outcome is only whether there is a place for more.
        places: Where the last call with these attributes found their aggregations, for the next one.
        collecting: Whether the SDK has called, before it collects: then it holds its lock already.
    """
    lock = histogram._measurement_consumer._lock
    # A collection in another thread may discard the place after it was found.
    if not collecting and not lock.acquire(blocking=False):
        return Added.BUSY
    try:
        found = _find_aggregations(histogram, attributes, places)
        if found is None:
            return Added.NONE
        for aggregation in found if values else ():
            _add(aggregation, values)
    finally:
        if not collecting:
            lock.release()
    return Added.ALL


def _find_aggregations(histogram: Any, attributes: Attributes, places: dict[int, Any]) -> list[Any] | None:
    """Return what takes the values, for each reader and view; `None` if one of them has no place of its own."""
    from opentelemetry.sdk.metrics.view import DropAggregation  # noqa: PLC0415 - only the application needs the SDK

    found = []
    for storage in histogram._measurement_consumer._reader_storages.values():
        for match in storage._instrument_view_instrument_matches.get(histogram, ()):
            view = match._view
            if isinstance(view._aggregation, DropAggregation):
                continue
            kept = view._attribute_keys
            wanted = attributes if kept is None else {key: attributes[key] for key in attributes if key in kept}
            known = match._attributes_aggregation
            aggregation = known.get(places.get(id(match)))
            if aggregation is None or aggregation._attributes != wanted:
                # The newest are the last: a place is looked for when it was made.
                place = next((key for key in reversed(list(known)) if known[key]._attributes == wanted), None)
                if place is None:
                    return None
                places[id(match)] = place
                aggregation = known[place]
            found.append(aggregation)
    return found


def _add(aggregation: Any, values: Sequence[float]) -> None:
    counts, bounds = getattr(aggregation, "_value", None), getattr(aggregation, "_boundaries", None)
    if bounds is None or counts is None or len(counts) != len(bounds) + 1:
        # An exponential histogram, or a sum.
        for value in values:
            aggregation.aggregate(_Value(value), False)
        return
    ordered = sorted(values)
    with aggregation._lock:
        counts = aggregation._value
        below = 0
        for number, bound in enumerate(bounds):
            up_to = bisect_right(ordered, bound)
            counts[number] += up_to - below
            below = up_to
        counts[-1] += len(ordered) - below
        aggregation._sum += sum(ordered)
        if aggregation._record_min_max:
            aggregation._min = min(aggregation._min, ordered[0])
            aggregation._max = max(aggregation._max, ordered[-1])


def takes_many(histogram: object) -> bool:
    """Return whether a histogram is one of the SDK, and the SDK one that `add_values` can use."""
    try:
        from opentelemetry.sdk.metrics import Histogram  # noqa: PLC0415 - only the application needs the SDK
    except ImportError:
        return False
    return isinstance(histogram, Histogram) and _is_proven()


@cache
def _is_proven() -> bool:
    try:
        reason = "" if differences() == [] else "its values differ from those of single records"
    except Exception as error:  # noqa: BLE001 - a private name that moved may raise any error
        reason = repr(error)
    if reason:
        _LOG.info("values are recorded one by one, which costs more, with this OpenTelemetry SDK: %s", reason)
    return not reason


def differences() -> list[str]:
    """Return in which fields of a point values that are added at once differ from single records; none if all is well.

    Raises:
        NotImplementedError: The SDK has a major version that is not known.
        Exception: A private name that this module uses has moved.
    """
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - only the application needs the SDK
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.version import __version__  # noqa: PLC0415

    if int(__version__.split(".")[0]) >= BELOW_VERSION:
        raise NotImplementedError(f"version {__version__}")
    reader = InMemoryMetricReader()
    exponential = View(instrument_name="exponential.*", aggregation=ExponentialBucketHistogramAggregation())
    provider = MeterProvider([reader], Resource.get_empty(), shutdown_on_exit=False, views=[exponential])
    meter = provider.get_meter("proof")
    attributes: Attributes = {"proof": "x", "number": 1}
    for kind in ("explicit", "exponential"):
        single, many = (
            meter.create_histogram(f"{kind}.{name}", explicit_bucket_boundaries_advisory=PROOF_BUCKETS)
            for name in ("single", "many")
        )
        for value in PROOF:
            single.record(value, {**attributes})
        many.record(PROOF[0], {**attributes})
        # Twice, the second time by the place that the first has found.
        places: dict[int, Any] = {}
        for part in (PROOF[1:3], PROOF[3:]):
            if add_values(many, attributes, part, places, collecting=False) is not Added.ALL:
                raise LookupError(f"no place for the attributes of the {kind} histogram")
    data: Any = reader.get_metrics_data()
    points = {metric.name: metric.data.data_points for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    fields = ("attributes", "count", "sum", "min", "max", "bucket_counts", "zero_count", "scale", "positive")
    return [
        f"{kind}: {field}"
        for kind in ("explicit", "exponential")
        for field in fields
        if _read(points[f"{kind}.single"], field) != _read(points[f"{kind}.many"], field)
    ]


def _read(points: Any, field: str) -> Any:
    (point,) = points
    return getattr(point, field, None)
