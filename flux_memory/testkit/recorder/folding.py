"""Folds calls, or elements of a list, that differ only in a number which counts up: one line stands for all of them."""

from __future__ import annotations

import io
import re
import tokenize
from ast import literal_eval
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

VARIABLE: Final = "number"
"""The variable that counts in folded code."""
_NUMBER: Final = re.compile(r"(0|[1-9][0-9]{0,9})")
_PADDED: Final = re.compile(r"([0-9]{1,10})")


class Folded(NamedTuple):
    """Code in which `VARIABLE` takes each number of a range."""

    code: str
    numbers: range


class _Part(NamedTuple):
    text: str
    is_text: bool
    space: str
    """What stands between the part before and this one."""


def fold(codes: Sequence[str]) -> Folded | None:
    """Return one piece of code for these expressions, which are two at least; None if they differ in another way."""
    if len(set(codes)) == 1:
        return Folded(codes[0], range(len(codes)))
    split = [_split(code) for code in codes]
    first = split[0]
    if any(len(parts) != len(first) for parts in split):
        return None
    numbers: range | None = None
    folded = []
    for column in zip(*split, strict=True):
        if len(set(column)) == 1:
            folded.append(column[0].space + column[0].text)
            continue
        found = _count(column)
        if found is None or (numbers is not None and found.numbers != numbers):
            return None
        numbers = found.numbers
        folded.append(column[0].space + found.code)
    return None if numbers is None else Folded("".join(folded), numbers)


def _split(code: str) -> list[_Part]:
    parts, end = [], 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in {tokenize.NEWLINE, tokenize.ENDMARKER}:
            break
        begin = token.start[1]
        parts.append(_Part(token.string, token.type == tokenize.STRING, code[end:begin]))
        end = token.end[1]
    return parts


def _count(column: Sequence[_Part]) -> Folded | None:
    """Return the code for parts that hold a number which counts up, with the numbers."""
    if all(part.is_text for part in column):
        return _count_in_texts([literal_eval(part.text) for part in column])
    if not all(_NUMBER.fullmatch(part.text) for part in column):
        return None
    numbers = _as_range([int(part.text) for part in column])
    return None if numbers is None else Folded(VARIABLE, numbers)


def _count_in_texts(texts: Sequence[object]) -> Folded | None:
    if not all(isinstance(text, str) for text in texts):
        return None
    for pattern in (_NUMBER, _PADDED):
        pieces = [pattern.split(str(text)) for text in texts]
        changing = [at for at, column in enumerate(zip(*pieces, strict=False)) if len(set(column)) > 1]
        if len({len(each) for each in pieces}) == 1 and len(changing) == 1 and changing[0] % 2:
            at = changing[0]
            column = [each[at] for each in pieces]
            numbers = _as_range([int(each) for each in column])
            width = len(column[0]) if pattern is _PADDED else 0
            if numbers is not None and all(f"{int(each):0{width}d}" == each for each in column):
                before, after = ("".join(part).replace("%", "%%") for part in (pieces[0][:at], pieces[0][at + 1 :]))
                # A text that is all digits is as clear without a format.
                code = f"{before}%{f'0{width}' if width else ''}d{after}"
                return Folded(f"str({VARIABLE})" if code == "%d" else f"{code!r} % {VARIABLE}", numbers)
    return None


def _as_range(numbers: Sequence[int]) -> range | None:
    if any(later != number + 1 for number, later in pairwise(numbers)):
        return None
    return range(numbers[0], numbers[-1] + 1)
