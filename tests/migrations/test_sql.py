"""The migrations as SQL: run by somebody else on a real database, they give what `db upgrade` gives."""

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest
from click.testing import CliRunner

from rtc_appservice.cli.main import main
from rtc_appservice.core.observed import Observation, RoomState
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId, ServerName, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.store import migrate
from rtc_appservice.store.observations import record
from rtc_appservice.store.partitions import TABLES, maintain
from rtc_appservice.store.rooms import RoomCache
from rtc_appservice.store.streams import open_stream

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

#: Everything a migration can make, in words that do not depend on numbers the server gave.
CATALOGUES = (
    """
    SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.reloptions, pg_get_partkeydef(c.oid),
           pg_get_expr(c.relpartbound, c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {ours} ORDER BY 1, 2
    """,
    """
    SELECT n.nspname, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
           pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND {ours} ORDER BY 1, 2, 3
    """,
    """
    SELECT n.nspname, c.relname, k.conname, k.contype, pg_get_constraintdef(k.oid)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {ours} ORDER BY 1, 2, 3
    """,
    "SELECT schemaname, tablename, indexname, indexdef FROM pg_indexes n WHERE schemaname IN ('public', 'crypto')"
    " ORDER BY 1, 2, 3",
    "SELECT version_num FROM alembic_version",
)


async def catalogue(dsn: str) -> list[list[tuple[object, ...]]]:
    """Give the schema of a database."""
    connection = await asyncpg.connect(dsn)
    try:
        ours = "n.nspname IN ('public', 'crypto')"
        return [[tuple(row) for row in await connection.fetch(each.format(ours=ours))] for each in CATALOGUES]
    finally:
        await connection.close()


async def run(dsn: str, text: str) -> None:
    """Run SQL as psql would: as it stands."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(text)
    finally:
        await connection.close()


async def test_gives_the_schema_of_an_upgrade(empty_database: str, database: str) -> None:
    """From an empty database on."""
    printed = CliRunner().invoke(main, ["db", "sql"])
    assert printed.exit_code == 0

    await run(empty_database, printed.output)

    assert await catalogue(database) == await catalogue(empty_database)
    await migrate.require_head(empty_database)


async def test_from_a_revision_on(empty_database: str, database: str) -> None:
    """A database at an older revision is brought on, and none of what it has is made again."""
    whole = migrate.sql()
    cut = whole.index("-- Running upgrade 0005 ")
    await run(empty_database, whole[:cut] + "COMMIT;")

    await run(empty_database, migrate.sql("0005"))

    assert await catalogue(database) == await catalogue(empty_database)


def test_a_revision_there_is_not() -> None:
    """The message names those there are."""
    with pytest.raises(InputError, match="There is no migration 9999; there are 0001, "):
        migrate.sql("9999")


@pytest.fixture
async def account(postgres: str, empty_database: str) -> AsyncIterator[str]:
    """Give the DSN of an account that may do what the printed SQL says it needs at least, and nothing else."""
    name = f"service_{uuid4().hex}"
    await run(empty_database, migrate.sql())
    await run(empty_database, f"CREATE ROLE {name} LOGIN")
    grants = [line.removeprefix("--   ") for line in migrate.sql().splitlines() if line.startswith("--   GRANT")]
    await run(empty_database, "".join(grants).replace("rtc_appservice", name))
    yield empty_database.replace("//postgres:@", f"//{name}:@")
    await run(empty_database, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_an_account_without_ddl_serves(account: str, caplog: pytest.LogCaptureFixture) -> None:
    """It finds the schema at its newest, stores what comes, keeps up retention, and says what it may not."""
    assert migrate.head() == await migrate.upgrade(account)
    connection = await asyncpg.connect(account)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE anything ()")
        stream = await open_stream(connection, ServerName("lab.test"))
        body = RoomState(sender=UserId("@a:lab.test"), event_type="m.room.encryption", state_key="", value="v")
        observation = Observation(
            homeserver=ServerName("lab.test"),
            room_id=RoomId("!a:lab.test"),
            identity="$a",
            event_at=NOW,
            received_at=NOW,
            body=body,
        )
        await record(connection, stream.homeserver_id, Intake(observations=[observation]), RoomCache())

        with caplog.at_level(logging.WARNING):
            assert [] == await maintain(connection, NOW)

        assert 1 == await connection.fetchval("SELECT count(*) FROM observation_default")
    finally:
        await connection.close()
    warned = {record.__dict__["table"] for record in caplog.records}
    assert {each.table for each in TABLES} == warned
    assert len(caplog.records) == len(TABLES)
