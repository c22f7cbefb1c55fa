"""Gives the adds to each server of a cluster a writer of their own: a slow server delays its own sessions only."""

from __future__ import annotations

from collections.abc import Hashable

from flux_memory.backends.postgres.retry import RetryingExecutor
from flux_memory.backends.postgres.writer import MessageWriter


class MessageWriters:
    """A `MessageWriter` for each server that holds sessions; there is one server without a cluster.

    Args:
        executor: Runs the statements.
    """

    def __init__(self, executor: RetryingExecutor) -> None:
        self._executor = executor
        self._writers: dict[Hashable, MessageWriter] = {}

    def find(self, session_id: str) -> MessageWriter:
        """Return the writer for the next add to a session.

        A session that was moved keeps its writer until its calls are answered, so that they stay in order.
        """
        server = self._executor.path.find_server(session_id)
        writer = self._writers.get(server)
        if writer is None:
            writer = self._writers[server] = MessageWriter(self._executor)
        if len(self._writers) > 1 and not writer.has_calls(session_id):
            return next((each for each in self._writers.values() if each.has_calls(session_id)), writer)
        return writer
