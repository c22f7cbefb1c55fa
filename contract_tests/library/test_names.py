"""One name stands for one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import flux_memory

TWINS = {"Access"}
"""Names that the two engines' packages share, because the classes do the same for each engine."""


def test_a_class_name_stands_for_one_thing() -> None:
    """A reader who knows a public class knows it wherever its name stands."""
    root = Path(flux_memory.__file__).parent
    places = defaultdict(list)
    for path in root.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(root)))
    assert len(places) > 500
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in TWINS} == {}
