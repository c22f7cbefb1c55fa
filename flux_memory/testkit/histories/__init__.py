"""A checker for histories: compares the calls of workers, and their outcomes, with the final state of a store.

journal = Journal(directory / f"{worker}.jsonl")
memory = Recorder(open_memory(), journal, worker="1")       # a `Memory`, for tasks, handles and processes
...                                                         # faults, cancellations, kill -9
violations = check(History.read(directory), await read_stored(memory))
"""

from flux_memory.testkit.histories.callers import call_as_anyone
from flux_memory.testkit.histories.check import check
from flux_memory.testkit.histories.journal import History, Journal, Operation, Sent
from flux_memory.testkit.histories.journaled import Recorder
from flux_memory.testkit.histories.stored import Numbers, Stored, StoredSession, read_stored
from flux_memory.testkit.histories.violations import Violation

__all__ = [
    "History",
    "Journal",
    "Numbers",
    "Operation",
    "Recorder",
    "Sent",
    "Stored",
    "StoredSession",
    "Violation",
    "call_as_anyone",
    "check",
    "read_stored",
]
