"""What others send to the service's device so that it fails or goes deaf, with real Olm and Megolm."""

import base64

import pytest

from rtc_appservice.intake.decrypt import Reading, open_transaction
from rtc_appservice.intake.keyring import Changes, Keyring
from tests.intake.olm_peer import Peer, body, our_keyring


@pytest.fixture
def ours() -> Keyring:
    """Give our device."""
    return our_keyring()


@pytest.fixture
def alice(ours: Keyring) -> Peer:
    """Give another device."""
    return Peer(ours)


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
