"""The state of a room that the device reads as it comes is taken for what holds, however old its events are."""

from rtc_appservice.core.wire import Intake
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.store.pool import Connection, Pool

from .reading_device import ReadingDevice
from .serving import Clock, Events


async def test_a_membership_of_long_ago_is_not_late(pool: Pool, clock: Clock, conn: Connection) -> None:
    """It did not come late, it was asked for late; what comes by another way so long after the others did."""
    device, events = ReadingDevice(pool, clock), Events(clock)
    await device.start()
    held, overtaken = events.join(), events.join()
    clock.advance(600)
    await device.take({"events": [events.join()]})

    async def write(_conn: Connection, _reading: Reading, _intake: Intake) -> None:
        """Write nothing beside."""

    await device.intake.take_beside({"events": [held]}, write, is_snapshot=True)
    await device.intake.take_beside({"events": [overtaken]}, write)

    rows = await conn.fetch("SELECT identity, late FROM observation")
    late = {row["identity"]: row["late"] for row in rows}
    assert (False, True) == (late[held["event_id"]], late[overtaken["event_id"]])
