"""Exceptions that end a clause without a verdict on the memory: it cannot be checked, or the binding cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:

    class _Skipped(BaseException): ...

    class _Failed(BaseException): ...
else:
    _Skipped, _Failed = pytest.skip.Exception, pytest.fail.Exception


class Unverified(_Skipped):
    """A clause of the kit cannot be checked through this binding. Only `@unverifiable` excuses it in a strict run."""

    __module__ = "builtins"  # as those of pytest, so that reports show the plain name


class BindingFault(_Failed):
    """A binding cannot be used, so its clauses have no verdict.

    Args:
        message: Why it cannot be used, and what to do; a later clause's says where to find that.
        reason: Why it cannot be used, for reports, if the message does not say it.
        trace: Show the traceback, because an error of the binding is the cause.
    """

    __module__ = "builtins"

    def __init__(self, message: str, *, reason: str | None = None, trace: bool = False) -> None:
        super().__init__(message, trace)
        self.reason = reason or message


def unverified(reason: str) -> NoReturn:
    """End a clause because the binding or the platform lacks what the clause needs.

    Args:
        reason: Names what is missing, and how to provide it.
    """
    __tracebackhide__ = True
    raise Unverified(reason)
