"""The evidence as an SVG badge: the version of the contract and the verdict over all backends."""

from __future__ import annotations

from html import escape
from typing import Final

from flux_memory.testkit.evidence.document import Evidence, Outcome, verdict, worst

_COLOURS: Final[dict[Outcome, str]] = {
    "held": "#1a7f37",
    "failed": "#c42b2b",
    "unverified": "#9a6700",
    "not run": "#59636e",
}
_CHARACTER_PIXELS: Final = 6.4
"""Text is stretched to this width per character, so that a badge looks the same in any font."""
_PADDING_PIXELS: Final = 8

_SVG: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{label}: {text}">
<title>{label}: {text}</title>
<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#3d444d"/>\
<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{label_at}" y="14" textLength="{label_width}">{label}</text>
<text x="{text_at}" y="14" textLength="{text_width}">{text}</text>
</g>
</svg>
"""


def badge(evidence: Evidence) -> str:
    """Return the badge. A clause counts as held if it holds on every backend of the run."""
    label = f"flux-memory contract {evidence.pinned or evidence.contract}"
    text, outcome = verdict(worst(clause.results.values()) for clause in evidence.clauses)
    label_width, text_width = (round(len(each) * _CHARACTER_PIXELS) for each in (label, text))
    left, right = label_width + 2 * _PADDING_PIXELS, text_width + 2 * _PADDING_PIXELS
    return _SVG.format(
        width=left + right,
        left=left,
        right=right,
        label=escape(label),
        text=escape(text),
        label_at=left / 2,
        text_at=left + right / 2,
        label_width=label_width,
        text_width=text_width,
        colour=_COLOURS[outcome],
    )
