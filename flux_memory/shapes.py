"""Defines the types that the records of both protocols are made of."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:  # pydantic, and so FastAPI, refuses the standard library's older one
    from typing_extensions import TypedDict

__all__ = ["Metadata", "TypedDict"]

Metadata = Mapping[str, Any]
"""A JSON object: `str` keys at every depth, finite numbers, nesting of at most 100."""
