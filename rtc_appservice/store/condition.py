"""Stage 3: how the work is going: what goes on, what waits to be projected, and how far partitions reach."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.words import FindingKind, ServerName
from rtc_appservice.store import partitions
from rtc_appservice.store.pool import Connection

#: A finding's time may lie before its call, by what a key may come before its device's membership (10 s) and some more.
_BEFORE_CALL = timedelta(minutes=1)


class HomeserverCondition(Struct, frozen=True, kw_only=True):
    """How the work for one homeserver is going."""

    homeserver: ServerName
    watermark_at: datetime | None = None  #: None before the first event
    rtc_members_active: int = 0  #: devices in calls going on
    calls_split_active: int = 0  #: calls going on whose participants cannot get each other's keys
    rooms_pending: int = 0  #: rooms with news that wait to be projected
    oldest_pending_at: datetime | None = None  #: event time of the oldest of that news


class PartitionCondition(Struct, frozen=True, kw_only=True):
    """How far the partitions of one table reach."""

    table: str
    covered_until: datetime | None  #: end of the last partition without a hole since now; None if now has none
    default_in_use: bool  #: rows stand in the default partition for want of one of their own


class Condition(Struct, frozen=True, kw_only=True):
    """How the work is going."""

    homeservers: tuple[HomeserverCondition, ...] = ()
    partitions: tuple[PartitionCondition, ...] = ()


async def load_condition(conn: Connection, now: datetime) -> Condition:
    """Give how the work is going, and how far ahead of `now` partitions reach."""
    rows = await conn.fetch(
        """
        SELECT name AS homeserver,
            (SELECT watermark_at FROM stream s WHERE s.homeserver_id = h.homeserver_id) AS watermark_at,
            (SELECT count(*) FROM call_session c JOIN stint USING (room_key, call_id)
                WHERE c.homeserver_id = h.homeserver_id AND ended_at IS NULL AND left_at IS NULL) AS rtc_members_active,
            (SELECT count(*) FROM call_session c
                WHERE c.homeserver_id = h.homeserver_id AND ended_at IS NULL AND EXISTS (
                    SELECT FROM finding f WHERE f.room_key = c.room_key AND f.at >= c.started_at - $2::interval
                        AND f.call_id = c.call_id AND f.kind = $1)) AS calls_split_active,
            news.rooms AS rooms_pending, news.oldest_at AS oldest_pending_at
        FROM homeserver h, LATERAL (
            SELECT count(DISTINCT room_key) AS rooms, min(event_at) AS oldest_at
            FROM dirty_room d WHERE d.homeserver_id = h.homeserver_id
        ) news
        ORDER BY name
        """,
        str(FindingKind.SPLIT_CALL),
        _BEFORE_CALL,
    )
    return Condition(
        homeservers=tuple(HomeserverCondition(**dict(row)) for row in rows),
        partitions=tuple([await _partitions(conn, each.table, each.column, now) for each in partitions.TABLES]),
    )


def covered_until(bounds: Iterable[tuple[datetime, datetime]], now: datetime) -> datetime | None:
    """Give the end of the unbroken run of partitions that holds `now`, None if no partition holds it."""
    until = None
    for begin, end in sorted(bounds):
        if begin <= (until or now) < end:
            until = end
    return until


async def _partitions(conn: Connection, table: str, column: str, now: datetime) -> PartitionCondition:
    rows = await conn.fetch(
        """
        SELECT bounds[1]::timestamptz AS begin, bounds[2]::timestamptz AS upto
        FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid,
             pg_get_expr(child.relpartbound, child.oid) AS range,
             regexp_match(range, $$FROM \\('([^']+)'\\) TO \\('([^']+)'\\)$$) AS bounds
        WHERE inhparent = $1::text::regclass AND bounds IS NOT NULL
        """,
        table,
    )
    bounds = [(row["begin"], row["upto"]) for row in rows]
    until = covered_until(bounds, now)
    in_use = False
    if until is None:  # no row of now can be in the default partition while another one holds now
        past = max((end for _, end in bounds if end <= now), default=None)
        found = "SELECT format('SELECT EXISTS (SELECT FROM %I WHERE %I >= %L)', $1::text, $2::text, $3::text)"
        since = "-infinity" if past is None else past.isoformat()
        in_use = await conn.fetchval(await conn.fetchval(found, f"{table}_default", column, since))
    return PartitionCondition(table=table, covered_until=until, default_in_use=in_use)
