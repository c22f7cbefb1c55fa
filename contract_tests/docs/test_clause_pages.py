"""Tests that the pages of docs/contract match the clauses."""

from __future__ import annotations

from clause_pages import COMMAND, PLACE, pages

from flux_memory.testkit import CLAUSES, MemoryContract


def test_the_pages_are_those_of_the_clauses() -> None:
    """No page is stale, missing or left over, so users read the promises that the suite checks."""
    written = {path.name: path.read_text(encoding="utf-8") for path in PLACE.glob("*.md")}
    made = pages()
    stale = sorted(name for name in made.keys() | written.keys() if made.get(name) != written.get(name))
    assert stale == [], f"the pages {', '.join(stale)} of docs/contract are stale; run: {COMMAND}"


def test_every_clause_is_on_one_page() -> None:
    """A search for the id of a failing test finds exactly one page."""
    everything = "\n".join(pages().values())
    shipped = [known for known in CLAUSES.values() if known.home.startswith(MemoryContract.__module__)]
    assert shipped
    for known in shipped:
        assert everything.count(f"## {known.id}\n") == 1, known.id
        assert known.impact in everything
