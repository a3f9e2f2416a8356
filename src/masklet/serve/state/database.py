"""The database: SQLite in WAL mode by default, or PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlmodel import Session

from masklet.errors import ConfigError

BUSY_SECONDS = 10
"""How long a process waits for another one to write."""
MIGRATION_LOCK = 0x6D61736B6C6574
"""Any number that other programs are unlikely to lock in the same database."""


class Database:
    """Transactions on the database."""

    def __init__(self, address: str) -> None:
        self.is_sqlite = address.startswith("sqlite")
        # A database server may close idle connections.
        options: dict[str, Any] = (
            {"connect_args": {"timeout": BUSY_SECONDS}} if self.is_sqlite else {"pool_pre_ping": True}
        )
        self.engine = create_engine(address, pool_size=20, max_overflow=40, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", prepare_sqlite)
            event.listen(self.engine, "begin", begin_sqlite)
        self._writing = self.engine.execution_options(writes=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is written when the block ends well, and else not at all."""
        with Session(self._writing, expire_on_commit=False) as session:
            yield session
            session.commit()

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def open_database(data: Path, address: str | None) -> Database:
    """Opens the database, and brings its tables up to date.

    Args:
        data: Folder of the server's files.
        address: A URL as SQLAlchemy reads it; None: ``data/masklet.sqlite``.

    Raises:
        ConfigError: ``address`` is not a URL, or its database cannot be reached or written.
    """
    if address is None:
        file = data / "masklet.sqlite"
        database = Database(f"sqlite:///{file}")
        try:
            with FileLock(data / "migrating.lock"):
                migrate(database.engine)
        except OperationalError as error:
            database.engine.dispose()
            raise ConfigError(
                f"cannot use the database {file}: {error.orig}. The folder must be writable, and its disk not full"
            ) from error
        return database
    try:
        shown = make_url(address).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise ConfigError("--database is not a URL: expected postgresql+psycopg://user:password@host/name") from error
    try:
        database = Database(address)
        migrate(database.engine)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--database {shown} needs {error.name}: pip install 'masklet[postgresql]'") from error
    except (NoSuchModuleError, OperationalError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise ConfigError(f"cannot use --database {shown}: {reason}") from error
    return database


def migrate(engine: Engine) -> None:
    """Brings the tables up to date. Processes that start together take turns."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # until the transaction ends
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def prepare_sqlite(connection: Any, _: object) -> None:
    """Settings of a new connection. The driver must not begin transactions by itself."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def begin_sqlite(connection: Any) -> None:
    """Begins a transaction. One that writes takes its lock at once: SQLite would not wait for it later."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
