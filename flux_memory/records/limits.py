"""Defines the size limits that both backends share; a larger value is refused, never truncated."""

from typing import Final

MAX_ID_LENGTH: Final = 255
"""Characters of a session's or a message's id."""
MAX_USER_ID_LENGTH: Final = 255
"""Characters of a `user_id`; it is indexed, and PostgreSQL cannot index a long text."""
MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024
"""Bytes of UTF-8 of a message's content, and of a title or a role."""
MAX_METADATA_BYTES: Final = 16 * 1024 * 1024
"""Bytes of metadata as JSON."""
MAX_METADATA_DEPTH: Final = 100
"""Nesting of metadata: `{}` is 1 deep, `{"a": []}` is 2."""
MAX_FILTER_VALUES: Final = 100
"""Values of a metadata filter, at any depth; each is looked up in the metadata of every candidate."""
MAX_FILTER_ELEMENTS: Final = 16
"""Values within the arrays of a metadata filter; each may be compared with every element of a stored array."""
MAX_BATCH_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a batch's ids, roles, contents and metadata. PostgreSQL takes a batch as one message, below 1 GB."""
