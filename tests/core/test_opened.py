"""What devices of ours decrypted is stripped like all else; what is neither key nor membership is nobody's business."""

from typing import Any

import msgspec
import pytest

from rtc_appservice.core.observed import Membership, RoomKey, ToDeviceKey
from rtc_appservice.core.opened import Opened, Plaintext
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import DeviceTrust

from .build import KEY_TYPE, ROOM, who
from .test_membership import STICKY
from .wire_events import KEY, clear_key, event, olm, read, room_key

TRUST = next(iter(DeviceTrust))
SEALED = event("m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "A" * 403})
CIPHERTEXT: str = olm()["content"]["ciphertext"]["bob's key"]["body"]


def plain(kind: str, content: dict[str, Any], device: str = "alice") -> Plaintext:
    """Give what was read in a sealed event of alice's."""
    return Plaintext(type=kind, content=content, sender_device_id=who(device)[1], trust=TRUST)


def read_event(found: Plaintext, sealed: dict[str, Any] = SEALED) -> Intake:
    """Read a transaction whose sealed room event a device of ours opened."""
    return read({"events": [sealed]}, opened=Opened(events={"$event": found}))


def read_message(found: Plaintext, device: str = "bob", message: dict[str, Any] | None = None) -> Intake:
    """Read a transaction whose sealed to-device message a device of ours opened."""
    opened = Opened(devices=frozenset({who(device)}), messages={CIPHERTEXT: found})
    return read({"to_device": [message or olm()]}, opened=opened)


def dumped(intake: Intake) -> str:
    """Give all that would be stored."""
    return msgspec.json.encode([intake.observations, intake.envelopes]).decode()


def test_an_opened_room_key_is_read_without_its_key() -> None:
    """It stands under the sealed event's id, marked as decrypted."""
    intake = read_event(plain(KEY_TYPE, room_key()["content"]))
    (observation,) = intake.observations

    assert isinstance(observation.body, RoomKey)
    assert ("$event", True, 16) == (observation.identity, observation.body.encrypted, observation.body.keys[0].length)
    assert KEY not in dumped(intake)


def test_an_opened_membership_is_read() -> None:
    """In an encrypted room the sticky join is sealed; its stickiness stands outside."""
    sealed = SEALED | {"msc4354_sticky": {"duration_ms": 3600000}}
    (observation,) = read_event(plain("org.matrix.msc4143.rtc.member", STICKY), sealed).observations

    assert isinstance(observation.body, Membership)
    assert (True, 3600.0, "ALICE1") == (
        observation.body.live,
        observation.body.expires_seconds,
        observation.body.device_id,
    )


def test_an_opened_to_device_key_is_read_without_its_key() -> None:
    """It is a key read by our device, not an envelope."""
    intake = read_message(plain(KEY_TYPE, clear_key()["content"]))
    (observation,) = intake.observations

    assert isinstance(observation.body, ToDeviceKey)
    assert (True, ROOM, []) == (observation.body.encrypted, observation.room_id, intake.envelopes)
    assert KEY not in dumped(intake)


@pytest.mark.parametrize(("device", "matches"), [("alice", True), ("alice/2", False)])
def test_a_claimed_device_is_held_against_the_one_that_sealed(device: str, matches: bool) -> None:
    """The content's device is a claim; the Olm key is not."""
    (observation,) = read_message(plain(KEY_TYPE, clear_key()["content"], device)).observations

    assert isinstance(observation.body, ToDeviceKey)
    assert matches is observation.body.device_matches


@pytest.mark.parametrize("kind", ["m.room.message", "m.room_key", "m.secret.send", "m.room.encryption"])
def test_other_decrypted_content_leaves_nothing(kind: str) -> None:
    """Conversation, Megolm sessions, secrets and sealed state are dropped unseen."""
    content = {"body": "private words", "algorithm": "private words", "session_key": "private words"}

    assert "[[],[]]" == dumped(read_event(plain(kind, content)))
    assert "[[],[]]" == dumped(read_message(plain(kind, content)))


def test_only_messages_for_our_devices_are_taken_as_opened() -> None:
    """The same ciphertext for another device stays an envelope."""
    intake = read_message(plain(KEY_TYPE, clear_key()["content"]), message=olm(to_device_id="BOB2"))

    assert ([], 1) == (intake.observations, len(intake.envelopes))


def test_what_a_sealed_event_says_of_itself_is_not_believed() -> None:
    """Sender, room and time are those the homeserver vouches for, whatever the plaintext repeats."""
    content = room_key()["content"] | {"sender": "@mallory:lab.test", "room_id": "!elsewhere", "origin_server_ts": 1}
    (observation,) = read_event(plain(KEY_TYPE, content)).observations

    assert isinstance(observation.body, RoomKey)
    assert ("@alice:lab.test", ROOM) == (observation.body.sender, observation.room_id)


def test_a_plaintext_never_shows_its_content() -> None:
    """Its repr ends up in logs and traces."""
    assert KEY not in repr(plain(KEY_TYPE, room_key()["content"]))
    assert KEY not in repr(Opened(events={"$event": plain(KEY_TYPE, room_key()["content"])}))


@pytest.mark.parametrize("kind", ["m.room_key.withheld", "org.matrix.room_key.withheld"])
def test_a_session_kept_from_our_device_is_recorded(kind: str) -> None:
    """With its code; the session id stays a keyed hash. What is kept from others is not ours to record."""
    content = {"room_id": ROOM, "session_id": "a session", "code": "m.unverified", "algorithm": "m.megolm.v1.aes-sha2"}
    message = olm() | {"type": kind, "content": content}
    ours = read({"to_device": [message]}, opened=Opened(devices=frozenset({who("bob")})))

    assert [] == read({"to_device": [message]}).observations
    assert ["withheld"] == [msgspec.to_builtins(one.body)["kind"] for one in ours.observations]
    assert "a session" not in dumped(ours)
