"""A row that waits in the outbox when the column comes is sent like any other."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from rtc_appservice.store import migrate, outbox
from rtc_appservice.store.outbox import OutboxRow, Pending
from rtc_appservice.store.pool import open_pool

from .old import upgrade_to

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROW = OutboxRow(uuid=UUID(int=1), event="E", distinct_id="d", timestamp=NOON - timedelta(hours=2), properties={})


async def test_rows_that_wait(empty_database: str) -> None:
    """A row of before counts by its event's time, a newer one by when it was queued; both are leased unchanged."""
    old = await upgrade_to("0001", empty_database)
    await old.execute(
        "INSERT INTO outbox VALUES ($1, 'E', 'd', $2, '{}', 'pending', 0, $3)", ROW.uuid, ROW.timestamp, NOON
    )
    await old.close()

    await migrate.upgrade(empty_database)

    async with await open_pool(empty_database, 1) as pool, pool.acquire() as conn:
        assert Pending(pending=1, dead=0, oldest_at=ROW.timestamp) == await outbox.pending(conn)
        newer = OutboxRow(uuid=UUID(int=2), event="E", distinct_id="d", timestamp=ROW.timestamp, properties={})
        await outbox.put(conn, [newer], NOON)
        assert [ROW, newer] == [leased.row for leased in await outbox.lease(conn, 10, 60, NOON)]
        await outbox.done(conn, [ROW.uuid])
        assert Pending(pending=1, dead=0, oldest_at=NOON) == await outbox.pending(conn)
