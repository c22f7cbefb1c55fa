"""Statistics of rounds: ratios within rounds, their medians and errors, and significant drops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Final

_MEDIAN_AGAINST_MEAN: Final = math.sqrt(math.pi / 2)
"""Ratio of the standard error of a median to that of a mean."""
_SIGNIFICANT_ERRORS: Final = 3.0
"""Standard errors: a larger change is significant."""


@dataclass(frozen=True)
class Ratio:
    """One contender against another, over the rounds of a run."""

    median: float
    error: float
    """Standard error of the logarithm of the median: 0.05 is about 5 %; infinite for a single round."""


def within_rounds(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide round by round; skip rounds in which either made no calls."""
    return [one / other for one, other in zip(ours, base, strict=True) if one > 0 and other > 0]


def summary(ratios: Sequence[float]) -> Ratio:
    """Return the median of ratios and its error.

    Raises:
        ValueError: the sequence is empty.
    """
    if not ratios:
        raise ValueError("no round in which both contenders made calls")
    if len(ratios) < 2:
        return Ratio(ratios[0], math.inf)
    spread = stdev(map(math.log, ratios))
    return Ratio(median(ratios), _MEDIAN_AGAINST_MEAN * spread / math.sqrt(len(ratios)))


def typical_error(ratios: Sequence[Ratio]) -> float:
    """Return the noise of a run: the median error. A smaller error of a single row may be luck in a few rounds."""
    return median(each.error for each in ratios) if ratios else 0.0


def got_worse(new: Ratio, old: Ratio, *, new_noise: float = 0.0, old_noise: float = 0.0) -> bool:
    """Return whether a ratio fell by more than the noise of both runs."""
    error = math.hypot(max(new.error, new_noise), max(old.error, old_noise))
    return math.log(new.median / old.median) < -_SIGNIFICANT_ERRORS * error
