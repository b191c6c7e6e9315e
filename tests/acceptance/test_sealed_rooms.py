"""The service's own device in encrypted rooms of a real Synapse."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rtc_appservice.core.model import DeviceTrust, MegolmEnvelope, RoomKey, ToDeviceKey
from rtc_appservice.store.pool import Pool
from tests.acceptance.sealed_room import BOT, Service, running_service, sealed_synapse, sender, until

Homeserver = tuple[str, Path, int]


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """Give a Synapse with the registration of the service."""
    async with sealed_synapse(tmp_path_factory.mktemp("synapse")) as given:
        yield given


async def room_keys(service: Service, room_id: str) -> list[RoomKey]:
    """Give the room keys that are recorded."""
    return [o.body for o in await service.observations(room_id) if isinstance(o.body, RoomKey)]  # type: ignore[arg-type]


async def test_reads_what_it_is_sent(homeserver: Homeserver, pool: Pool) -> None:
    """Invited before the call, the device joins, is given keys, and reads room keys and to-device keys."""
    address, path, port = homeserver
    async with running_service(pool, address, path, port, notice="This room is audited.") as service:
        async with sender(address, "alice") as alice:
            room_id = await alice.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            await alice.call(room_id)
            await alice.share(room_id)
            await alice.send(room_id, "m.room.message", {"msgtype": "m.text", "body": "a secret message"})
            await alice.send_room_key(room_id, 0)
            await alice.send_to_device_key(room_id, 1, service.auditor.own.device[1])
            keys = await until(lambda: room_keys(service, room_id), "the room key was read")

            async def to_device() -> list[ToDeviceKey]:
                return [o.body for o in await service.observations(room_id) if isinstance(o.body, ToDeviceKey)]

            (sent,) = await until(to_device, "the to-device key was read")

    assert [0] == [key.keys[0].index for key in keys]
    assert ("ALICE1", True) == (keys[0].sender_device_id, keys[0].encrypted)
    assert ("ALICE1", DeviceTrust.UNSIGNED, True) == (sent.sender_device_id, sent.trust, sent.device_matches)
    assert [] == [o for o in await service.observations(room_id) if isinstance(o.body, MegolmEnvelope)]
    assert 1 == await service.count("SELECT count(*) FROM crypto.room WHERE announced_at IS NOT NULL")
    assert BOT == service.auditor.own.device[0]
