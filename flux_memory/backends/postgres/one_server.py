"""The writes of a store whose tables are on one server: one statement each, which may add to many sessions."""

from __future__ import annotations

from typing import Final

from flux_memory.backends.postgres import adds, deleting, queries
from flux_memory.backends.postgres.write_path import WritePath

ONE_SERVER: Final = WritePath(
    statement=str,
    add=adds.add,
    delete_batch=deleting.delete_batch,
    select_page=queries.select_page,
    has_shortcuts=True,
    tables="",
    find_server=lambda _: None,
    remote_failures=(),
)
