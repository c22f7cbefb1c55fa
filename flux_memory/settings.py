"""Reads the configuration from the environment and from `.env`."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import unquote

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from flux_memory.dsn import SecretText
from flux_memory.errors import InvalidInputError, InvalidTypeError


def _names(field: str) -> AliasChoices:
    return AliasChoices(f"flux_memory_{field}", field)


_PREFIXED: Final = frozenset({"slow_call_seconds", "telemetry"})
"""Settings that are read with the prefix only: without it, they may be those of another program."""


class _PrefixedOnly(PydanticBaseSettingsSource):
    """Reads a source, but not the names in `_PREFIXED`."""

    def __init__(self, source: PydanticBaseSettingsSource) -> None:
        super().__init__(source.settings_cls)
        self._source = source

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the source has for a field."""
        return self._source.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        """Return all values of the source."""
        return {name: value for name, value in self._source().items() if name not in _PREFIXED}


class Settings(BaseSettings):
    """The backend of a memory, and the address of its store.

    Each setting is read from the environment, then from `.env` in the working directory; the name with the prefix
    `FLUX_MEMORY_` wins over the one without; `slow_call_seconds` and `telemetry` need the prefix. Unknown keys there
    are ignored, as other programs use them; an unknown keyword argument raises. A password never shows in a repr.

    Raises:
        InvalidInputError: A keyword argument is not a setting.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        # An editor on Windows may write a byte order mark, which would become a part of the first name.
        env_file_encoding="utf-8-sig",
        extra="ignore",
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    database_backend: Literal["sqlite", "postgres"] = Field(
        default="sqlite", validation_alias=_names("database_backend")
    )
    database_url: str = Field(
        default="sqlite+aiosqlite:///./data/sqlite.db", validation_alias=_names("database_url"), repr=False
    )
    """The SQLite file: `sqlite+aiosqlite:///` and a path. Not in the repr: hosting platforms set it to DSNs."""
    postgres_dsn: SecretStr | None = Field(default=None, validation_alias=_names("postgres_dsn"))
    """`postgresql://user:password@host:5432/database`."""
    postgres_replica_dsn: SecretStr | None = Field(default=None, validation_alias=_names("postgres_replica_dsn"))
    """`postgresql://user:password@one:5432,two:5432/database`: streaming replicas for reads."""

    slow_call_seconds: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, validation_alias="flux_memory_slow_call_seconds"
    )
    """Seconds from which a call is logged as slow, with the plans of its statements; `None` for never."""
    telemetry: bool = Field(default=False, validation_alias="flux_memory_telemetry")
    """Whether `create_memory()` measures the memory by OpenTelemetry; needs `flux-memory[otel]`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Refuse unknown keyword arguments; keep the sources."""
        fields = list(settings_cls.model_fields)
        known = {*fields, *(f"flux_memory_{name}" for name in fields)}
        if unknown := sorted(init_settings().keys() - known):
            raise InvalidTypeError(f"Settings() has no {', '.join(unknown)}; it has {', '.join(fields)}")
        return init_settings, _PrefixedOnly(env_settings), _PrefixedOnly(dotenv_settings), file_secret_settings

    @property
    def sqlite_path(self) -> str:
        """The path that `database_url` names.

        Raises:
            InvalidInputError: `database_url` is not a SQLite URL, or names no file.
        """
        if self.database_url.strip("'\" ") != self.database_url or not self.database_url.isprintable():
            raise InvalidInputError(
                "DATABASE_URL begins or ends with a quote or a space, or has an invisible character such as a line "
                "break; remove it, or write it as an escape such as %20 if it belongs to the file's name"
            )
        scheme, _, rest = self.database_url.partition("://")
        if scheme not in {"sqlite", "sqlite+aiosqlite"}:
            raise InvalidInputError(
                "DATABASE_URL is not a SQLite URL and the backend is sqlite; write "
                "sqlite+aiosqlite:///./data/sqlite.db, or set DATABASE_BACKEND=postgres and POSTGRES_DSN"
            )
        path = unquote(rest.partition("?")[0])
        if path == "/":
            raise InvalidInputError(
                "DATABASE_URL names no file, perhaps because a variable is not set; write "
                "sqlite+aiosqlite:///./data/sqlite.db, or sqlite+aiosqlite:///:memory: for a store that ends with its "
                "handle"
            )
        return path.removeprefix("/") or ":memory:"

    def require_postgres_dsn(self) -> SecretText:
        """Return the DSN with its password; its repr shows neither.

        Raises:
            InvalidInputError: `postgres_dsn` is not set.
        """
        if self.postgres_dsn is None or not self.postgres_dsn.get_secret_value():
            raise InvalidInputError("POSTGRES_DSN is not set; set it to postgresql://user:password@host:5432/database")
        return SecretText(self.postgres_dsn.get_secret_value())

    def find_replica_dsn(self) -> SecretText | None:
        """Return the DSN of the replicas, whose repr does not show the password, or `None` if it is not set."""
        found = self.postgres_replica_dsn and self.postgres_replica_dsn.get_secret_value()
        return SecretText(found) if found else None


def load_settings(**overrides: str) -> Settings:
    """Read the settings of the environment and `.env`.

    Args:
        overrides: Fields that take precedence.

    Raises:
        InvalidInputError: A setting is invalid; the message names it.
    """
    try:
        return Settings.model_validate({**Settings().model_dump(), **overrides})
    except UnicodeDecodeError:
        # The error's repr shows the file, passwords included.
        raise InvalidInputError("the file .env is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InvalidInputError(f"the file .env cannot be read ({error.strerror}); check its permissions") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise InvalidInputError(f"the setting {str(first['loc'][0]).upper()} is wrong: {first['msg']}") from None
