"""A client's connection to the networked reference model, and the lines of JSON that it carries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

_TIME: Final = "a time"
"""The key of an object that stands for a `datetime`, which JSON lacks."""


class Wire:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def lost(self) -> bool:
        """Whether the server, or the network, has ended it."""
        return self.reader.at_eof() or self.reader.exception() is not None or self.writer.is_closing()

    def drop(self) -> None:
        """End it at once, without waiting for a reply."""
        self.writer.transport.abort()


def encode_line(value: object) -> bytes:
    """Return a request or a reply as a line of JSON."""
    return json.dumps(value, default=_plain).encode() + b"\n"


def decode_time(value: Any) -> Any:
    """Return an argument of a request, with its time as a `datetime` again."""
    return datetime.fromisoformat(value[_TIME]) if isinstance(value, dict) and value.keys() == {_TIME} else value


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"a request cannot have a {type(value).__name__}")
