"""The options of the throwaway PostgreSQL that describe the server, and their values."""

# ruff: noqa: PLC0415 - every pytest run imports this module, so the rest waits until a test needs a server
from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from flux_memory.testkit.servers.running import Wishes

_INI: Final = "flux_postgres_settings"
_SETTING: Final = re.compile(r"\s*([A-Za-z_][\w.]*)\s*=\s*(.*?)\s*")
_MAJOR: Final = re.compile(r"[1-9]\d")


def add_server_options(parser: pytest.Parser) -> None:
    """Add the options to pytest's parser."""
    group = parser.getgroup("flux-memory", "flux-memory")
    group.addoption(
        "--flux-postgres-version",
        default=None,
        metavar="VERSIONS",
        help="Run the tests that use PostgreSQL on each of these major versions, such as 14,16,18. A missing one skips "
        "its tests; with --flux-postgres-required, a named server or the variable CI, they fail.",
    )
    group.addoption(
        "--flux-postgres-setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="A setting of the server that is started for the run, such as max_connections=50; may be repeated.",
    )
    parser.addini(
        _INI,
        type="linelist",
        default=[],
        help="Settings of the server that is started for the run, one NAME=VALUE a line.",
    )


def check_server_options(config: pytest.Config) -> None:
    """Refuse malformed values before any test runs.

    Raises:
        pytest.UsageError: A value is malformed.
    """
    _check_settings(config)
    versions_of(config)


def settings_of(config: pytest.Config) -> dict[str, str]:
    """Return the server's settings; the command line takes precedence over the ini file."""
    settings: dict[str, str] = {}
    lines = [(_INI, line) for line in config.getini(_INI)]
    lines += [("--flux-postgres-setting", line) for line in config.option.flux_postgres_setting]
    for source, line in lines:
        if (found := _SETTING.fullmatch(line)) is None:
            raise pytest.UsageError(f"{source}: {line!r} is not a setting; write it as NAME=VALUE")
        settings[found[1]] = found[2]
    return settings


def _check_settings(config: pytest.Config) -> None:
    if settings := settings_of(config):
        from flux_memory.testkit.servers.running import Wishes

        try:
            Wishes("", settings=settings)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


def versions_of(config: pytest.Config) -> tuple[str, ...]:
    """Return the wanted major versions; empty for any."""
    said: str | None = config.option.flux_postgres_version
    versions = [] if said is None else [version.strip() for version in said.split(",")]
    for version in versions:
        if not _MAJOR.fullmatch(version):
            raise pytest.UsageError(
                f"--flux-postgres-version: {version!r} is not a major version; write them as 14,16,18"
            )
    return tuple(dict.fromkeys(versions))


def wishes_of(config: pytest.Config, version: str | None) -> Wishes:
    """Return how to start the run's server of a major version; None for any."""
    from flux_memory.testkit.servers.choice import default_image
    from flux_memory.testkit.servers.running import Wishes

    image: str | None = config.option.flux_postgres_image
    return Wishes(image or default_image(), settings=settings_of(config), version=version)
