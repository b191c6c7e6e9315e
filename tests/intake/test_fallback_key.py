"""The fallback key of the service's device, with real Olm on a real database."""

from datetime import timedelta
from typing import Any

import pytest
from olm.session import OutboundSession

from rtc_appservice.core.words import DeviceId, UserId
from rtc_appservice.intake.device_api import DeviceApi, OddAnswer
from rtc_appservice.intake.device_setup import ROTATED_AFTER, DeviceSetup
from rtc_appservice.store import crypto
from rtc_appservice.store.crypto import DeviceReplaced
from rtc_appservice.store.pool import Pool

from .olm_peer import OURS, Peer, body
from .reading_device import SECRET, ReadingDevice
from .serving import Clock


class Keys(DeviceApi):
    """A homeserver that takes uploads of keys alone."""

    def __init__(self) -> None:
        """Begin with none."""
        self.fallback: list[str] = []
        self.fails = False

    async def upload_keys(self, content: dict[str, Any]) -> dict[str, int]:
        """Take keys."""
        if self.fails:
            raise OddAnswer
        self.fallback += [key["key"] for key in content.get("fallback_keys", {}).values()]
        return {}


@pytest.fixture
async def device(pool: Pool, clock: Clock) -> ReadingDevice:
    """Give a device that takes transactions."""
    device = ReadingDevice(pool, clock)
    await device.start()
    return device


def writes_to(device: ReadingDevice, key: str) -> dict[str, Any]:
    """Give a message of somebody new, sealed with a fallback key."""
    peer = Peer(device.keys, "@bob:lab.test")
    peer.session = OutboundSession(peer.account, device.keys.identity_key, key)
    return peer.media_key()


async def test_a_used_one_gives_way(device: ReadingDevice) -> None:
    """Another is uploaded, at most once an hour; what was sealed with the one before is opened all the same."""
    api, number, now = Keys(), device.intake.homeserver_id, device.clock()
    setup = DeviceSetup(device.pool, number, device.own, api, SECRET)
    await setup.refill(50, publish=True, now=now)
    await setup.refill(50, is_fallback_used=True, now=now + timedelta(minutes=59))
    assert 1 == len(api.fallback)
    await setup.refill(50, is_fallback_used=False, now=now + ROTATED_AFTER)
    assert 1 == len(api.fallback)
    await setup.refill(50, is_fallback_used=True, now=now + ROTATED_AFTER)
    first, second = api.fallback

    await device.take(body(writes_to(device, first), writes_to(device, second)))

    assert {"to_device_decrypted": 2} == await device.totals()


async def test_one_that_could_not_be_uploaded(device: ReadingDevice) -> None:
    """It is uploaded later, and not replaced by a third: libolm keeps two, and the homeserver has the first."""
    api, number, now = Keys(), device.intake.homeserver_id, device.clock()
    setup = DeviceSetup(device.pool, number, device.own, api, SECRET)
    await setup.refill(50, publish=True, now=now)
    api.fails = True
    for hour in (1, 2):
        with pytest.raises(OddAnswer):
            await setup.refill(50, is_fallback_used=True, now=now + timedelta(hours=hour))
    await device.take(body(writes_to(device, api.fallback[0])))
    api.fails = False
    await setup.refill(50, now=now + timedelta(hours=3))

    await device.take(body(writes_to(device, api.fallback[1])))
    assert {"to_device_decrypted": 2} == await device.totals()
    assert 2 == len(api.fallback)


async def test_a_device_that_was_replaced(device: ReadingDevice) -> None:
    """A service that runs while `new-device` forgets its device does nothing more with it, and says what to do."""
    number = device.intake.homeserver_id
    setup = DeviceSetup(device.pool, number, device.own, Keys(), SECRET)
    async with device.pool.acquire() as conn:
        await crypto.forget_device(conn, number)
    with pytest.raises(DeviceReplaced, match="Start the service again"):
        await setup.refill(0, now=device.clock())
    async with device.pool.acquire() as conn, conn.transaction():
        await crypto.add_device(conn, number, UserId(OURS[0]), DeviceId("ANOTHER"), "PICKLE")
    with pytest.raises(DeviceReplaced):
        await device.take(body(device.alice.media_key()))
