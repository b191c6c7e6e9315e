"""Stage 3: rooms and the compact keys that stand for them in every large table."""

from collections.abc import Collection
from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.words import RoomId
from rtc_appservice.store.pool import Connection


class Room(Struct, frozen=True):
    """A room as the store knows it."""

    room_key: int
    watched: bool  #: an RTC event was seen in it


class RoomCache:
    """Rooms of one homeserver known to be in the database, at most `limit`; the oldest entries go first."""

    def __init__(self, limit: int = 100_000) -> None:
        """Begin empty: what is missing is asked of the database."""
        self._limit = limit
        self._rooms: dict[RoomId, Room] = {}

    def get(self, room_id: RoomId) -> Room | None:
        """Give the room if it is known here."""
        return self._rooms.get(room_id)

    def add(self, rooms: dict[RoomId, Room]) -> None:
        """Remember rooms that are committed."""
        self._rooms.update(rooms)
        while len(self._rooms) > self._limit:
            del self._rooms[next(iter(self._rooms))]


_ALLOCATE = """
WITH allocated AS (
    INSERT INTO room (homeserver_id, room_id, rtc_seen_at, watched_since)
    SELECT $1, asked.room_id, CASE WHEN asked.rtc THEN $4::timestamptz END, $4
    FROM unnest($2::text[], $3::boolean[]) AS asked (room_id, rtc)
    ON CONFLICT (homeserver_id, room_id) DO UPDATE SET rtc_seen_at = coalesce(room.rtc_seen_at, excluded.rtc_seen_at)
    RETURNING room_key, room_id, rtc_seen_at IS NOT NULL AS watched
), held AS (
    INSERT INTO projection (room_key, homeserver_id) SELECT room_key, $1 FROM allocated
    ON CONFLICT DO NOTHING
)
SELECT room_key, room_id, watched FROM allocated
"""


async def allocate_rooms(
    conn: Connection, homeserver_id: int, room_ids: Collection[RoomId], rtc_rooms: Collection[RoomId], at: datetime
) -> dict[RoomId, Room]:
    """Give every room its key, new ones a new one seen first `at`; those in `rtc_rooms` are watched from now on."""
    ordered = sorted(room_ids)  # two transactions that meet take their locks in one order
    rows = await conn.fetch(_ALLOCATE, homeserver_id, ordered, [room_id in rtc_rooms for room_id in ordered], at)
    return {RoomId(row["room_id"]): Room(row["room_key"], row["watched"]) for row in rows}


async def watched_rooms(conn: Connection, homeserver_id: int) -> set[RoomId]:
    """Give the rooms of a homeserver in which an RTC event was seen."""
    rows = await conn.fetch(
        "SELECT room_id FROM room WHERE homeserver_id = $1 AND rtc_seen_at IS NOT NULL", homeserver_id
    )
    return {RoomId(row["room_id"]) for row in rows}
