"""The exception family: everything the library raises on purpose derives from `FluxMemoryError`.

A driver's exception never escapes; it stays in `__cause__`. Messages say what to do and never show a password.
"""


class FluxMemoryError(Exception):
    """The base of the family, and the error of a stored row that cannot be read."""


class InvalidInputError(FluxMemoryError, ValueError):
    """An argument breaks a promise of the contract; raised before any I/O, so nothing was stored."""


class InvalidTypeError(InvalidInputError, TypeError):
    """An argument has the wrong type. Catch it as `InvalidInputError` or as `TypeError`."""


class SessionNotFoundError(FluxMemoryError, LookupError):
    """The session to write to does not exist; nothing was stored."""


class ConflictError(FluxMemoryError):
    """The id given is taken: a session's, or a message's with another content. Nothing was stored."""


class MemoryClosedError(FluxMemoryError):
    """The memory was closed. Open another handle."""


class BackendUnavailableError(FluxMemoryError, ConnectionError):
    """The store could not be reached, or did not answer within the deadline.

    A write was not stored, unless the error is an `OutcomeUnknownError`.
    """


class OutcomeUnknownError(BackendUnavailableError):
    """A write was sent and not acknowledged: it may or may not be stored. Retry with the same ids, or look."""


class SchemaError(FluxMemoryError):
    """The database's schema is newer than the library, was changed by hand, or cannot be adopted."""


class MigrationError(FluxMemoryError):
    """A transfer between backends stopped; the message says where, and how to go on."""
