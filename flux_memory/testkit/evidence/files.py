"""The files of `--flux-report`."""

from __future__ import annotations

from pathlib import Path

from flux_memory.testkit.evidence.badge import badge
from flux_memory.testkit.evidence.document import FILE_NAME, Evidence
from flux_memory.testkit.evidence.markdown import markdown
from flux_memory.testkit.evidence.page import page


def write_files(evidence: Evidence, directory: Path) -> list[Path]:
    """Write the evidence in each format, overwriting an earlier run's, and return the paths."""
    texts = {
        FILE_NAME: evidence.to_json(),
        "contract.md": markdown(evidence),
        "contract.html": page(evidence),
        "badge.svg": badge(evidence),
    }
    for name, text in texts.items():
        # The same bytes on every system.
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    return [directory / name for name in texts]
