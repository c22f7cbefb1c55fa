"""Writes the peers' scorecard as Markdown and JSON, from a run's evidence and the findings."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

from findings import FINDINGS, REPRODUCTIONS, PeerFinding

from flux_memory.testkit.evidence.document import OUTCOMES, BackendEvidence, Evidence, read_evidence

HERE = Path(__file__).parent
HEAD = """\
# The contract on published stores

A small adapter in this folder runs each store through its own public API and claims what the store's documentation
offers; clauses that need more do not count. The clauses are those of `flux_memory.testkit`: a store with another
purpose does not promise them. `nox -s peers` runs the clauses again. The reproductions use only the store's own API;
each was run by hand (`python FILE PATH-OR-DSN`, on an empty store) and printed the output shown.
"""
NOTES = """\
## What the adapters add

- openai-agents: the adapter creates a session object at the first use of an id and keeps it. It refuses calls after
  `close()`.
- langchain-postgres: one psycopg connection for each handle; `ChatMessage`s, because they take any role. The adapter
  creates ids, and applies `limit`, because the store reads all. A `ValueError` counts as refused input. The adapter
  refuses calls after `close()`.
- google-adk: the adapter reloads the session before each event; one user owns all sessions; `message_count` is the
  number of loaded events. Its errors for existing and missing sessions, and pydantic's, count as the contract's.
"""


def main(report: str) -> None:
    """Write `scorecard.md` and `scorecard.json` beside this file."""
    evidence = read_evidence(Path(report))
    scores = [_score(evidence, backend) for backend in evidence.backends]
    described = {"contract": evidence.contract, "environment": evidence.environment, "stores": scores}
    (HERE / "scorecard.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [HEAD, _format_table(scores), *(_findings(score) for score in scores), NOTES]
    (HERE / "scorecard.md").write_text("\n".join(parts), encoding="utf-8")


def _score(evidence: Evidence, backend: BackendEvidence) -> dict[str, Any]:
    results = [(clause, result) for clause, result in evidence.results_of(backend.name)]
    failed = {clause.id: clause.promise for clause, result in results if result.outcome == "failed"}
    findings = [
        {
            "fact": fact(finding),
            "reproduction": f"reproductions/{finding.reproduction}",
            "printed": finding.printed,
            "clauses": {clause: failed[clause] for clause in finding.clauses if clause in failed},
        }
        for finding in FINDINGS
        if finding.backend == backend.name and failed.keys() & set(finding.clauses)
    ]
    explained = {clause for finding in findings for clause in finding["clauses"]}
    return {
        "name": backend.name,
        "version": backend.version,
        "server": backend.server,
        "claimed": sorted(each.name for each in backend.capabilities if each.claimed),
        "not claimed": sorted(each.name for each in backend.capabilities if not each.claimed),
        "counts": {outcome: evidence.count(backend.name, outcome) for outcome in OUTCOMES},
        "held": [clause.id for clause, result in results if result.holds],
        "findings": findings,
        "not reproduced": {clause: promise for clause, promise in failed.items() if clause not in explained},
    }


def _format_table(scores: list[dict[str, Any]]) -> str:
    lines = [
        "| store | version | hold | do not | unverified | need what it does not claim |",
        "|---|---|---|---|---|---|",
    ]
    for score in scores:
        counts = [str(score["counts"][outcome]) for outcome in ("held", "failed", "unverified", "not claimed")]
        lines.append(f"| {score['name']} | {score['version']} | {' | '.join(counts)} |")
    return "\n".join(lines) + "\n"


def _findings(score: dict[str, Any]) -> str:
    where = f", on {score['server']}" if score["server"] else ""
    lines = [f"## {score['name']} {score['version']}{where}", ""]
    lines += [f"Claimed: {', '.join(score['claimed'])}.", "", f"Not claimed: {', '.join(score['not claimed'])}.", ""]
    lines += [f"Hold: {', '.join(score['held'])}.", ""]
    for finding in score["findings"]:
        lines += [f"### {finding['fact']}", ""]
        lines += [f"- {clause} does not hold: {promise}" for clause, promise in finding["clauses"].items()]
        lines += ["", f"[{finding['reproduction']}]({finding['reproduction']}) printed:", ""]
        lines += ["```", finding["printed"], "```", ""]
    if score["not reproduced"]:
        lines += ["### Without a reproduction", ""]
        lines += [f"- {clause} does not hold: {promise}" for clause, promise in score["not reproduced"].items()] + [""]
    return "\n".join(lines)


def fact(finding: PeerFinding) -> str:
    """Return the sentence of a reproduction: its docstring."""
    source = (REPRODUCTIONS / finding.reproduction).read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(source)))


if __name__ == "__main__":
    main(sys.argv[1])
