"""Stage 1: what was sealed in a room before the service's own device came, as a gap of the room."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.room_facts import last_left
from rtc_appservice.core.words import GapReason, RoomId, ServerName
from rtc_appservice.intake.decrypt import origin_time
from rtc_appservice.store.gaps import record_gaps
from rtc_appservice.store.observations import load_room
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.rooms import allocate_rooms


def joined_late(
    homeserver: ServerName,
    room_id: RoomId,
    state: Iterable[dict[str, Any]],
    left_at: datetime | None,
    joined_at: datetime,
) -> Gap | None:
    """
    Give the gap of a room that was encrypted when the device joined, None for any other.

    It begins with the encryption, as the room's state tells, or with the device's last leave: up to then it read along.
    """
    encryption = next((event for event in state if event.get("type") == "m.room.encryption"), None)
    if encryption is None:
        return None
    sealed_at = origin_time(encryption)
    if sealed_at is not None and sealed_at >= joined_at:
        return None
    known = [at for at in (sealed_at, left_at) if at is not None and at < joined_at]
    return Gap(
        gap_id=f"{GapReason.ROOM_JOINED_LATE}/{homeserver}/{room_id}/{joined_at.isoformat()}",
        homeserver=homeserver,
        reason=GapReason.ROOM_JOINED_LATE,
        started_at=max(known, default=None),
        ended_at=joined_at,
        room_id=room_id,
    )


async def note_joined_late(
    conn: Connection,
    homeserver: ServerName,
    homeserver_id: int,
    room_id: RoomId,
    state: Iterable[dict[str, Any]],
    joined_at: datetime,
    now: datetime,
) -> None:
    """Record that gap, if it is one; a second time changes nothing. A room not known so far is known from `now` on."""
    room = (await allocate_rooms(conn, homeserver_id, (room_id,), (), now))[room_id]
    before = await load_room(conn, homeserver, room_id, room.room_key, now)
    gap = joined_late(homeserver, room_id, state, last_left(before, joined_at), joined_at)
    if gap is not None:
        await record_gaps(conn, homeserver_id, [gap])
