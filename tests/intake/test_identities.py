"""What is remembered of the devices of others, with a homeserver that says whatever it likes of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rtc_appservice.core.words import DeviceId, DeviceTrust, UserId
from rtc_appservice.intake import identities
from rtc_appservice.intake.device_api import DeviceApi, OddAnswer
from rtc_appservice.intake.device_keys import SealedBy, sealed_by
from rtc_appservice.intake.identities import DEVICE_BYTES, MOST_DEVICES, Identities

from .olm_peer import Peer, our_keyring

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ALICE = UserId("@alice:lab.test")


class Answers(DeviceApi):
    """A homeserver that answers to `/keys/query` alone."""

    def __init__(self, devices: dict[str, Any] | None) -> None:
        """Take the devices of everybody; None: it fails."""
        self.devices, self.asked = devices, 0

    async def query_keys(self, users: Any) -> dict[str, Any]:
        """Give the devices of users."""
        self.asked += 1
        if self.devices is None:
            raise OddAnswer
        return {"device_keys": dict.fromkeys(users, self.devices)}


async def test_what_is_kept_is_what_is_needed() -> None:
    """A device is told by what is kept of it; signatures of others and what is not signed are not kept."""
    alice = Peer(our_keyring())
    padding = {"signatures": {"@x:y": "s" * 5_000}, "unsigned": {"device_display_name": "n" * 5_000}}
    listed = alice.device_keys()
    padded = {**listed, **padding, "signatures": listed["signatures"] | padding["signatures"]}
    known = Identities(Answers({alice.device: padded}))
    claimed = {"keys": {"ed25519": alice.account.identity_keys["ed25519"]}}
    for later in (timedelta(0), timedelta(minutes=1)):
        found = (await known.learn([ALICE], NOON + later))[ALICE]
        by = sealed_by(claimed, ALICE, alice.identity_key, found)
        assert SealedBy(DeviceId(alice.device), DeviceTrust.UNSIGNED) == by
    assert known.kept_bytes < 1_000


async def test_an_answer_of_any_size() -> None:
    """Of thousands of devices a few are kept, none that is huge or no JSON of Matrix; nor all of many users."""
    devices: dict[str, Any] = {f"D{n}": {"device_id": f"D{n}", "x": "y" * (DEVICE_BYTES - 200)} for n in range(1_000)}
    devices = {"BIG": {"x": "y" * 1_000_000}, "ODD": {"n": 2**70}, "TEXT": {"n": "\ud800"}} | devices
    known = Identities(Answers(devices))
    found = (await known.learn([ALICE], NOON))[ALICE]

    assert MOST_DEVICES == len(found.devices)
    assert known.kept_bytes <= MOST_DEVICES * DEVICE_BYTES
    for number in range(40):
        await known.learn([UserId(f"@{number}:lab.test")], NOON)
    assert known.kept_bytes <= identities.KEPT_BYTES


async def test_what_was_learnt_outlasts_a_failure() -> None:
    """Who was known stays so when the homeserver fails, and it is not asked again at once."""
    api = Answers({"D": {"device_id": "D"}})
    known = Identities(api)
    first = await known.learn([ALICE], NOON)
    api.devices = None
    later = NOON + timedelta(hours=1)

    assert first == await known.learn([ALICE], later) == await known.learn([ALICE], later)
    assert 2 == api.asked


@pytest.mark.parametrize("users", [0, 3])
async def test_more_users_than_are_kept(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who are asked about are told, also if not all are kept."""
    monkeypatch.setattr(identities, "_MOST", 1)
    asked = [UserId(f"@{number}:lab.test") for number in range(users)]

    assert set(asked) == set(await Identities(Answers({})).learn(asked, NOON))
