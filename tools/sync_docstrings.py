"""Copies the docstrings of `Memory` to `SyncMemory`, where editors look for them: `python tools/sync_docstrings.py`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[1]
PROTOCOL: Final = PROJECT / "flux_memory" / "protocol.py"
SYNC: Final = PROJECT / "flux_memory" / "sync" / "__init__.py"


def methods(source: str, name: str) -> dict[str, ast.AsyncFunctionDef | ast.FunctionDef]:
    """Return the public methods of a class in this source, by name."""
    (found,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    functions = (node for node in found.body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef))
    return {node.name: node for node in functions if not node.name.startswith("_")}


def with_docstrings(sync: str, protocol: str) -> str:
    """Return the source of `SyncMemory` with the docstrings in the source of `Memory`."""
    lines, promised = sync.splitlines(), protocol.splitlines()
    documented = methods(protocol, "Memory")
    for name, method in reversed(methods(sync, "SyncMemory").items()):
        docstring = documented[name].body[0]
        first = method.body[0]
        old = first.end_lineno or first.lineno if ast.get_docstring(method) is not None else first.lineno - 1
        lines[first.lineno - 1 : old] = promised[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    SYNC.write_text(with_docstrings(SYNC.read_text("utf-8"), PROTOCOL.read_text("utf-8")), "utf-8")
