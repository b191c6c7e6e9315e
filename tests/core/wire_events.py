"""Events and messages as a homeserver hands them over, made for a test, and what is read of them."""

from typing import Any

from rtc_appservice.core.observed import Observation, Rejected
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import RoomId

from .build import HOMESERVER, KEY_TYPE, NOON, ROOM, SECRET, ms

WATCHED = frozenset({ROOM})
READER = TransactionReader(HOMESERVER, SECRET)
KEY = "AAECAwQFBgcICQoLDA0ODw"
STATE_TYPE = "org.matrix.msc3401.call.member"


def read(body: dict[str, Any], *, watched: frozenset[RoomId] = WATCHED, **changes: Any) -> Intake:
    """Read a transaction as received at noon."""
    reader = changes.pop("reader", READER)
    intake: Intake = reader.read(body, **({"received_at": NOON, "watched": watched, "watermark_at": None} | changes))
    return intake


def event(kind: str, content: Any, **changes: Any) -> dict[str, Any]:
    """Give a room event sent at noon, with changes."""
    return {
        "type": kind,
        "sender": "@alice:lab.test",
        "room_id": ROOM,
        "event_id": "$event",
        "origin_server_ts": ms(0),
        "content": content,
    } | changes


def room_key(**changes: Any) -> dict[str, Any]:
    """Give a room key event sent at noon, with changes to its content."""
    content = {"call_id": "", "device_id": "ALICE1", "keys": [{"index": 0, "key": KEY}], "sent_ts": ms(0)}
    return event(KEY_TYPE, content | changes)


def member(**changes: Any) -> dict[str, Any]:
    """Give a call membership event sent at noon, with changes."""
    content = {"application": "m.call", "call_id": "", "device_id": "ALICE1", "focus_active": {"type": "livekit"}}
    return event(STATE_TYPE, content, state_key="_@alice:lab.test_ALICE1") | changes


def to_device(kind: str, content: Any, **changes: Any) -> dict[str, Any]:
    """Give a to-device message from alice to bob, with changes."""
    return {
        "type": kind,
        "sender": "@alice:lab.test",
        "to_user_id": "@bob:lab.test",
        "to_device_id": "BOB1",
        "content": content,
    } | changes


def olm(length: int = 1280, body: str = "A", **changes: Any) -> dict[str, Any]:
    """Give a sealed to-device message from alice to bob, with changes."""
    content = {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "ciphertext": {"bob's key": {"type": 1, "body": (body * length)[:length]}},
        "sender_key": "alice's key",
    }
    return to_device("m.room.encrypted", content) | changes


def clear_key(**changes: Any) -> dict[str, Any]:
    """Give a to-device key sent without Olm, with changes to its content."""
    content = {
        "keys": {"index": 0, "key": KEY},
        "room_id": ROOM,
        "member": {"claimed_device_id": "ALICE1"},
        "session": {"call_id": "", "application": "m.call", "scope": "m.room"},
    }
    return to_device(KEY_TYPE, content | changes)


def only(intake: Intake) -> Observation:
    """Give the only observation of an intake."""
    (observation,) = intake.observations
    return observation


def rejection(intake: Intake) -> Rejected:
    """Give the only observation's body, a rejection."""
    body = only(intake).body
    assert isinstance(body, Rejected)
    return body
