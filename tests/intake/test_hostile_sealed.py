"""What others send to the service's device so that it fails or goes deaf, with real Olm and Megolm."""

import base64
from datetime import UTC, datetime

import pytest

from rtc_appservice.core.observed import Withheld
from rtc_appservice.core.undecryptable import WithheldCode
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import ServerName
from rtc_appservice.intake.decrypt import Reading, open_transaction
from rtc_appservice.intake.keyring import Changes, Keyring
from tests.intake.olm_peer import Peer, body

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def mallory(ours: Keyring) -> Peer:
    """Give a device that means ill."""
    return Peer(ours, "@mallory:lab.test", "MALLORY1")


def reasons(reading: Reading) -> list[str]:
    """Give why messages and events were not opened."""
    found = [reason for _, reason in reading.unread_messages] + [event.reason for event in reading.unread_events]
    return [str(reason) for reason in found]


def test_a_first_message_without_its_senders_key(ours: Keyring, mallory: Peer) -> None:
    """Given the key to compare, libolm (3.2.16) ends the process at such a one, which would come by each `/sync`."""
    message = mallory.media_key()
    (sealed,) = message["content"]["ciphertext"].values()
    # Version 3, then tag, length and value: the one-time key, the base key, the identity key, the message.
    raw = base64.b64decode(sealed["body"] + "==")
    assert (3, 0x0A, 0x12, 0x1A) == (raw[0], raw[1], raw[35], raw[69])
    sealed["body"] = base64.b64encode(raw[:69] + raw[103:]).decode().rstrip("=")

    assert ["olm_failed"] == reasons(open_transaction(body(message), ours))
    assert Changes() == ours.changes


def test_a_first_message_under_the_key_of_another(ours: Keyring, alice: Peer, mallory: Peer) -> None:
    """Whose key it says it is of is not whose key it holds."""
    message = mallory.media_key()
    message["content"]["sender_key"] = alice.identity_key

    assert ["olm_failed"] == reasons(open_transaction(body(message), ours))
    assert Changes() == ours.changes


def test_a_copy_makes_no_replay_of_the_original(ours: Keyring, alice: Peer, mallory: Peer) -> None:
    """Somebody sends on what somebody else sealed, in the room or in another, before the original is read."""
    key, original = alice.megolm_key(), alice.room_key(0)
    handed_on = mallory.megolm_key(room_id="!other", session_id=alice.megolm.id, session_key=alice.megolm.session_key)
    here = {**original, "event_id": "$here", "sender": mallory.user}
    there = {**here, "event_id": "$there", "room_id": "!other"}
    first = alice.room_key(1)
    elsewhere = {**first, "event_id": "$elsewhere", "sender": mallory.user, "room_id": "!other"}
    reading = open_transaction(body(key, handed_on, events=(here, there, original, elsewhere, first)), ours)

    assert ["$event0", "$event1"] == list(reading.opened.events)
    assert ["wrong_sender", "before_session", "wrong_room"] == reasons(reading)


def test_a_session_claimed_before_its_owner(ours: Keyring, alice: Peer, mallory: Peer) -> None:
    """A member hands on as theirs what they were given, before the owner's own comes: the owner is heard still."""
    claimed = mallory.megolm_key(session_id=alice.megolm.id, session_key=alice.megolm.session_key)
    key, early, late = alice.megolm_key(), alice.room_key(0), alice.room_key(1)
    copy = {**early, "event_id": "$copy", "sender": mallory.user, "origin_server_ts": early["origin_server_ts"] + 1}
    deaf = open_transaction(body(claimed, events=(early, copy)), ours)
    heard = open_transaction(body(key, events=(early, late, copy, {**early, "event_id": "$again"})), ours)

    assert ["wrong_sender", "replayed"] == reasons(deaf)
    assert [] == list(deaf.opened.events)
    assert ["$event0", "$event1"] == list(heard.opened.events)
    assert ["replayed", "replayed"] == reasons(heard)
    assert {alice.device} == {plaintext.sender_device_id for plaintext in heard.opened.events.values()}


def test_a_copy_that_came_first(ours: Keyring, alice: Peer, mallory: Peer) -> None:
    """However early a copy comes, with a claim to the session, the original is opened."""
    claimed = mallory.megolm_key(session_id=alice.megolm.id, session_key=alice.megolm.session_key)
    key, original = alice.megolm_key(), alice.room_key(0)
    copy = {
        **original,
        "event_id": "$copy",
        "sender": mallory.user,
        "origin_server_ts": original["origin_server_ts"] + 1,
    }
    reading = open_transaction(body(claimed, key, events=(copy, original)), ours)

    assert "$event0" in reading.opened.events
    assert [] == reasons(reading)


def test_a_withheld_code_is_one_of_the_specification(ours: Keyring, mallory: Peer) -> None:
    """Whatever else stands in its place is not kept: it is free text, of anybody's."""
    planted = base64.b64encode(b"A MEDIA KEY 16 B").decode()
    content = {"room_id": "!r", "session_id": "s", "code": planted, "algorithm": "m.megolm.v1.aes-sha2"}
    addresses = {"sender": mallory.user, "to_user_id": ours.device[0], "to_device_id": ours.device[1]}
    sent = body({"type": "m.room_key.withheld", **addresses, "content": content})
    reading = open_transaction(sent, ours)
    reader = TransactionReader(ServerName("lab.test"), b"a secret of the tests")
    (observation,) = reader.read(sent, received_at=NOW, watched=set(), opened=reading.opened).observations

    assert [WithheldCode.OTHER] == list(reading.withheld.values())
    assert isinstance(observation.body, Withheld)
    assert "other" == observation.body.code
    assert planted not in repr(reading) + repr(observation)
