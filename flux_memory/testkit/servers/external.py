"""An external PostgreSQL: each run creates its own databases and does not touch others."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from flux_memory.testkit.servers.running import NotAnswered, ServerUnavailable, Wishes
from flux_memory.testkit.servers.statements import ESCAPE, Statements

DSN_VARIABLE: Final = "FLUX_MEMORY_TEST_DSN"
_MAY_CREATE: Final = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
_IS_DURABLE: Final = "SELECT current_setting('fsync')::bool AND current_setting('full_page_writes')::bool"


@dataclass(frozen=True)
class ExternalServer:
    """A server that exists before the run and stays after it."""

    dsn: str
    origin: str

    @property
    def socket_dsn(self) -> str | None:
        """The DSN itself if it names a socket directory."""
        parts = urlsplit(self.dsn)
        host = parts.hostname or dict(parse_qsl(parts.query)).get("host", "")
        return self.dsn if host.startswith("/") else None

    @property
    def is_own(self) -> bool:
        """False: as with any DSN, `PG*` variables add what it lacks."""
        return False

    def log_tail(self, lines: int) -> str:
        """Return nothing: the log belongs to the server's owner."""
        return ""

    def stop(self) -> None:
        """Do nothing: the owner stops the server."""


def attach(dsn: str, named_by: str, wishes: Wishes) -> ExternalServer:
    """Check that the server answers and lets the role create databases."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        # The error's message may quote the password.
        raise ServerUnavailable(f"{named_by}: the DSN cannot be parsed; {ESCAPE}") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ServerUnavailable(f"{named_by}: the DSN must begin with postgresql://")
    if parts.netloc.count("@") > 1:
        # The driver would end the password at the first '@' and look up the rest of it as a host.
        raise ServerUnavailable(f"{named_by}: the DSN has two '@'; {ESCAPE}")
    if wishes.settings:
        raise ServerUnavailable(
            f"{named_by}: settings need a server that is started for the run; remove them or the DSN"
        )
    with closing(Statements(own_server=False)) as statements:
        try:
            may_create = statements.fetch_value(dsn, _MAY_CREATE)
            durable = statements.fetch_value(dsn, _IS_DURABLE)
        except NotAnswered as error:
            advice = "start it, or correct the DSN"
            raise ServerUnavailable(f"{named_by}: the server does not answer: {error}; {advice}") from error
    if not may_create:
        raise ServerUnavailable(f"{named_by}: the role may not create databases: ALTER ROLE ... CREATEDB")
    if wishes.durable and not durable:
        raise ServerUnavailable(f"{named_by}: the server runs without fsync or full_page_writes")
    return ExternalServer(dsn, named_by)
