"""Stage 3: brings the schema to the newest migration. The migrations themselves are the only DDL."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

import rtc_appservice
from rtc_appservice.errors import InputError, SchemaBehind, StoreUnavailable
from rtc_appservice.store.pool import CONNECT_TIMEOUT_SECONDS, reaching_errors

#: Any number, as long as it stays: «rtc-appsv» in ASCII cannot fit, so the first eight letters do.
MIGRATION_LOCK = int.from_bytes(b"rtc-apps")
LOCK_RETRY_SECONDS = 0.2


def migrations_folder() -> Path:
    """Give the folder of the migrations: inside the installed package, or at the top level of the repository."""
    package = Path(rtc_appservice.__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Give the newest revision this version of the service knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


async def current(dsn: str) -> str | None:
    """Give the revision the database is at, None if it has never been migrated."""
    async with _connect(dsn) as connection:
        return await connection.run_sync(_revision)


async def upgrade(dsn: str) -> str:
    """
    Bring the database to the newest revision and give it.

    Several processes may do so at once: one migrates, the others wait. The lock is tried in a loop rather than
    waited for, because a waiting session's snapshot would block an index built concurrently.
    """
    async with _connect(dsn) as connection:
        while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": MIGRATION_LOCK}):
            await connection.commit()
            await asyncio.sleep(LOCK_RETRY_SECONDS)
        await connection.commit()
        try:
            await connection.run_sync(_upgrade)
            await connection.commit()
        finally:
            await connection.rollback()
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
            await connection.commit()
    return head()


#: Stands above the SQL: what an operator who runs it has to know.
_ABOUT_SQL = """\
-- The schema of rtc-appservice, {since} to {head}. It brings its own transaction:
--   psql --set ON_ERROR_STOP=1 --file schema.sql DATABASE
--
-- Not in here: the partitions of observation, call_session and finding. They follow the calendar, so the running
-- service makes them ahead and drops those past retention. For that its account must own the three tables and their
-- default partitions, and may CREATE in their schema. Where it may not, the service says so once an hour, rows stay in
-- the default partitions, and what is past retention is deleted from them row by row.
--
-- What the account of the service needs at least (here: rtc_appservice), again after each migration:
--   GRANT USAGE ON SCHEMA public, crypto TO rtc_appservice;
--   GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, crypto TO rtc_appservice;

"""


def sql(since: str | None = None) -> str:
    """
    Give the migrations as SQL, from the revision `since` (None: from an empty database) to the newest one.

    Raises:
        InputError: if there is no such revision.
    """
    written = io.StringIO()
    config = _config()
    config.output_buffer = written
    try:
        command.upgrade(config, f"{since or 'base'}:head", sql=True)
    except CommandError as error:
        known = ", ".join(sorted(each.revision for each in ScriptDirectory.from_config(config).walk_revisions()))
        raise InputError(f"There is no migration {since}; there are {known}") from error
    begin = f"from {since}" if since else "from an empty database"
    return _ABOUT_SQL.format(since=begin, head=head()) + written.getvalue()


async def require_head(dsn: str) -> None:
    """Raise `SchemaBehind` unless the database is at the newest revision."""
    revision = await current(dsn)
    if revision != head():
        found = "is empty" if revision is None else f"has the schema {revision}"
        raise SchemaBehind(f"The database {found}, this version needs {head()}; run `rtc-appservice db upgrade`.")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@asynccontextmanager
async def _connect(dsn: str) -> AsyncIterator[AsyncConnection]:
    """Open one direct connection for Alembic, through the same driver and the same DSN as everything else."""

    async def open_connection() -> "asyncpg.Connection[asyncpg.Record]":
        with reaching_errors():
            return await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_SECONDS)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=open_connection, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            yield connection
    except (OSError, TimeoutError, asyncpg.PostgresError, SQLAlchemyError) as error:
        raise StoreUnavailable(
            f"The schema could not be read or brought up to date ({type(error).__name__}): {error}"
        ) from error
    finally:
        await engine.dispose()
