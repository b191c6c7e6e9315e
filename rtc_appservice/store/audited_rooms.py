"""Stage 3: the rooms the service's own device is to be in, or is in."""

from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.words import RoomId
from rtc_appservice.store.pool import Connection


class AuditedRoom(Struct, frozen=True, kw_only=True):
    """A room with the device in it, or soon."""

    room_id: RoomId
    wanted: bool
    joined_at: datetime | None
    state_read_at: datetime | None
    announced_at: datetime | None
    witness: bool


async def audited_rooms(conn: Connection, homeserver_id: int) -> list[AuditedRoom]:
    """Give all rooms the device is in or has been asked into."""
    rows = await conn.fetch(
        """
        SELECT room_id, wanted, joined_at, state_read_at, announced_at, witness FROM crypto.room
        WHERE homeserver_id = $1 ORDER BY room_id
        """,
        homeserver_id,
    )
    return [AuditedRoom(**dict(row)) for row in rows]


async def want_room(conn: Connection, homeserver_id: int, room_id: RoomId, *, wanted: bool) -> None:
    """Ask the device into a room, or out of it; the running service does it."""
    await conn.execute(
        """
        INSERT INTO crypto.room (homeserver_id, room_id, wanted) VALUES ($1, $2, $3)
        ON CONFLICT (homeserver_id, room_id) DO UPDATE SET wanted = excluded.wanted
        """,
        homeserver_id,
        room_id,
        wanted,
    )


async def want_witness(conn: Connection, homeserver_id: int, room_id: RoomId, *, witness: bool) -> bool:
    """Have the device take part in a room's calls, or not; tells whether it is in the room or asked into it."""
    done = await conn.execute(
        "UPDATE crypto.room SET witness = $3 WHERE homeserver_id = $1 AND room_id = $2",
        homeserver_id,
        room_id,
        witness,
    )
    return done != "UPDATE 0"


async def is_witness(conn: Connection, homeserver_id: int, room_id: RoomId) -> bool:
    """Tell whether the device is to take part in a room's calls."""
    query = "SELECT witness AND wanted FROM crypto.room WHERE homeserver_id = $1 AND room_id = $2"
    return bool(await conn.fetchval(query, homeserver_id, room_id))


async def mark_joined(conn: Connection, homeserver_id: int, room_id: RoomId, at: datetime) -> datetime:
    """Note that the device is in a room, asked or not; give since when, which is `at` or before."""
    joined_at: datetime = await conn.fetchval(
        """
        INSERT INTO crypto.room (homeserver_id, room_id, wanted, joined_at) VALUES ($1, $2, true, $3)
        ON CONFLICT (homeserver_id, room_id) DO UPDATE SET joined_at = coalesce(room.joined_at, $3)
        RETURNING joined_at
        """,
        homeserver_id,
        room_id,
        at,
    )
    return joined_at


async def mark_state_read(conn: Connection, homeserver_id: int, room_id: RoomId, at: datetime) -> None:
    """Note that the state the device found in a room is recorded."""
    await conn.execute(
        "UPDATE crypto.room SET state_read_at = $3 WHERE homeserver_id = $1 AND room_id = $2",
        homeserver_id,
        room_id,
        at,
    )


async def mark_announced(conn: Connection, homeserver_id: int, room_id: RoomId, at: datetime) -> None:
    """Note that the room was told."""
    await conn.execute(
        "UPDATE crypto.room SET announced_at = $3 WHERE homeserver_id = $1 AND room_id = $2",
        homeserver_id,
        room_id,
        at,
    )


async def drop_room(conn: Connection, homeserver_id: int, room_id: RoomId) -> None:
    """Forget a room the device has left or was put out of."""
    await conn.execute("DELETE FROM crypto.room WHERE homeserver_id = $1 AND room_id = $2", homeserver_id, room_id)
