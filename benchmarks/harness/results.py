"""The result of a run, as stored in JSON: figures by contender and round, their medians and ratios."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple

from harness.contender_list import OURS
from harness.ratios import Ratio, got_worse, summary, typical_error, within_rounds

FORMAT: Final = 1


class Case(NamedTuple):
    """One measured combination, the same for each contender."""

    engine: str
    work: str
    concurrency: int
    pool: int

    def __str__(self) -> str:
        """Return a readable name."""
        return f"{self.engine} {self.work} c={self.concurrency} pool={self.pool}"


@dataclass
class Run:
    """The measurements of one run."""

    about: dict[str, Any]
    """Time, commit, machine, durations, rounds and seed."""
    figures: dict[tuple[Case, str], list[dict[str, Any]]] = field(default_factory=dict)
    """By case and contender: a figure for each round."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)

    def add(self, case: Case, contender: str, figure: dict[str, Any]) -> None:
        """Store the figure of a round."""
        self.figures.setdefault((case, contender), []).append(figure)

    def median(self, case: Case, contender: str, name: str) -> float | None:
        """Return the median over the rounds of `ops`, `p50_us`, `p95_us`, `p99_us`, `cpu_us` or `rss_mb`."""
        values = [each[name] for each in self.figures[case, contender] if each[name] is not None]
        return median(values) if values else None

    def ratio(self, case: Case, base: str, of: str = OURS) -> Ratio | None:
        """Return the ratio of one contender, ours by default, to another; None if either was not measured."""
        one, other = self.figures.get((case, of)), self.figures.get((case, base))
        if not one or not other:
            return None
        ratios = within_rounds([each["ops"] for each in one], [each["ops"] for each in other])
        return summary(ratios) if ratios else None

    def ratios(self) -> Iterator[tuple[Case, str, Ratio]]:
        """Yield our ratio to each other contender, in every case."""
        for case, contender in self.figures:
            if contender != OURS and (ratio := self.ratio(case, contender)):
                yield case, contender, ratio

    def as_json(self) -> dict[str, Any]:
        """Return the value that `from_json` reads."""
        return {
            "format": FORMAT,
            "about": self.about,
            "versions": self.versions,
            "lacks": self.lacks,
            "figures": [
                {**case._asdict(), "contender": contender, "rounds": rounds}
                for (case, contender), rounds in self.figures.items()
            ],
            "ratios": [{**case._asdict(), "against": base, **asdict(ratio)} for case, base, ratio in self.ratios()],
        }


def from_json(value: dict[str, Any]) -> Run:
    """Read a run.

    Raises:
        ValueError: the value has another format.
    """
    if value.get("format") != FORMAT:
        raise ValueError(f"the file has format {value.get('format')!r}, and this program reads {FORMAT}")
    run = Run(value["about"], versions=value["versions"], lacks=value["lacks"])
    for each in value["figures"]:
        case = Case(each["engine"], each["work"], each["concurrency"], each["pool"])
        run.figures[case, each["contender"]] = each["rounds"]
    return run


class Drift(NamedTuple):
    """A ratio in two runs."""

    case: Case
    base: str
    old: Ratio
    new: Ratio
    worse: bool


def compare(old: Run, new: Run) -> list[Drift]:
    """Return the ratios that both runs have; mark those that fell by more than the noise."""
    before = {(case, base): ratio for case, base, ratio in old.ratios()}
    after = {(case, base): ratio for case, base, ratio in new.ratios()}
    noise = {"old_noise": typical_error(list(before.values())), "new_noise": typical_error(list(after.values()))}
    return [
        Drift(*key, before[key], after[key], got_worse(after[key], before[key], **noise))
        for key in before
        if key in after
    ]
