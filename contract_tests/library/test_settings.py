"""Tests settings: the environment and `.env`, their precedence, and that secrets stay secret."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ordinary_user import become_ordinary_user

from flux_memory import Settings
from flux_memory.dsn import SecretText
from flux_memory.errors import InvalidInputError
from flux_memory.settings import load_settings

Environment = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, clean_environment: pytest.MonkeyPatch) -> Environment:
    """Sets variables, and `.env` with `dotenv=`, in an otherwise clean environment."""

    def put(dotenv: str = "", **variables: str) -> None:
        (tmp_path / ".env").write_text(dotenv, encoding="utf-8")
        for name, value in variables.items():
            clean_environment.setenv(name, value)

    return put


def test_the_defaults_are_a_sqlite_file_below_the_working_directory() -> None:
    """The library works without configuration."""
    settings = load_settings()
    assert settings.database_backend == "sqlite"
    assert settings.sqlite_path == "./data/sqlite.db"
    assert settings.postgres_dsn is None


def test_the_environment_is_read(environment: Environment) -> None:
    """The original application's variable names work."""
    environment(DATABASE_BACKEND="postgres", POSTGRES_DSN="postgresql://h/d", DATABASE_URL="sqlite:///x.db")
    settings = load_settings()
    assert (settings.database_backend, settings.require_postgres_dsn()) == ("postgres", "postgresql://h/d")
    assert settings.sqlite_path == "x.db"


@pytest.mark.parametrize("name", ["POSTGRES_REPLICA_DSN", "FLUX_MEMORY_POSTGRES_REPLICA_DSN"])
def test_the_replicas_are_optional(environment: Environment, name: str) -> None:
    """Without the setting, or with an empty one, there are none; a password shows in no repr."""
    environment()
    assert load_settings().find_replica_dsn() is None
    environment(**{name: ""})
    assert load_settings().find_replica_dsn() is None
    environment(**{name: "postgresql://u:secret@one,two/d"})
    settings = load_settings()
    assert settings.find_replica_dsn() == "postgresql://u:secret@one,two/d"
    assert "secret" not in repr(settings) + repr(settings.find_replica_dsn())


@pytest.mark.parametrize("where", ["environment", "dotenv", "mixed"])
def test_the_prefix_wins(environment: Environment, where: str) -> None:
    """An application with its own DATABASE_URL can give the library another one, in the environment or in `.env`."""
    plain, own = "DATABASE_URL", "FLUX_MEMORY_DATABASE_URL"
    if where == "environment":
        environment(**{plain: "sqlite:///theirs.db", own: "sqlite:///ours.db"})
    elif where == "dotenv":
        environment(f"{plain}=sqlite:///theirs.db\n{own}=sqlite:///ours.db\n")
    else:
        environment(f"{own}=sqlite:///ours.db\n", **{plain: "sqlite:///theirs.db"})
    assert load_settings().sqlite_path == "ours.db"


def test_the_environment_wins_over_dotenv(environment: Environment) -> None:
    """A variable set for one run wins over the file."""
    environment("DATABASE_BACKEND=sqlite\n", DATABASE_BACKEND="postgres")
    assert load_settings().database_backend == "postgres"


def test_unknown_keys_are_no_error(environment: Environment) -> None:
    """The `.env` file belongs to the application, and most of its keys are unknown to the library."""
    environment("OPENAI_API_KEY=x\nFLUX_MEMORY_SOMETHING=y\nDATABASE_BACKEND=postgres\n", FLUX_MEMORY_OTHER="z")
    assert load_settings().database_backend == "postgres"


@pytest.mark.parametrize("wrong", [{"backend": "postgres"}, {"dsn": "secret"}])
def test_an_unknown_keyword_is_an_error(environment: Environment, wrong: dict[str, str]) -> None:
    """A typo would silently write to a SQLite file instead of PostgreSQL."""
    environment()
    with pytest.raises(InvalidInputError, match=rf"has no {next(iter(wrong))}; it has database_backend,") as caught:
        Settings(**wrong)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert "secret" not in str(caught.value)


def test_keywords_may_have_the_prefix(environment: Environment) -> None:
    """Keywords are the environment's names in lower case, with or without the prefix."""
    environment(DATABASE_BACKEND="sqlite")
    settings: Any = Settings(flux_memory_database_backend="postgres")  # type: ignore[call-arg]
    assert settings.database_backend == "postgres"


def test_settings_can_be_subclassed(environment: Environment) -> None:
    """A subclass may add settings."""
    environment(APP_NAME="chat")

    class Own(Settings):
        app_name: str = ""

    assert (Own().app_name, Own(app_name="other", database_backend="postgres").app_name) == ("chat", "other")
    with pytest.raises(InvalidInputError, match="app_title"):
        Own(app_title="x")  # type: ignore[call-arg]


def test_overrides_win_over_everything(environment: Environment) -> None:
    """The command line's options win, with or without the prefix."""
    environment("FLUX_MEMORY_POSTGRES_DSN=postgresql://file/d\n", FLUX_MEMORY_DATABASE_BACKEND="sqlite")
    settings = load_settings(database_backend="postgres", postgres_dsn="postgresql://given/d")
    assert (settings.database_backend, settings.require_postgres_dsn()) == ("postgres", "postgresql://given/d")


def test_an_override_that_is_not_utf8_is_named(environment: Environment) -> None:
    """Bytes on the command line that are not UTF-8 raise an error of the library without the password."""
    environment()
    with pytest.raises(InvalidInputError, match="the setting POSTGRES_DSN is wrong") as caught:
        load_settings(database_backend="postgres", postgres_dsn=SecretText("postgresql://u:secret@h/d\udcff"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["mysql", "Postgres", ""])
def test_an_unknown_backend_is_named(environment: Environment, value: str) -> None:
    """The error names the setting and its valid values."""
    environment(DATABASE_BACKEND=value, POSTGRES_DSN="postgresql://u:secret@h/d")
    with pytest.raises(
        InvalidInputError, match=r"the setting DATABASE_BACKEND is wrong: .*'sqlite' or 'postgres'"
    ) as caught:
        load_settings()
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite+aiosqlite:///./data/sqlite.db", "./data/sqlite.db"),
        ("sqlite:////var/lib/chat.db", "/var/lib/chat.db"),
        ("sqlite:///chat.db?timeout=5", "chat.db"),
        ("sqlite:///with%20space%3F%25.db", "with space?%.db"),
        ("sqlite+aiosqlite://", ":memory:"),
        ("sqlite+aiosqlite:///:memory:", ":memory:"),
    ],
)
def test_the_path_in_the_url(environment: Environment, url: str, path: str) -> None:
    """SQLAlchemy's form of the URL: three slashes are relative, four absolute."""
    environment(DATABASE_URL=url)
    assert load_settings().sqlite_path == path


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///", "sqlite:///?timeout=5"])
def test_a_url_whose_path_is_missing_keeps_nothing_in_memory(environment: Environment, url: str) -> None:
    """`sqlite:///$CHAT_DB` with an unset variable would keep everything in memory and lose it with the process."""
    environment(DATABASE_URL=url)
    with pytest.raises(InvalidInputError, match="DATABASE_URL names no file"):
        _ = load_settings().sqlite_path


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "chat.db", "", "user:secret@host", "secret://x"])
def test_a_url_that_is_not_of_sqlite_says_what_to_write(environment: Environment, url: str) -> None:
    """Platforms put a PostgreSQL DSN into DATABASE_URL: the error says what to do, without the password."""
    environment(DATABASE_URL=url)
    with pytest.raises(InvalidInputError, match="set DATABASE_BACKEND=postgres and POSTGRES_DSN") as caught:
        _ = load_settings().sqlite_path
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_dsn_says_what_to_set(environment: Environment, value: str | None) -> None:
    """The error for a backend without its DSN names the variable and shows the form."""
    environment(DATABASE_BACKEND="postgres", **({} if value is None else {"POSTGRES_DSN": value}))
    with pytest.raises(InvalidInputError, match="POSTGRES_DSN is not set; set it to postgresql://"):
        load_settings().require_postgres_dsn()


def test_a_password_never_shows_in_a_repr(environment: Environment) -> None:
    """Settings end up in logs."""
    environment(POSTGRES_DSN="postgresql://u:secret@h/d", DATABASE_URL="postgresql://u:secret@h/d")
    settings = load_settings()
    assert "secret" not in f"{settings!r} {settings} {settings.postgres_dsn}"


def test_an_error_of_pydantic_hides_its_input() -> None:
    """The error of `Settings(...)` with a wrong value does not contain the password."""
    with pytest.raises(ValueError, match="postgres_dsn") as caught:
        Settings(postgres_dsn=["postgresql://u:secret@h/d"])  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_dotenv_that_may_not_be_read_is_named() -> None:
    """A service whose user may not read the file gets a clear error instead of a traceback."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        file = Path(name) / ".env"
        file.write_text("DATABASE_BACKEND=postgres\n")
        file.chmod(0)
        Path(name).chmod(0o755)
        os.chdir(name)
        with (
            become_ordinary_user(),
            pytest.raises(InvalidInputError, match=r"the file \.env cannot be read \(Permission denied\)"),
        ):
            load_settings()


def test_a_dotenv_in_another_encoding_is_named(tmp_path: Path) -> None:
    """The error says what to do and does not quote the file, which holds the password."""
    (tmp_path / ".env").write_bytes(b"POSTGRES_DSN=postgresql://u:secret\xff@h/d\n")
    with pytest.raises(InvalidInputError, match=r"\.env is not UTF-8") as caught:
        load_settings()
    assert caught.value.__suppress_context__
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_telemetry_and_slow_calls_are_set_by_names_with_the_prefix(environment: Environment) -> None:
    """Other programs use the names without it: their values neither switch anything on nor stop the application."""
    environment(TELEMETRY="honeycomb", SLOW_CALL_SECONDS="never")
    assert (load_settings().telemetry, load_settings().slow_call_seconds) == (False, None)
    environment("TELEMETRY=x\nFLUX_MEMORY_SLOW_CALL_SECONDS=2.5", FLUX_MEMORY_TELEMETRY="1")
    assert (load_settings().telemetry, load_settings().slow_call_seconds) == (True, 2.5)
    given = Settings(telemetry=False, slow_call_seconds=1)
    assert (given.telemetry, given.slow_call_seconds) == (False, 1.0)


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_wrong_threshold_for_slow_calls_is_named(wrong: str, environment: Environment) -> None:
    """A mistake in a variable shows at once, with the variable's name."""
    environment(FLUX_MEMORY_SLOW_CALL_SECONDS=wrong)
    with pytest.raises(InvalidInputError, match="the setting FLUX_MEMORY_SLOW_CALL_SECONDS is wrong"):
        load_settings()
