"""Stage 4: which rooms have news or something due, and the hold a projector takes on one."""

from datetime import datetime, timedelta

import asyncpg
from msgspec import Struct

from rtc_appservice.core.words import RoomId
from rtc_appservice.store.pool import Connection


class Claim(Struct, frozen=True, kw_only=True):
    """A room held for projection until the transaction ends."""

    room_key: int
    room_id: RoomId
    watched_since: datetime
    watched: bool  #: an RTC event of it was seen
    oldest_news_at: datetime | None  #: event time of the oldest observation not projected yet; None: only due
    version: int  #: how often the room was projected before


async def watermark(conn: Connection, homeserver_id: int) -> datetime | None:
    """Give the time a homeserver's stream has reached, None before its first event."""
    at: datetime | None = await conn.fetchval("SELECT watermark_at FROM stream WHERE homeserver_id = $1", homeserver_id)
    return at


async def candidates(conn: Connection, homeserver_id: int, watermark_at: datetime, limit: int) -> list[int]:
    """Give rooms with news, those with the oldest first, and rooms in which something is due."""
    rows = await conn.fetch(
        """
        SELECT room_key FROM (
            SELECT room_key, min(event_at) AS at FROM dirty_room WHERE homeserver_id = $1 GROUP BY room_key
            UNION ALL
            SELECT room_key, due_at FROM projection WHERE homeserver_id = $1 AND due_at <= $2
        ) AS waiting
        GROUP BY room_key ORDER BY min(at), room_key LIMIT $3
        """,
        homeserver_id,
        watermark_at,
        limit,
    )
    return [row["room_key"] for row in rows]


_ROOM = """
SELECT room_id, watched_since, rtc_seen_at IS NOT NULL AS watched, due_at, version
FROM projection JOIN room USING (room_key) WHERE room_key = $1
"""


async def claim(conn: Connection, room_key: int, watermark_at: datetime) -> Claim | None:
    """
    Hold a room and take its marks, or give None if another projector has it or had it.

    To be called in a transaction: the marks are gone with its commit, and back without.
    """
    held = await conn.fetchrow(_ROOM + " FOR UPDATE OF projection SKIP LOCKED", room_key)
    if held is None:
        return None
    oldest_news_at: datetime | None = await conn.fetchval(
        """
        WITH taken AS (DELETE FROM dirty_room WHERE room_key = $1 RETURNING event_at)
        SELECT min(event_at) FROM taken
        """,
        room_key,
    )
    if oldest_news_at is None and (held["due_at"] is None or held["due_at"] > watermark_at):
        return None
    return _claim(room_key, held, oldest_news_at)


async def claim_held(conn: Connection, room_key: int) -> Claim:
    """Give a room that the caller's transaction holds; its marks stay."""
    held = await conn.fetchrow(_ROOM, room_key)
    if held is None:
        raise LookupError("no such room")
    return _claim(room_key, held, None)


def _claim(room_key: int, held: asyncpg.Record, oldest_news_at: datetime | None) -> Claim:
    return Claim(
        room_key=room_key,
        room_id=RoomId(held["room_id"]),
        watched_since=held["watched_since"],
        watched=held["watched"],
        oldest_news_at=oldest_news_at,
        version=held["version"],
    )


async def set_due(conn: Connection, room_key: int, due_at: datetime | None) -> int:
    """End a projection: say when to look at a room again without news, None for never; and give its new version."""
    version: int = await conn.fetchval(
        "UPDATE projection SET due_at = $2, version = version + 1 WHERE room_key = $1 RETURNING version",
        room_key,
        due_at,
    )
    return version


async def first_overlapping(conn: Connection, room_key: int, at: datetime) -> datetime:
    """Give the latest time not after `at` that no call of the room runs across: `at`, or the start of a call."""
    while True:
        started_at: datetime | None = await conn.fetchval(
            """
            SELECT min(started_at) FROM call_session
            WHERE room_key = $1 AND started_at < $2 AND (ended_at IS NULL OR ended_at >= $2)
            """,
            room_key,
            at,
        )
        if started_at is None:
            return at
        at = started_at


async def oldest_unsettled(conn: Connection, room_key: int, since: datetime) -> datetime | None:
    """Give the start of the oldest call of a room, from `since` on, that something due can still change."""
    at: datetime | None = await conn.fetchval(
        "SELECT min(started_at) FROM call_session WHERE room_key = $1 AND started_at >= $2 AND NOT settled",
        room_key,
        since,
    )
    return at


async def mark_all(conn: Connection, homeserver_id: int) -> list[int]:
    """Mark every room of a homeserver from its oldest observation on, and give the marks."""
    rows = await conn.fetch(
        """
        INSERT INTO dirty_room (room_key, homeserver_id, event_at)
        SELECT room_key, $1, min(event_at) FROM observation WHERE homeserver_id = $1 GROUP BY room_key
        RETURNING mark
        """,
        homeserver_id,
    )
    return [row["mark"] for row in rows]


async def still_marked(conn: Connection, marks: list[int]) -> int:
    """Give how many rooms of these marks wait to be projected."""
    return int(await conn.fetchval("SELECT count(*) FROM dirty_room WHERE mark = ANY($1::bigint[])", marks))


def look_again_at(watermark_at: datetime, last_event_at: datetime) -> datetime:
    """
    Say when to look at a live or unsettled call again: soon while its last event can have deadlines, else seldom.

    Every deadline of detection lies within two minutes of an event, apart from the expiry of memberships.
    """
    quiet = watermark_at - last_event_at > timedelta(minutes=3)
    return watermark_at + (timedelta(seconds=30) if quiet else timedelta(seconds=2))
