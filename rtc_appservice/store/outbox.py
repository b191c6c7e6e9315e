"""
Stage 3: the outbox. Events that wait to be sent, leased for a while to whoever sends them.

A row leaves only when its event was accepted, so each goes out at least once and always with the same uuid.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from rtc_appservice.store.pool import Connection


class OutboxRow(Struct, frozen=True, kw_only=True):
    """One PostHog event, exactly as it is sent however often it is sent."""

    uuid: UUID
    event: str
    distinct_id: str
    timestamp: datetime
    properties: Mapping[str, Any]


class LeasedRow(Struct, frozen=True, kw_only=True):
    """A row to send now, and how often that has been tried, this time included."""

    row: OutboxRow
    attempts: int


class Pending(Struct, frozen=True, kw_only=True):
    """What waits in the outbox."""

    pending: int
    dead: int
    oldest_at: datetime | None  #: when the oldest pending row was put in


async def put(conn: Connection, rows: Sequence[OutboxRow], at: datetime) -> None:
    """Add rows to send from `at` on; one that is there already stays as it is."""
    if not rows:
        return
    await conn.execute(
        """
        INSERT INTO outbox
            (uuid, event, distinct_id, timestamp, properties, state, attempts, next_attempt_at, queued_at)
        SELECT uuid, event, distinct_id, timestamp, properties, 'pending', 0, $6, $6
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::jsonb[])
        AS added (uuid, event, distinct_id, timestamp, properties)
        ON CONFLICT DO NOTHING
        """,
        [row.uuid for row in rows],
        [row.event for row in rows],
        [row.distinct_id for row in rows],
        [row.timestamp for row in rows],
        [msgspec.json.encode(row.properties).decode() for row in rows],
        at,
    )


async def lease(conn: Connection, limit: int, lease_seconds: float, now: datetime) -> list[LeasedRow]:
    """
    Take up to `limit` rows that are due, oldest first, and keep others off them for `lease_seconds`.

    No transaction stays open while they are sent: one whose sender died comes back when its lease ends.
    """
    rows = await conn.fetch(
        """
        UPDATE outbox SET next_attempt_at = $3, attempts = attempts + 1
        WHERE uuid = ANY(ARRAY(
            SELECT uuid FROM outbox WHERE state = 'pending' AND next_attempt_at <= $2
            ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ))
        RETURNING uuid, event, distinct_id, timestamp, properties, attempts
        """,
        limit,
        now,
        now + timedelta(seconds=lease_seconds),
    )
    leased = [
        LeasedRow(
            row=OutboxRow(
                uuid=UUID(int=row["uuid"].int),  # the driver's own class is a UUID, but not equal in encoders
                event=row["event"],
                distinct_id=row["distinct_id"],
                timestamp=row["timestamp"],
                properties=msgspec.json.decode(row["properties"]),
            ),
            attempts=row["attempts"],
        )
        for row in rows
    ]
    return sorted(leased, key=lambda each: (each.row.timestamp, each.row.uuid))


async def done(conn: Connection, uuids: Sequence[UUID]) -> None:
    """Remove rows whose events were accepted."""
    await conn.execute("DELETE FROM outbox WHERE uuid = ANY($1::uuid[])", uuids)


async def retry_at(conn: Connection, uuids: Sequence[UUID], at: datetime) -> None:
    """Give rows back, to be taken again from `at` on."""
    await conn.execute("UPDATE outbox SET next_attempt_at = $2 WHERE uuid = ANY($1::uuid[])", uuids, at)


async def dead(conn: Connection, uuids: Sequence[UUID]) -> None:
    """Set rows aside whose events were refused for good; they stay to be looked at."""
    await conn.execute("UPDATE outbox SET state = 'dead' WHERE uuid = ANY($1::uuid[])", uuids)


async def requeue(conn: Connection, now: datetime) -> int:
    """Make every row that was set aside wait again, unchanged; give how many."""
    rows = await conn.fetch(
        "UPDATE outbox SET state = 'pending', attempts = 0, next_attempt_at = $1 WHERE state = 'dead' RETURNING 1", now
    )
    return len(rows)


async def pending(conn: Connection) -> Pending:
    """Count what waits, and say since when."""
    row = await conn.fetchrow(
        """
        SELECT count(*) FILTER (WHERE state = 'pending') AS pending, count(*) FILTER (WHERE state = 'dead') AS dead,
               min(coalesce(queued_at, timestamp)) FILTER (WHERE state = 'pending') AS oldest_at
        FROM outbox
        """
    )
    return Pending(**dict(row or {}))
