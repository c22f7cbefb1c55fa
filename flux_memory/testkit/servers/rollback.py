"""One transaction a test that is rolled back, although the tested code commits: its commits end savepoints only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import cached_property
from importlib import import_module
from typing import Any, Final

from flux_memory.testkit.servers.database import PostgresDatabase

_SAVEPOINT: Final = "flux_rollback"
_JOINED: Final = "create_savepoint"
"""The mode in which a session of SQLAlchemy commits to a savepoint of the transaction that it joins."""


class Rollback:
    """The value of the fixture `flux_postgres_rollback`. The drivers have separate transactions.

    Args:
        database: The database; it keeps its tables, and the values of its sequences.
    """

    def __init__(self, database: PostgresDatabase) -> None:
        self.database: Final = database
        self._stack = ExitStack()
        self._connections: dict[str, Any] = {}

    def psycopg(self) -> Any:
        """Return the test's `psycopg.Connection`, always the same. `commit()` and `rollback()` end a savepoint.

        So do the ends of `with connection:`, which leaves it open, and of a `connection.transaction()` that would begin
        a transaction.

        Raises:
            ModuleNotFoundError: psycopg is not installed.
        """
        return self._psycopg

    @cached_property
    def _psycopg(self) -> Any:
        driver = _import("psycopg", "psycopg()", "psycopg[binary]")
        failed = driver.pq.TransactionStatus.INERROR

        class RolledBackConnection(driver.Connection):  # type: ignore[name-defined,misc]  # an optional package
            is_idle = False
            """Whether the tested code has no transaction: nothing was sent since the savepoint."""

            def wait(self, *arguments: Any, **options: Any) -> Any:
                # Each statement is sent by it.
                self.is_idle = False
                return super().wait(*arguments, **options)

            @contextmanager
            def transaction(self, *arguments: Any, **options: Any) -> Iterator[Any]:
                begins = self.is_idle
                try:
                    with super().transaction(*arguments, **options) as transaction:
                        yield transaction
                finally:
                    if begins and not self.closed:
                        self.commit()

            def __exit__(self, kind: object, error: object, trace: object) -> None:
                if self.closed:
                    return
                if kind is None:
                    self.commit()
                else:
                    self.rollback()

            def commit(self) -> None:
                if self.info.transaction_status == failed:
                    # As the server does: committing a failed transaction rolls it back.
                    self.rollback()
                else:
                    # A pipeline takes one command at a time.
                    self.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
                    self.execute(f"SAVEPOINT {_SAVEPOINT}")
                    self.is_idle = True

            def rollback(self) -> None:
                self.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                self.is_idle = True

        connection = RolledBackConnection.connect(**self.database.psycopg())
        # The server rolls the transaction back.
        self._stack.callback(connection.close)
        connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        connection.is_idle = True
        return connection

    @asynccontextmanager
    async def asyncpg(self) -> AsyncIterator[Any]:
        """Yield an `asyncpg.Connection` within a transaction. Its `transaction()` blocks are savepoints.

        A statement that fails outside such a block ends what the connection can do, as in any transaction.
        """
        driver = import_module("asyncpg")
        connection = await driver.connect(**self.database.asyncpg())
        try:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            finally:
                # A lost connection has been rolled back by the server.
                with suppress(OSError, driver.PostgresError, driver.InterfaceError):
                    await transaction.rollback()
        finally:
            await connection.close()

    def sqlalchemy(self, driver: str = "psycopg", **options: Any) -> Any:
        """Return a new `sqlalchemy.orm.Session`. All sessions of a test share one connection and see each other's rows.

        Args:
            driver: The driver in the URL of the engine.
            options: Further arguments of the session.

        Raises:
            ModuleNotFoundError: SQLAlchemy or the driver is not installed.
        """
        session_class = _import("sqlalchemy.orm", "sqlalchemy()", "sqlalchemy").Session
        connection = self.sqlalchemy_connection(driver)
        session = session_class(bind=connection, join_transaction_mode=_JOINED, **options)
        self._stack.callback(session.close)
        return session

    def sqlalchemy_connection(self, driver: str = "psycopg") -> Any:
        """Return the test's `sqlalchemy.Connection`, for an application's own factory of sessions.

        Bind the factory to it: `Session.configure(bind=connection, join_transaction_mode="create_savepoint")`.
        """
        if driver not in self._connections:
            sqlalchemy = _import("sqlalchemy", "sqlalchemy()", "sqlalchemy")
            url = self.database.sqlalchemy_url(driver)
            _import(driver, f"sqlalchemy({driver!r})", driver)
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
            connection = engine.connect()
            self._stack.callback(connection.close)
            self._stack.callback(connection.begin().close)
            self._connections[driver] = connection
        return self._connections[driver]

    @asynccontextmanager
    async def sqlalchemy_async(self, driver: str = "asyncpg", **options: Any) -> AsyncIterator[Any]:
        """Yield a `sqlalchemy.ext.asyncio.AsyncSession`; the arguments are those of `sqlalchemy`."""
        sqlalchemy = _import("sqlalchemy", "sqlalchemy_async()", "sqlalchemy[asyncio]")
        extension = _import("sqlalchemy.ext.asyncio", "sqlalchemy_async()", "sqlalchemy[asyncio]")
        url = self.database.sqlalchemy_url(driver)
        _import(driver, f"sqlalchemy_async({driver!r})", driver)
        engine = extension.create_async_engine(url, poolclass=sqlalchemy.pool.NullPool)
        async with engine.connect() as connection:
            transaction = await connection.begin()
            try:
                async with extension.AsyncSession(bind=connection, join_transaction_mode=_JOINED, **options) as session:
                    yield session
            finally:
                await transaction.close()

    def close(self) -> None:
        """Roll back, and close the connections."""
        self._stack.close()


def _import(module: str, method: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"flux_postgres_rollback.{method} needs {module.partition('.')[0]}: pip install '{package}'",
            name=error.name,
        ) from error
