"""Defines the library's exceptions, which all derive from `FluxMemoryError`.

A driver's exception never escapes; it stays in `__cause__`. Messages name the next step and never show a password.
"""


class FluxMemoryError(Exception):
    """The base of all errors; raised itself for a stored row that cannot be read."""


class InvalidInputError(FluxMemoryError, ValueError):
    """An argument breaks the contract; raised before any I/O, so nothing was stored."""


class InvalidTypeError(InvalidInputError, TypeError):
    """An argument has the wrong type. Catch it as `InvalidInputError` or as `TypeError`."""


class SessionNotFoundError(FluxMemoryError, LookupError):
    """The session to write to does not exist; nothing was stored."""


class ConflictError(FluxMemoryError):
    """An id is taken or unknown, or a revision or an owner differs from the expected one; nothing was changed."""


class MemoryClosedError(FluxMemoryError):
    """The memory was closed; open another one."""


class BackendUnavailableError(FluxMemoryError, ConnectionError):
    """The store could not be reached, or did not answer within the deadline.

    A write was not stored, unless the error is an `OutcomeUnknownError`.
    """


class OutcomeUnknownError(BackendUnavailableError):
    """A write was sent but not acknowledged: it may or may not be stored. Retry with the same ids, or read back."""


class SchemaError(FluxMemoryError):
    """The database's schema is newer than the library, was changed by hand, or cannot be adopted."""


class MigrationError(FluxMemoryError):
    """A transfer between backends stopped; the message names the place and the next step."""


class BackupError(FluxMemoryError):
    """A backup or a restore stopped; the message names the file and the next step."""
