"""What is sealed in a room that the device is not in stays sealed, though its session may have been handed over."""

from typing import Any

import orjson
import pytest

from rtc_appservice.store.pool import Connection, Pool

from .olm_peer import OURS, ROOM, body
from .reading_device import ReadingDevice
from .serving import Clock


@pytest.fixture
async def device(pool: Pool, clock: Clock) -> ReadingDevice:
    """Give a device that takes transactions."""
    device = ReadingDevice(pool, clock)
    await device.start()
    return device


def of_device(membership: str) -> dict[str, Any]:
    """Give the event by which the device comes into the room, or goes."""
    return {
        "type": "m.room.member",
        "event_id": f"${membership}",
        "room_id": ROOM,
        "sender": OURS[0],
        "state_key": OURS[0],
        "content": {"membership": membership},
    }


async def keys_read(conn: Connection) -> int:
    """Count the media key events that were opened."""
    return int(await conn.fetchval("SELECT count(*) FROM observation WHERE kind = 'room_key'"))


async def once(device: ReadingDevice, sent: dict[str, Any]) -> None:
    """Take a transaction whose answer is not lost."""

    async def read() -> bytes:
        return orjson.dumps(sent)

    await device.intake.take(read)


async def test_a_room_it_has_left(device: ReadingDevice, conn: Connection) -> None:
    """That ends it, whatever for the device comes beside: senders may go on with the session it was given."""
    await device.take(body(device.alice.megolm_key(), events=(device.alice.room_key(0),)))
    before = await keys_read(conn)
    await device.take(body(events=(of_device("leave"),)))
    await device.take(body(device.alice.media_key(), events=(device.alice.room_key(1),)))

    assert (1, 1) == (before, await keys_read(conn))


async def test_a_room_it_did_not_enter(device: ReadingDevice, conn: Connection) -> None:
    """Clients hand their sessions to who is invited, too; once the device is in, it reads what comes."""
    device.own.rooms.clear()
    await device.take(body(device.alice.megolm_key(), events=(device.alice.room_key(0),)))
    before = await keys_read(conn)
    await once(device, body(events=(of_device("join"), device.alice.room_key(1))))

    assert (0, 1) == (before, await keys_read(conn))
