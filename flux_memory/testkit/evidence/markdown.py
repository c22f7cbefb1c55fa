"""The evidence as Markdown, for pull request comments, release notes and job summaries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from flux_memory.testkit.evidence.document import (
    NOT_ASKED,
    OUTCOMES,
    BackendEvidence,
    CapabilityEvidence,
    ClauseEvidence,
    Evidence,
    Result,
    verdict,
)

_SIGNS: Final = {"held": "✓", "failed": "✗ failed", "advisory": "! advisory", "unverified": "? unverified"}
_WITHOUT_TIME: Final = {*NOT_ASKED, "not run"}
# Reasons are arbitrary text; outside of code blocks they are escaped.
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>#|~])")


def markdown(evidence: Evidence) -> str:
    """Return the report."""
    parts = [_head(evidence), _groups(evidence), *_capabilities(evidence), *_mutants(evidence)]
    parts += ["\n".join(_not_held(evidence)), "\n".join(_left_out(evidence)), "\n".join(_clauses(evidence))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(evidence: Evidence) -> str:
    pinned = f", pinned to {evidence.pinned}" if evidence.pinned else ""
    lines = [f"# flux-memory contract {evidence.contract}{pinned}", ""]
    for backend in evidence.backends:
        text, _ = verdict(result for _, result in evidence.results_of(backend.name))
        what = f" ({_plain(backend.about)})" if backend.about else ""
        lines.append(f"- **{_plain(backend.name)}**: {text}{what}")
    known = {**evidence.environment, **{f"seed of {name}": value for name, value in evidence.seeds.items()}}
    lines += ["", f"{evidence.started}, " + ", ".join(f"{_plain(name)} {_plain(text)}" for name, text in known.items())]
    return "\n".join(lines)


def _groups(evidence: Evidence) -> str:
    names = [backend.name for backend in evidence.backends]
    rows = [[_plain(title), *(_of(clauses, name) for name in names)] for title, clauses in evidence.by_group().items()]
    rows += [
        [outcome, *(str(evidence.count(name, outcome)) for name in names)]
        for outcome in OUTCOMES
        if any(evidence.count(name, outcome) for name in names)
    ]
    rows += [["seconds", *(f"{backend.seconds:.1f}" for backend in evidence.backends)]]
    rows += [["isolation, median ms", *(_milliseconds(backend) for backend in evidence.backends)]]
    return _table(["", *map(_plain, names)], rows)


def _capabilities(evidence: Evidence) -> Iterator[str]:
    found = [{each.name: each for each in backend.capabilities} for backend in evidence.backends]
    names = list(dict.fromkeys(name for each in found for name in each))
    if names:
        rows = [[_plain(name), *(_claim(each.get(name)) for each in found)] for name in names]
        yield "## Capabilities\n\n" + _table(["", *(_plain(backend.name) for backend in evidence.backends)], rows)


def _claim(capability: CapabilityEvidence | None) -> str:
    if capability is None:
        return ""
    claim = "" if capability.claimed else "not claimed, "
    return (
        f"{claim}{_plain(capability.outcome)}" if capability.as_claimed else f"**{claim}{_plain(capability.outcome)}**"
    )


def _mutants(evidence: Evidence) -> Iterator[str]:
    if (mutants := evidence.mutants) is not None:
        survivors = f"; not caught: {', '.join(map(_plain, mutants.survivors))}" if mutants.survivors else ""
        yield f"Broken backends caught: {mutants.caught} of {mutants.total}{survivors}"


def _not_held(evidence: Evidence) -> Iterator[str]:
    shown = [
        (clause, name, result)
        for clause in evidence.clauses
        for name, result in clause.results.items()
        if result.outcome in {"failed", "advisory", "unverified", "unverifiable"}
    ]
    if shown:
        yield "## Not held"
    for clause, name, result in shown:
        yield f"\n### {clause.id} on {_plain(name)}: {result.outcome}\n"
        yield f"- Promised: {_words(clause.promise)}"
        yield f"- Without it: {_words(clause.impact)}"
        yield f"- Why: {_plain(result.reason)}"
        if result.test:
            yield f"- Test: `{result.test}`"
        if result.reproduction:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", result.reproduction)), default=0))
            yield f"\n{fence}python\n{result.reproduction}\n{fence}"


def _left_out(evidence: Evidence) -> Iterator[str]:
    found = [(backend.name, evidence.parts_left_out(backend.name)) for backend in evidence.backends]
    if any(parts for _, parts in found):
        yield "## Parts that only the thorough profile runs\n"
    for name, parts in found:
        for part, ids in parts.items():
            yield f"- {_plain(name)}: {_plain(part)} ({', '.join(ids)})"


def _clauses(evidence: Evidence) -> Iterator[str]:
    names = [backend.name for backend in evidence.backends]
    yield "## Clause by clause"
    for title, clauses in evidence.by_group().items():
        rows = [
            [clause.id, _words(clause.promise), *(_sign(clause.results.get(name)) for name in names)]
            for clause in clauses
        ]
        yield f"\n### {_plain(title)}\n"
        yield _table(["", "promise", *map(_plain, names)], rows)


def _sign(result: Result | None) -> str:
    if result is None or result.outcome in _WITHOUT_TIME:
        return "" if result is None else result.outcome
    return f"{_SIGNS[result.outcome]} {result.seconds * 1000:.0f} ms"


def _of(clauses: Sequence[ClauseEvidence], backend: str) -> str:
    results = [clause.results[backend] for clause in clauses if backend in clause.results]
    results = [result for result in results if result.outcome not in NOT_ASKED]
    return f"{sum(result.holds for result in results)} of {len(results)}"


def _milliseconds(backend: BackendEvidence) -> str:
    return "" if backend.isolation_seconds is None else f"{backend.isolation_seconds * 1000:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _words(text: str) -> str:
    """Return a clause's text, in which backquotes mean code."""
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
