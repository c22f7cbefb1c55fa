"""What the rounds say: ratios within rounds, their medians, how far they can be trusted, and when one got worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, stdev
from typing import Final

_MEDIAN_AGAINST_MEAN: Final = math.sqrt(math.pi / 2)
"""How much more a median varies than a mean."""
_CERTAIN: Final = 3.0
"""Standard errors beyond which a change is no accident."""


@dataclass(frozen=True)
class Ratio:
    """One contender against another, over the rounds of a run."""

    median: float
    error: float
    """Standard error of the logarithm of the median: 0.05 is about 5 %; infinite for a single round."""


def within_rounds(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide round by round; a round in which either did nothing says nothing."""
    return [one / other for one, other in zip(ours, base, strict=True) if one > 0 and other > 0]


def summary(ratios: Sequence[float]) -> Ratio:
    """Return the median of ratios and its error.

    Raises:
        ValueError: There are none.
    """
    if not ratios:
        raise ValueError("no round in which both contenders did something")
    if len(ratios) < 2:
        return Ratio(ratios[0], math.inf)
    spread = stdev(map(math.log, ratios))
    return Ratio(median(ratios), _MEDIAN_AGAINST_MEAN * spread / math.sqrt(len(ratios)))


def typical_error(ratios: Sequence[Ratio]) -> float:
    """Return the noise of a run: no single row is trusted to be quieter, few rounds agree by luck."""
    return median(each.error for each in ratios) if ratios else 0.0


def got_worse(new: Ratio, old: Ratio, *, new_noise: float = 0.0, old_noise: float = 0.0) -> bool:
    """Tell whether a ratio fell by more than both runs' noise explains."""
    error = math.hypot(max(new.error, new_noise), max(old.error, old_noise))
    return math.log(new.median / old.median) < -_CERTAIN * error
