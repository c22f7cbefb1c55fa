"""Gathers the values of histograms, and hands them to OpenTelemetry many at a time: a single one costs microseconds."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Final

from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import Histogram

from flux_memory.operations.telemetry.sdk_histograms import Added, Attributes, add_values, takes_many

_LOG: Final = logging.getLogger("flux_memory.telemetry")

GATHERED_VALUES: Final = 1_000
"""Values that are handed over together at most: a pause of about a tenth of a millisecond."""
_LOCK_SECONDS: Final = 1.0
"""Seconds that a collection waits for a thread that hands values over; only a forked child could wait for ever."""
_LEFT_SETS: Final = 100
"""Sets of values of handles that are gone, before they are handed over without a collection."""
_REFUSALS: Final = 3
"""Times that OpenTelemetry may have no place for several values: fewer can come from a collection at that moment."""

Left = tuple[Histogram, Attributes, list[float]]
"""Values that no handle adds to any more, with their histogram and attributes."""


class GatheredValues:
    """The values of one histogram with the same attributes that OpenTelemetry does not have yet. Any thread may add.

    Args:
        histogram: The histogram.
        attributes: The attributes of all values.
        leave: Takes the values that are left when no handle adds to them any more.
    """

    def __init__(self, histogram: Histogram, attributes: Attributes, leave: Callable[[Left], None]) -> None:
        self._histogram = histogram
        self._attributes = attributes
        self._leave = leave
        self._values: list[float] = []
        self._sampled: tuple[float, Context] | None = None
        """A value of a call whose trace is sampled, and the context with its span."""
        self._places: dict[int, object] = {}
        self._refusals = 0 if takes_many(histogram) else _REFUSALS
        self._limit = 1
        """Values that are handed over together: at first one, which makes the place for others."""
        self._lock = Lock()

    def add(self, value: float) -> None:
        """Add a value; it is finite and not negative."""
        values = self._values
        values.append(value)
        if len(values) >= self._limit:
            self.hand_over()

    def add_sampled(self, value: float, context: Context) -> None:
        """Add a value of a call whose trace is sampled: an exemplar, unless a later one replaces it."""
        self._sampled = (value, context)
        self.add(value)

    def extend(self, values: list[float]) -> None:
        """Add values that were left."""
        self._values.extend(values)

    def hand_over(self, *, collecting: bool = False) -> None:
        """Hand the values so far to OpenTelemetry.

        Args:
            collecting: Whether OpenTelemetry asks for them, before it collects.
        """
        # A thread that finds the lock taken leaves its values to the next one.
        if not self._lock.acquire(timeout=_LOCK_SECONDS if collecting else 0):
            return
        # A value must not become the exemplar of a trace that happens to be the current one.
        token = attach(Context())
        try:
            self._hand_over(collecting=collecting)
        except Exception:  # noqa: BLE001 - the application's exemplar filter, which must not fail a call; logged
            _LOG.exception("OpenTelemetry has not taken a value; the call goes on")
        finally:
            detach(token)
            self._lock.release()

    def _hand_over(self, *, collecting: bool) -> None:
        # Other threads append meanwhile, and only this one removes.
        values = self._values
        if not values:
            return
        value, context = self._take_one()
        self._histogram.record(value, self._attributes, context)
        outcome = Added.NONE
        if self._refusals < _REFUSALS:
            rest = values[:]
            outcome = add_values(self._histogram, self._attributes, rest, self._places, collecting=collecting)
            if outcome is Added.ALL:
                del values[: len(rest)]
            elif outcome is Added.NONE:
                self._refusals += 1
        self._limit = 1 if outcome is Added.NONE else GATHERED_VALUES
        while outcome is Added.NONE and values:
            self._histogram.record(values.pop(0), self._attributes)

    def _take_one(self) -> tuple[float, Context | None]:
        """Remove one of the values, and return it with the context of its call, if that is sampled."""
        sampled, self._sampled = self._sampled, None
        if sampled is not None and sampled[0] in self._values:
            self._values.remove(sampled[0])
            return sampled
        return self._values.pop(0), None

    def __del__(self) -> None:
        """Leave the values to the next collection."""
        if self._values:
            self._leave((self._histogram, self._attributes, self._values))


class Gathering:
    """All gathered values of one meter provider; handles of the same store share them."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[tuple[object, ...], GatheredValues] = weakref.WeakValueDictionary()
        """Only weakly: an application may have a file for each user, and open them one after the other."""
        self._left: list[Left] = []
        self._lock = Lock()

    def values_of(self, histogram: Histogram, attributes: Attributes) -> GatheredValues:
        """Return what gathers the values of a histogram with these attributes."""
        if len(self._left) > _LEFT_SETS:
            self._take_left(collecting=False)
        return self._find(histogram, attributes)

    def hand_over(self) -> None:
        """Hand all values to OpenTelemetry, which is about to collect."""
        self._take_left(collecting=True)
        with self._lock:
            known = list(self._known.values())
        for values in known:
            values.hand_over(collecting=True)

    def _find(self, histogram: Histogram, attributes: Attributes) -> GatheredValues:
        key = (histogram, *sorted(attributes.items()))
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = GatheredValues(histogram, attributes, self._left.append)
            return found

    def _take_left(self, *, collecting: bool) -> None:
        # What cannot be handed over now is left again, for the next time.
        for _ in range(len(self._left)):
            try:
                histogram, attributes, values = self._left.pop(0)
            except IndexError:
                return
            found = self._find(histogram, attributes)
            found.extend(values)
            found.hand_over(collecting=collecting)
