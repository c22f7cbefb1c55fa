"""Tests text arguments: the texts refused before any I/O, and the offset in the message."""

from __future__ import annotations

import pytest

from flux_memory.errors import InvalidInputError, InvalidTypeError
from flux_memory.records.text import check_id, check_str, check_text, find_unstorable


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("abc\x00def", "NUL character at offset 3"),
        ("é\ud800x", "lone surrogate at offset 1"),
        ("\udfff", "lone surrogate at offset 0"),
    ],
)
def test_unstorable_text_is_refused_with_its_offset(text: str, reason: str) -> None:
    """The engines cannot both store NUL and lone surrogates; the message gives their offset."""
    assert reason in (find_unstorable(text) or "")
    with pytest.raises(InvalidInputError, match=f"^content has a {reason}"):
        check_text("content", text, max_bytes=100)
    with pytest.raises(InvalidInputError, match=f"^session_id has a {reason}"):
        check_id("session_id", text, max_length=255)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, b"bytes", ["a"]])
def test_another_type_than_text_is_a_type_error(value: object) -> None:
    """No value is converted to text silently; the error names the argument and its type."""
    with pytest.raises(InvalidTypeError, match=f"^role must be a str, not {type(value).__name__}$") as caught:
        check_str("role", value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_size_is_counted_in_bytes() -> None:
    """Limits are in UTF-8 bytes, exact to the byte, because the engines count bytes."""
    assert check_text("content", "é" * 50, max_bytes=100) == "é" * 50
    with pytest.raises(InvalidInputError, match="larger than 100 bytes"):
        check_text("content", "é" * 50 + "x", max_bytes=100)


@pytest.mark.parametrize(
    ("text", "minimum", "fits"), [("", 1, False), ("", 0, True), ("é" * 255, 1, True), ("x" * 256, 1, False)]
)
def test_the_length_of_an_id_is_bounded_in_characters(text: str, minimum: int, fits: bool) -> None:
    """VARCHAR(255) counts characters; an id that does not fit is refused, never cut."""
    if fits:
        assert check_id("session_id", text, min_length=minimum, max_length=255) == text
    else:
        with pytest.raises(InvalidInputError, match=rf"has {len(text)} characters; it must have {minimum} to 255"):
            check_id("session_id", text, min_length=minimum, max_length=255)
