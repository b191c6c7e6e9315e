"""Migrations on real databases, from empty."""

import asyncio

import asyncpg

from rtc_appservice.store import migrate


async def test_upgrade_from_empty(empty_database: str) -> None:
    """An empty database comes to the newest revision, and says so."""
    before = await migrate.current(empty_database)

    after = await migrate.upgrade(empty_database)

    assert (None, migrate.head()) == (before, after)
    assert after == await migrate.current(empty_database)
    await migrate.require_head(empty_database)


async def test_upgrade_twice_and_at_once(empty_database: str) -> None:
    """Four processes that migrate at the same time all succeed; a fifth later changes nothing."""
    revisions = await asyncio.gather(*(migrate.upgrade(empty_database) for _ in range(4)))

    assert [migrate.head()] * 4 == revisions
    assert migrate.head() == await migrate.upgrade(empty_database)


async def test_large_tables_are_partitioned_with_a_default(database: str) -> None:
    """Every partitioned table has a default partition and begins its key with the room."""
    connection = await asyncpg.connect(database)
    rows = await connection.fetch(
        """
        SELECT c.relname, pg_get_partkeydef(c.oid) AS key, pg_get_constraintdef(k.oid) AS primary_key,
               p.partdefid <> 0 AS has_default
        FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid
        JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p' ORDER BY c.relname
        """
    )
    await connection.close()

    expected = [
        ("call_session", "RANGE (started_at)", "PRIMARY KEY (room_key, started_at, call_id)", True),
        ("finding", "RANGE (at)", "PRIMARY KEY (room_key, at, finding_id)", True),
        ("observation", "RANGE (event_at)", "PRIMARY KEY (room_key, event_at, identity)", True),
    ]
    assert expected == [tuple(row) for row in rows]
