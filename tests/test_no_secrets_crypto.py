"""
Media keys and messages are sent sealed to the service's device, which opens them; then all that is kept is searched.

They come by every way there is: as encrypted room events and by Olm, read at once and read again later. Searched are
the database dump, the data directory with its WAL and server log, and all loggers at debug.
"""

import logging
from pathlib import Path

from rtc_appservice.core.observed import RoomKey, ToDeviceKey
from rtc_appservice.store.pool import Connection, Pool
from tests.acceptance.sealed_room import SECRET, equals, running_service, sealed_synapse, sender, until
from tests.planted import Key, dump, everything_logged, files, search

#: A message that the device can read: nobody's business.
MESSAGE = "MESSAGEINSIDETHEROOM9B1E"


async def test_nothing_that_was_opened_is_kept(
    tmp_path: Path, database: str, pool: Pool, conn: Connection, postgres_folder: Path
) -> None:
    """Neither a piece of a media key, nor a message, nor a Megolm or Olm secret in clear stands anywhere."""
    by_room, by_olm, later = Key(11), Key(12), Key(13)
    with everything_logged() as said:
        logging.getLogger("mau").setLevel(logging.DEBUG)
        async with (
            sealed_synapse(tmp_path) as (address, path, port),
            sender(address, "alice") as alice,
            running_service(pool, address, path, port) as service,
        ):
            room_id = await alice.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            await alice.call(room_id)
            await alice.share(room_id, with_device=False)
            first = alice.session_key
            await alice.send_room_key(room_id, 2, later.texts()["base64"])
            await alice.send(room_id, "m.room.message", {"msgtype": "m.text", "body": MESSAGE})
            unread = "SELECT count(*) FROM crypto.unread_event WHERE waiting"
            await until(lambda: equals(service.count(unread), 2), "two events wait")
            await alice.hand_over(room_id, service.auditor.own.device[1])
            await until(lambda: equals(service.count(unread), 0), "they were read")
            await alice.share(room_id)
            await alice.send_room_key(room_id, 0, by_room.texts()["base64"])
            await alice.send(room_id, "m.room.message", {"msgtype": "m.text", "body": MESSAGE})
            await alice.send_to_device_key(room_id, 1, service.auditor.own.device[1], by_olm.texts()["base64"])

            async def all_read() -> bool:
                bodies = [observation.body for observation in await service.observations(room_id)]
                room_keys = sum(isinstance(body, RoomKey) for body in bodies)
                return room_keys == 2 and any(isinstance(body, ToDeviceKey) for body in bodies)

            await until(all_read, "all keys were read")
    await conn.execute("CHECKPOINT")
    places = [("dump", dump(database)), ("logs", "\n".join(said).encode()), *files(postgres_folder)]

    assert any(b"ALICE1" in data for _, data in places)
    assert [] == [found for key in (by_room, by_olm, later) for found in search(key, places)]
    assert [] == [place for place, data in places if MESSAGE.encode() in data]
    assert [] == [place for place, data in places if first.encode() in data or alice.session_key.encode() in data]
    assert [] == [place for place, data in places if SECRET in data]
