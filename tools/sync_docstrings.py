"""Copies the docstrings of the protocols to their classes without `await`: `python tools/sync_docstrings.py`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final, NamedTuple

PACKAGE: Final = Path(__file__).parents[1] / "flux_memory"


class Pair(NamedTuple):
    """A protocol, and the class in which editors look for its docstrings."""

    promised: str
    protocol: Path
    kept: str
    sync: Path


PAIRS: Final = (
    Pair("Memory", PACKAGE / "protocol.py", "SyncMemory", PACKAGE / "sync" / "__init__.py"),
    Pair("Feedback", PACKAGE / "feedback.py", "SyncFeedback", PACKAGE / "sync" / "ratings.py"),
)


def methods(source: str, name: str) -> dict[str, ast.AsyncFunctionDef | ast.FunctionDef]:
    """Return the public methods and properties of a class in this source, by name."""
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    functions = (node for node in found.body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef))
    return {node.name: node for node in functions if not node.name.startswith("_")}


def with_docstrings(pair: Pair) -> str:
    """Return the source of the class without `await`, with the docstrings of its protocol."""
    sync, protocol = pair.sync.read_text("utf-8"), pair.protocol.read_text("utf-8")
    lines, promised = sync.splitlines(), protocol.splitlines()
    documented = methods(protocol, pair.promised)
    for name, method in reversed(methods(sync, pair.kept).items()):
        docstring = documented[name].body[0]
        first = method.body[0]
        old = first.end_lineno or first.lineno if ast.get_docstring(method) is not None else first.lineno - 1
        lines[first.lineno - 1 : old] = promised[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for each in PAIRS:
        each.sync.write_text(with_docstrings(each), "utf-8")
