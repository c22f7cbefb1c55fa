"""Tests that a server starts from the user's cache as from `initdb`, and that the cache gives nothing away."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from flux_memory.testkit.servers import ServerUnavailable, local, start_server
from flux_memory.testkit.servers.cluster_cache import ClusterArchive, archive_of
from flux_memory.testkit.servers.running import NotAnswered
from flux_memory.testkit.servers.statements import Statements

CHECKS: Final = (
    "SELECT string_agg(name || ' ' || setting, ', ' ORDER BY name) FROM pg_settings WHERE name IN ({})".format(
        ", ".join(f"'{name}'" for name in ("server_encoding", "lc_messages", "wal_segment_size", "data_checksums"))
    )
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that does not exist yet."""
    monkeypatch.setenv("FLUX_MEMORY_PG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ask(dsn: str, query: str) -> object:
    with closing(Statements(own_server=True)) as statements:
        return statements.fetch_value(dsn, query)


def test_a_cached_cluster_is_the_one_that_initdb_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: the second server starts without `initdb`, has the same properties and a password of its own."""
    with start_server("local") as first:
        properties = ask(first.dsn, CHECKS)
        passwords = {urlsplit(first.dsn).password}
    (archive,) = cache.iterdir()
    monkeypatch.setattr(local, "_initialise", None)
    for _ in range(2):
        with start_server("local") as server:
            assert ask(server.dsn, CHECKS) == properties
            assert ask(server.create_database(), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
            kept = archive.read_bytes().partition(b"\n")[0].decode()
            parts = urlsplit(server.dsn)
            passwords.add(parts.password)
            with pytest.raises(NotAnswered, match="password authentication failed"):
                ask(parts._replace(netloc=f"postgres:{kept}@127.0.0.1:{parts.port}").geturl(), "SELECT 1")
    assert len(passwords) == 3
    assert list(cache.iterdir()) == [archive]


def test_only_this_user_can_read_the_cache(cache: Path) -> None:
    """Promise: the directory and the archive, which has a password, are closed to other users."""
    with start_server("local"):
        pass
    (archive,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o077, archive.stat().st_mode & 0o077) == (0, 0)
    assert {cache.stat().st_uid, archive.stat().st_uid} == {os.geteuid()}


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "another password", "not a text", "readable by others", "a link"]
)
def test_a_damaged_archive_is_replaced(cache: Path, tmp_path: Path, damage: str) -> None:
    """Promise: an archive that is damaged, or that another user may have written, costs time and nothing else."""
    with start_server("local"):
        pass
    (archive,) = cache.iterdir()
    content = archive.read_bytes()
    if damage == "truncated":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        archive.write_bytes(b"")
    elif damage == "another password":
        archive.write_bytes(b"x" + content)
    elif damage == "not a text":
        archive.write_bytes(b"\xff" * len(content))
    elif damage == "readable by others":
        archive.chmod(0o644)
    else:
        archive.rename(tmp_path / "elsewhere")
        archive.symlink_to(tmp_path / "elsewhere")
    with start_server("local") as server:
        assert ask(server.dsn, "SELECT 1") == 1
    assert not archive.is_symlink()
    assert archive.stat().st_mode & 0o077 == 0
    assert len(archive.read_bytes()) == len(content)


def test_a_cache_that_cannot_be_written_is_left_out(cache: Path) -> None:
    """Promise: a server starts where the cache directory cannot be created."""
    cache.write_text("in the way")
    with start_server("local") as server:
        assert ask(server.dsn, "SELECT 1") == 1
    assert cache.read_text() == "in the way"


def test_a_cache_that_cannot_be_looked_at_is_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: a server starts where the system refuses the cache's path, as with the HOME of another user."""
    cache.mkdir()
    monkeypatch.setenv("FLUX_MEMORY_PG_CACHE", str(cache / ("long" * 100)))
    with start_server("local") as server:
        assert ask(server.dsn, "SELECT 1") == 1


def test_the_cache_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: with `off`, nothing is written to the home directory."""
    monkeypatch.setenv("FLUX_MEMORY_PG_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with start_server("local"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_settings_that_do_not_start_are_reported_with_a_cache() -> None:
    """Promise: a wrong setting is the error, whether or not the cluster was cached."""
    with start_server("local"):
        pass
    with (
        pytest.raises(ServerUnavailable, match="no_such_setting"),
        start_server("local", settings={"no_such_setting": "1"}),
    ):
        pass


def test_each_build_and_its_options_have_an_archive(tmp_path: Path) -> None:
    """Promise: another build of PostgreSQL never starts from a cluster of this one; a copy of the same build does."""
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for program in ("initdb", "postgres"):
            (tmp_path / name / program).write_text(name)
        found |= {archive_of(tmp_path / name, options) for options in (["--x"], ["--y"])}
    (tmp_path / "b" / "postgres").write_text("newer")
    found.add(archive_of(tmp_path / "b", ["--x"]))
    assert len(found) == 5
    (tmp_path / "b" / "postgres").write_text("a")
    (tmp_path / "b" / "initdb").write_text("a")
    assert archive_of(tmp_path / "b", ["--x"]) == archive_of(tmp_path / "a", ["--x"])
    assert archive_of(tmp_path / "nowhere", []) is None


def test_archives_that_are_not_used_are_removed(cache: Path) -> None:
    """Promise: the cache does not grow for ever; other files in its directory stay."""
    old = time.time() - 40 * 86400
    cache.mkdir(mode=0o700)
    for name in ("cluster-old.tar", "cluster-killed-x.draft", "other.tar"):
        (cache / name).write_text("")
        os.utime(cache / name, (old, old))
    used = ClusterArchive(cache / "cluster-used.tar")
    with used.rewrite("secret"):
        pass
    os.utime(used.path, (old, old))
    opened = used.open()
    assert opened is not None
    opened[0].close()
    assert opened[1] == "secret"
    with ClusterArchive(cache / "cluster-new.tar").rewrite("secret") as file:
        file.write(b"content")
    assert {path.name for path in cache.iterdir()} == {"cluster-used.tar", "cluster-new.tar", "other.tar"}


def test_a_file_without_a_line_is_not_read_to_its_end(cache: Path) -> None:
    """Promise: a damaged archive of any length is recognised by its beginning."""
    archive = ClusterArchive(cache / "cluster-x.tar")
    with archive.rewrite("x" * 1_000_000):
        pass
    opened = archive.open()
    assert opened is not None
    with opened[0] as file:
        assert file.tell() < 10_000


def test_an_archive_is_never_half_written(cache: Path) -> None:
    """Promise: packing that fails leaves no archive and no draft."""
    archive = ClusterArchive(cache / "cluster-x.tar")
    with pytest.raises(OSError, match="full"), archive.rewrite("secret"):
        raise OSError("full")
    assert list(cache.iterdir()) == []
