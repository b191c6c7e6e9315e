"""Shared fixtures: one embedded PostgreSQL a test run, one migrated template, one copy of it a test."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from rtc_appservice.store.embedded import EmbeddedPostgres
from rtc_appservice.store.migrate import upgrade
from rtc_appservice.store.pool import Connection, Pool, open_pool

TEMPLATE = "rtc_appservice_template"


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    """Give the data directory of the server the tests use."""
    folder = Path(tempfile.mkdtemp(prefix="rtc-appservice-test-"))
    yield folder / "postgres"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(postgres_folder: Path) -> Iterator[str]:
    """Start PostgreSQL and give the DSN of its maintenance database."""
    server = EmbeddedPostgres(postgres_folder)
    yield server.start()
    server.stop()


def _database(dsn: str, name: str) -> str:
    return dsn.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
async def template(postgres: str) -> str:
    """Migrate one database from empty; every test's database is a copy of it."""
    connection = await asyncpg.connect(postgres)
    await connection.execute(f'CREATE DATABASE "{TEMPLATE}"')
    await connection.close()
    await upgrade(_database(postgres, TEMPLATE))
    return TEMPLATE


async def _create(postgres: str, template: str) -> str:
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres)
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    await connection.close()
    return name


async def _drop(postgres: str, name: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """Give the DSN of a database without a single table."""
    name = await _create(postgres, "template0")
    yield _database(postgres, name)
    await _drop(postgres, name)


@pytest.fixture
async def database(postgres: str, template: str) -> AsyncIterator[str]:
    """Give the DSN of a migrated database of the test's own."""
    name = await _create(postgres, template)
    yield _database(postgres, name)
    await _drop(postgres, name)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """Give a pool on a migrated database of the test's own."""
    pool = await open_pool(database, 8)
    yield pool
    await pool.close()


@pytest.fixture
async def conn(pool: Pool) -> AsyncIterator[Connection]:
    """Give one connection of `pool`."""
    async with pool.acquire() as connection:
        yield connection
