"""The whole of a source read: by this process, or the first half by this one and the second by its helper."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from flux_memory.transfer.checked import RowChecker
from flux_memory.transfer.preflight import Advance, Findings, preflight
from flux_memory.transfer.prepared import Prepared
from flux_memory.transfer.snapshot import Snapshot
from flux_memory.transfer.source import EVERYTHING, Part, Source


def read_all(
    snapshot: Snapshot, source: Source, checker: RowChecker, prepared: Prepared, advance: Advance, *, keeps_rows: bool
) -> tuple[Findings, list[Prepared]]:
    """Preflight a source, and return what was found with the parts that follow one another.

    Args:
        snapshot: What is read.
        source: Its rows.
        checker: Checks them.
        prepared: Takes them, or those of the first half.
        advance: Told how many rows were read.
        keeps_rows: Whether they are to be loaded.
    """
    prepared.keeps_rows = keeps_rows
    helper = snapshot.helper
    middle = None if helper is None else source.middle()
    if helper is None or middle is None:
        return preflight(source, checker, prepared, advance, EVERYTHING), [prepared]
    lock = Lock()

    def advance_both(rows: int) -> None:
        with lock:
            advance(rows)

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(
            helper.preflight, source.layout, source.naive, Part(first=middle), advance_both, keeps_rows=keeps_rows
        )
        try:
            found = preflight(source, checker, prepared, advance_both, Part(end=middle))
        except BaseException:
            helper.kill()
            raise
        found.include(second.result())
    return found, [prepared, helper.prepared]
