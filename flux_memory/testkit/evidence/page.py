"""The evidence as one self-contained HTML page without scripts; CSS filters by outcome."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from flux_memory.testkit.evidence.document import (
    NOT_ASKED,
    OUTCOMES,
    BackendEvidence,
    CapabilityEvidence,
    ClauseEvidence,
    Evidence,
    Outcome,
    Result,
    verdict,
    worst,
)

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}{filters}</style>
</head>
<body>
{body}
</body>
</html>
"""
_HIDING: Final = """\
body:has(#only-{name}:checked) :is(.clause:not(.has-{name}), .group:not(:has(.has-{name}))) {{ display: none; }}
"""
_CODE: Final = re.compile(r"`([^`]+)`")
_SHOWN_AS: Final[dict[Outcome, str]] = {
    "held": "Held",
    "failed": "Failed",
    "advisory": "Advisory",
    "unverified": "Unverified",
    "unverifiable": "Unverifiable",
    "not claimed": "Not claimed",
    "thorough only": "Thorough only",
    "not run": "Not run",
}


def page(evidence: Evidence) -> str:
    """Return the page."""
    title = f"flux-memory contract {evidence.contract}"
    parts = [
        f"<header>\n<h1>{escape(title)}</h1>\n{_lead(evidence)}\n</header>",
        _cards(evidence),
        f'<div class="tables">\n{_overview(evidence)}\n{_capabilities(evidence)}\n</div>',
        _filter(evidence),
        *(_group(title, clauses) for title, clauses in evidence.by_group().items()),
    ]
    return _PAGE.format(
        title=escape(f"{title}: {', '.join(backend.name for backend in evidence.backends)}"),
        style=files("flux_memory.testkit.evidence").joinpath("page.css").read_text(encoding="utf-8"),
        filters="".join(_HIDING.format(name=_class_of(outcome)) for outcome in OUTCOMES),
        body="\n".join(part for part in parts if part),
    )


def _lead(evidence: Evidence) -> str:
    lines = []
    if evidence.pinned:
        lines.append(f"Held to version {evidence.pinned}: what a newer one adds is advisory.")
    known = {**evidence.environment, **{f"seed of {name}": value for name, value in evidence.seeds.items()}}
    facts = [f"{name} {value}" for name, value in known.items()]
    if (mutants := evidence.mutants) is not None:
        survivors = f" (not caught: {', '.join(mutants.survivors)})" if mutants.survivors else ""
        lines.append(f"Broken backends caught: {mutants.caught} of {mutants.total}{survivors}")
    moment = evidence.started.replace("T", " ").replace("+00:00", " UTC")
    lines.append(f"{moment}, {evidence.seconds:.0f} s; {', '.join(facts)}")
    return "\n".join(f'<p class="quiet">{escape(line)}</p>' for line in lines)


def _cards(evidence: Evidence) -> str:
    return f'<div class="cards">\n{"".join(_card(evidence, backend) for backend in evidence.backends)}</div>'


def _card(evidence: Evidence, backend: BackendEvidence) -> str:
    results = [result for _, result in evidence.results_of(backend.name)]
    text, tone = verdict(results)
    bar = "".join(
        f'<span class="{_class_of(outcome)}" style="flex:{count}"></span>'
        for outcome in OUTCOMES
        if (count := evidence.count(backend.name, outcome))
    )
    spent = f"{backend.seconds:.1f} s"
    if backend.isolation_seconds is not None:
        spent += f"; setup and teardown of a clause: {backend.isolation_seconds * 1000:.1f} ms (median)"
    return (
        f'<section class="card {_class_of(tone)}">\n<h3>{escape(backend.name)}</h3>\n<strong>{escape(text)}</strong>\n'
        f'<div class="bar" aria-hidden="true">{bar}</div>\n'
        + (f'<p class="quiet">{escape(backend.about)}</p>\n' if backend.about else "")
        + f'<p class="quiet">{spent}</p>\n</section>\n'
    )


def _overview(evidence: Evidence) -> str:
    names = [backend.name for backend in evidence.backends]
    rows = [
        [f'<a href="#{_anchor(title)}">{escape(title)}</a>', *(_held_of(clauses, name) for name in names)]
        for title, clauses in evidence.by_group().items()
    ]
    return _table("Groups", names, rows)


def _held_of(clauses: Sequence[ClauseEvidence], backend: str) -> str:
    results = [clause.results[backend] for clause in clauses if backend in clause.results]
    results = [result for result in results if result.outcome not in NOT_ASKED]
    held = sum(result.holds for result in results)
    if held == len(results):
        return str(held)
    return f'<strong class="{_class_of(worst(results).outcome)}">{held} of {len(results)}</strong>'


def _capabilities(evidence: Evidence) -> str:
    found = [{each.name: each for each in backend.capabilities} for backend in evidence.backends]
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        return ""
    rows = [[escape(name), *(_claim(each.get(name)) for each in found)] for name in names]
    return _table("Capabilities", [backend.name for backend in evidence.backends], rows)


def _claim(capability: CapabilityEvidence | None) -> str:
    if capability is None:
        return ""
    if capability.claimed and capability.outcome == "works":
        return "works"
    text = f"{'claimed' if capability.claimed else 'not claimed'}, {capability.outcome}"
    return escape(text) if capability.as_claimed else f'<strong class="failed">{escape(text)}</strong>'


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<section>\n<h2>{title}</h2>\n<div class="scroll"><table>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _filter(evidence: Evidence) -> str:
    choices = [("all", "any", f"All {len(evidence.clauses)}")]
    for outcome in OUTCOMES:
        count = sum(outcome in _shown_for(clause) for clause in evidence.clauses)
        if count:
            choices.append((_class_of(outcome), _class_of(outcome), f"{_SHOWN_AS[outcome]} {count}"))
    buttons = "\n".join(
        f'<input type="radio" name="filter" id="only-{name}"{" checked" if name == "all" else ""}>'
        f'<label class="{tone}" for="only-{name}">{text}</label>'
        for name, tone, text in choices
    )
    return f'<fieldset class="filter">\n<legend>Show clauses by outcome</legend>\n{buttons}\n</fieldset>'


def _group(title: str, clauses: Sequence[ClauseEvidence]) -> str:
    rows = "\n".join(map(_clause, clauses))
    return (
        f'<section class="group">\n<h2 id="{_anchor(title)}">{escape(title)} <small>{len(clauses)}</small></h2>\n'
        f"{rows}\n</section>"
    )


def _clause(clause: ClauseEvidence) -> str:
    classes = " ".join(["clause", *sorted(f"has-{_class_of(outcome)}" for outcome in _shown_for(clause))])
    chips = "\n".join(_chip(name, result) for name, result in clause.results.items())
    return (
        f'<article class="{classes}" id="{clause.id}">\n'
        f'<div class="id"><a href="#{clause.id}">{clause.id}</a></div>\n'
        f'<div>\n<p>{_words(clause.promise)}</p>\n<p class="quiet">Without it: {_words(clause.impact)}</p>\n</div>\n'
        f'<ul class="results">\n{chips}\n</ul>\n' + "".join(_whys(clause)) + "</article>"
    )


def _chip(backend: str, result: Result) -> str:
    outcome = _SHOWN_AS[result.outcome].lower()
    if result.outcome == "not claimed":
        outcome += f" ({result.reason})"
    spent = f" <time>{result.seconds * 1000:.0f} ms</time>" if result.seconds else ""
    return f'<li class="{_class_of(result.outcome)}">{escape(f"{backend} {outcome}")}{spent}</li>'


def _whys(clause: ClauseEvidence) -> Iterator[str]:
    for name, result in clause.results.items():
        why = result.reason or "; ".join(f"thorough only, not run: {part}" for part in result.left_out)
        if why and result.outcome != "not claimed":
            test = f'<p class="quiet">{escape(result.test)}</p>\n' if result.test else ""
            code = f"<pre>{escape(result.reproduction)}</pre>\n" if result.reproduction else ""
            yield (
                f'<div class="why {_class_of(result.outcome)}">\n<p class="title">{escape(name)}</p>\n'
                f"<p>{escape(why)}</p>\n{code}{test}</div>\n"
            )


def _shown_for(clause: ClauseEvidence) -> set[Outcome]:
    """Return the filter choices that show a clause: its outcomes on all backends; `held` only if it held on each."""
    outcomes: set[Outcome] = {result.outcome for result in clause.results.values()}
    if len(outcomes) > 1:
        outcomes.discard("held")
    return outcomes


def _class_of(outcome: Outcome) -> str:
    return outcome.replace(" ", "-")


def _anchor(title: str) -> str:
    return "group-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _words(text: str) -> str:
    """Return a clause's text, in which backquotes mean code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
