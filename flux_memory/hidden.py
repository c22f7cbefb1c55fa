"""Keeps secrets out of what a traceback shows when it is printed with the frames' variables."""

from __future__ import annotations

import traceback
from contextlib import suppress


class Hidden(str):
    """A text, such as a DSN with its password, whose repr is `'***'`. All else is the text's own."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def forget_variables(error: BaseException, module: str) -> None:
    """Drop the variables of every frame of a module that an error and its causes have left; a driver's hold passwords.

    Files and lines stay in the traceback. Other frames are left alone: one that waits for something, as a task's
    that caught the error and goes on, would be ended by this.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if frame.f_globals.get("__name__", "").partition(".")[0] == module:
                    # It raises where the frame still runs.
                    with suppress(RuntimeError):
                        frame.clear()
            chain += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
