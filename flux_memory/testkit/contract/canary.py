"""Shows whether the contract's assertions run: `python -O` removes those that pytest has not rewritten."""

from __future__ import annotations


def assertions_run() -> bool:
    """Return whether a false assertion raises in the modules of the contract.

    The package imports this module together with those of its clauses, so pytest rewrites all of them or none.
    """
    held: list[str] = []
    try:
        assert held, "expected"
    except AssertionError:
        return True
    return False
