"""Each advice of an error has a heading on the troubleshooting page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from flux_memory.backends.postgres import connecting, errors
from flux_memory.backends.sqlite import errors as sqlite_errors

PAGE: Final = Path(__file__).parents[2] / "docs/troubleshooting.md"
HEADINGS: Final = [
    part.strip()
    for line in re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for quoted in re.findall(r"`(.*?)`", line)
    for part in quoted.split("...")
]
ADVICE: Final = sorted(
    {refusal.advice for table in (connecting._CODES, connecting._TEXTS, connecting._CLASSES) for _, refusal in table}
    | {value.advice for value in vars(connecting).values() if isinstance(value, connecting.Refusal)}
    | {advice for _, _, advice in errors._ADVICE}
    | {advice for _, advice in sqlite_errors._ADVICE.values()}
    | {errors._WAITING}
)


@pytest.mark.parametrize("advice", ADVICE)
def test_each_advice_has_a_heading(advice: str) -> None:
    """A search for the end of a message finds its heading."""
    assert any(heading and heading in advice for heading in HEADINGS)
