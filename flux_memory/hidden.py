"""Keeps secrets out of what a traceback shows when it is printed with the frames' variables."""

from __future__ import annotations

import traceback


class Hidden(str):
    """A text, such as a DSN with its password, whose repr is `'***'`. All else is the text's own."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def forget_variables(error: BaseException) -> None:
    """Drop the variables of every frame that an error and its causes have left: a driver's hold the password.

    Files and lines stay in the traceback. Frames that still run keep what they have.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
