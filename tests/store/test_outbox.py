"""Outbox rows are leased, given back, set aside or removed; each is sent at least once and never changes."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from rtc_appservice.store import outbox
from rtc_appservice.store.outbox import OutboxRow, Pending
from rtc_appservice.store.pool import Connection, Pool

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def row(number: int, **properties: object) -> OutboxRow:
    """Give a row under a number."""
    return OutboxRow(
        uuid=UUID(int=number),
        event="RtcCallEnded",
        distinct_id="call:1",
        timestamp=NOON + timedelta(seconds=number),
        properties=properties,
    )


async def test_lease_and_done(conn: Connection) -> None:
    """A leased row comes as it was put, is nobody else's until its lease ends, and is gone when done."""
    rows = [row(2, share=0.5, nothing=None), row(1, words=["ä"])]
    await outbox.put(conn, rows, NOON)

    first = await outbox.lease(conn, 10, 60, NOON)
    meanwhile = await outbox.lease(conn, 10, 60, NOON + timedelta(seconds=59))
    again = await outbox.lease(conn, 10, 60, NOON + timedelta(seconds=60))
    await outbox.done(conn, [UUID(int=1)])

    assert [rows[1], rows[0]] == [leased.row for leased in first]
    assert type(first[0].row.uuid) is UUID
    assert meanwhile == []
    assert [(rows[1], 2), (rows[0], 2)] == [(leased.row, leased.attempts) for leased in again]
    assert Pending(pending=1, dead=0, oldest_at=NOON) == await outbox.pending(conn)


async def test_put_again_changes_nothing(conn: Connection) -> None:
    """A row that waits already stays as it was."""
    await outbox.put(conn, [row(1, a=1)], NOON)
    await outbox.put(conn, [row(1, a=2)], NOON)

    assert [row(1, a=1)] == [leased.row for leased in await outbox.lease(conn, 10, 60, NOON)]


async def test_retry_and_dead(conn: Connection) -> None:
    """A row given back is due at the given time; one set aside is never leased again."""
    await outbox.put(conn, [row(1), row(2)], NOON)
    await outbox.lease(conn, 10, 60, NOON)
    await outbox.retry_at(conn, [UUID(int=1)], NOON + timedelta(seconds=5))
    await outbox.dead(conn, [UUID(int=2)])

    assert await outbox.lease(conn, 10, 60, NOON + timedelta(seconds=4)) == []
    later = await outbox.lease(conn, 10, 60, NOON + timedelta(hours=1))
    assert [UUID(int=1)] == [leased.row.uuid for leased in later]
    assert Pending(pending=1, dead=1, oldest_at=NOON) == await outbox.pending(conn)


async def test_requeue(conn: Connection) -> None:
    """What was set aside waits again under the same uuid, unchanged, and as long as it has waited."""
    await outbox.put(conn, [row(1, a=1), row(2)], NOON)
    await outbox.lease(conn, 10, 60, NOON)
    await outbox.dead(conn, [UUID(int=1)])
    later = NOON + timedelta(seconds=30)

    assert 1 == await outbox.requeue(conn, later)
    assert 0 == await outbox.requeue(conn, later)
    assert [(row(1, a=1), 1)] == [(leased.row, leased.attempts) for leased in await outbox.lease(conn, 10, 60, later)]
    assert Pending(pending=2, dead=0, oldest_at=NOON) == await outbox.pending(conn)


async def test_many_senders_share(pool: Pool) -> None:
    """Senders that lease at once get different rows, and together all of them."""
    async with pool.acquire() as conn:
        await outbox.put(conn, [row(number) for number in range(200)], NOON)

    async def work() -> list[UUID]:
        async with pool.acquire() as conn:
            return [leased.row.uuid for leased in await outbox.lease(conn, 50, 60, NOON)]

    batches = await asyncio.gather(*(work() for _ in range(8)))

    taken = [uuid for batch in batches for uuid in batch]
    assert len(taken) == len(set(taken))
    async with pool.acquire() as conn:
        rest = await outbox.lease(conn, 200, 60, NOON)
    assert {UUID(int=number) for number in range(200)} == set(taken) | {leased.row.uuid for leased in rest}
