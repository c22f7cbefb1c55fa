"""The writes of a store whose tables are on one server: one statement each, which may add to many sessions."""

from __future__ import annotations

from typing import Final

from flux_memory.backends.postgres import adds, creating, deleting, queries, updating
from flux_memory.backends.postgres.write_path import WritePath

ONE_SERVER: Final = WritePath(
    insert_session=creating.INSERT_SESSION,
    insert_session_with_messages=creating.INSERT_SESSION_WITH_MESSAGES,
    fork_session=creating.FORK_SESSION,
    update_title=updating.UPDATE_TITLE,
    pop_message=updating.POP_MESSAGE,
    update_session=updating.UPDATE_SESSION,
    delete_session=deleting.DELETE_SESSION,
    add=adds.add,
    delete_sessions=deleting.delete_sessions,
    select_page=queries.select_page,
    shares_statements=True,
    remote_failures=(),
)
