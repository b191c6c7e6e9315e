"""What was sealed in a room before the device came is a gap of that room, from its encryption to the device's join."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rtc_appservice.core.room_facts import room_left
from rtc_appservice.core.words import GapReason, RoomId, UserId
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.late_rooms import joined_late, note_joined_late
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.pool import Connection, Pool

from .reading_device import ReadingDevice
from .serving import HOMESERVER, START, Clock, Events

ROOM = RoomId("!room")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Give a time by its distance from noon."""
    return NOON + timedelta(seconds=seconds)


def encryption(at: Any) -> dict[str, Any]:
    """Give the state event that switched encryption on."""
    ts = int(at.timestamp() * 1000) if isinstance(at, datetime) else at
    return {"type": "m.room.encryption", "state_key": "", "origin_server_ts": ts}


@pytest.mark.parametrize(
    ("sealed", "left", "started"),
    [(-900, None, -900), (-900, -60, -60), (-60, -900, -60)],
    ids=["first time", "came again", "encrypted while it was away"],
)
def test_an_encrypted_room_that_was_there_before(sealed: float, left: float | None, started: float) -> None:
    """What was sealed before the device came was not read, what came while it was there was."""
    left_at = None if left is None else at(left)
    gap = joined_late(HOMESERVER, ROOM, [encryption(at(sealed))], left_at, NOON)

    assert gap is not None
    assert (GapReason.ROOM_JOINED_LATE, ROOM, at(started), NOON) == (
        gap.reason,
        gap.room_id,
        gap.started_at,
        gap.ended_at,
    )


@pytest.mark.parametrize("origin", [None, "yesterday", 10**30])
def test_the_beginning_may_not_be_known(origin: Any) -> None:
    """A homeserver may say nothing of when the encryption was switched on, or nonsense."""
    gap = joined_late(HOMESERVER, ROOM, [encryption(origin)], None, NOON)

    assert gap is not None
    assert gap.started_at is None


@pytest.mark.parametrize("state", [[], [{"type": "m.room.create"}], [encryption(at(0))], [encryption(at(60))]])
def test_nothing_was_sealed_before(state: list[dict[str, Any]]) -> None:
    """In a room that is not encrypted, or became so while the device was there."""
    assert joined_late(HOMESERVER, ROOM, state, None, NOON) is None


async def test_it_is_recorded_for_the_room_once(pool: Pool, clock: Clock, conn: Connection) -> None:
    """In the commit of the snapshot, of a room the service knew nothing of; a restart reads the state once more."""
    device, events = ReadingDevice(pool, clock), Events(clock)
    await device.start()
    state = [events.join(), encryption(START - timedelta(days=9))]
    joined_at = clock.advance(60)

    async def enter(joined_at: datetime) -> None:
        async def write(conn: Connection, _reading: Reading, _intake: object) -> None:
            where = HOMESERVER, device.intake.homeserver_id, ROOM
            await note_joined_late(conn, *where, state, joined_at, clock.now)

        await device.intake.take_beside({"events": [events.join()]}, write, is_snapshot=True)

    for _ in range(2):
        await enter(joined_at)
        clock.advance(5)
    left_at = clock.now
    left = room_left(HOMESERVER, ROOM, UserId("@us:lab.test"), left_at, "$left")

    async def leave(_conn: Connection, _reading: Reading, intake: Any) -> None:
        intake.observations.append(left)

    await device.intake.take_beside({"events": []}, leave)
    again_at = clock.advance(600)
    await enter(again_at)
    await enter(again_at)

    spans = [(START - timedelta(days=9), joined_at), (left_at, again_at)]
    found = await load_gaps(conn, None, None)
    assert [(ROOM, *span) for span in spans] == [(gap.room_id, gap.started_at, gap.ended_at) for gap in found]
