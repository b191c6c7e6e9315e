"""Opening transactions with real Olm and Megolm, and what must not be opened or believed."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from olm.pk import PkSigning

from rtc_appservice.core.observed import RoomKey, ToDeviceKey, Withheld
from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import DeviceTrust, ServerName, UserId
from rtc_appservice.intake.decrypt import Reading, open_transaction
from rtc_appservice.intake.device_keys import Identity
from rtc_appservice.intake.keyring import Changes, Keyring
from tests.intake.olm_peer import KEY_TYPE, OURS, Peer, body, our_keyring

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def read(transaction: dict[str, Any], reading: Reading) -> Intake:
    """Give what the reader makes of an opened transaction."""
    reader = TransactionReader(ServerName("lab.test"), b"a secret of the tests")
    return reader.read(transaction, received_at=NOW, watched=set(), opened=reading.opened)


def reasons(reading: Reading) -> list[UndecryptableReason]:
    """Give why messages and events were not opened."""
    return [reason for _, reason in reading.unread_messages] + [event.reason for event in reading.unread_events]


# --- to-device: what mautrix's machine loses ------------------------------------------------------


def test_a_custom_type_is_handed_over(ours: Keyring, alice: Peer) -> None:
    """A media key, for which mautrix raises AttributeError after the ratchet has advanced."""
    sent = body(alice.media_key(), alice.media_key())
    (first, second) = read(sent, open_transaction(sent, ours)).observations

    assert isinstance(first.body, ToDeviceKey)
    assert isinstance(second.body, ToDeviceKey)
    assert (True, "ALICE1", True) == (first.body.encrypted, first.body.sender_device_id, first.body.device_matches)


def test_withheld_codes_are_recorded(ours: Keyring) -> None:
    """They tell why a session does not come; mautrix drops them at debug level."""
    content = {"room_id": "!r", "session_id": "s", "code": "m.unverified", "algorithm": "m.megolm.v1.aes-sha2"}
    message = {"type": "m.room_key.withheld", "sender": "@a:lab.test", "to_user_id": OURS[0], "to_device_id": OURS[1]}
    sent = body({**message, "content": content})
    reading = open_transaction(sent, ours)
    (observation,) = read(sent, reading).observations

    assert isinstance(observation.body, Withheld)
    assert "m.unverified" == observation.body.code
    assert ["m.unverified"] == list(reading.withheld.values())


def test_keys_without_olm_are_recorded(ours: Keyring, alice: Peer) -> None:
    """The server could read them; mautrix drops them at debug level."""
    content = {"keys": {"index": 0, "key": "AAAA"}, "room_id": "!r", "member": {"claimed_device_id": "ALICE1"}}
    addresses = {"sender": alice.user, "to_user_id": OURS[0], "to_device_id": OURS[1]}
    sent = body({**addresses, "type": KEY_TYPE, "content": content})
    (observation,) = read(sent, open_transaction(sent, ours)).observations

    assert isinstance(observation.body, ToDeviceKey)
    assert not observation.body.encrypted


def test_a_message_that_does_not_open_changes_nothing(ours: Keyring, alice: Peer) -> None:
    """No one-time key is used, and nothing is answered; mautrix sends a new session."""
    message = alice.media_key()
    (sealed,) = message["content"]["ciphertext"].values()
    sealed["body"] = sealed["body"][:-4] + "AAAA"
    before = ours.account.pickle("x")
    reading = open_transaction(body(message), ours)

    assert ["olm_failed"] == reasons(reading)
    assert Changes() == ours.changes
    assert len(before) == len(ours.account.pickle("x"))
    assert [] == reasons(open_transaction(body(alice.media_key()), ours))


def test_a_message_comes_once(ours: Keyring, alice: Peer) -> None:
    """What `/sync` brings again never reaches the ratchet, which could not open it."""
    sent = body(alice.media_key())
    once = read(sent, open_transaction(sent, ours))
    again = open_transaction(sent, ours)

    assert 1 == len(once.observations)
    assert [] == reasons(again)
    assert (0, 0) == (len(read(sent, again).observations), len(read(sent, again).envelopes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sender": "@mallory:lab.test"}, "wrong_sender"),
        ({"recipient": "@somebody:lab.test"}, "wrong_recipient"),
        ({"recipient_keys": {"ed25519": "x"}}, "wrong_recipient"),
        ({"recipient_keys": None}, "wrong_recipient"),
        ({"content": "text"}, "malformed"),
        ({"type": None}, "malformed"),
    ],
)
def test_plaintexts_that_are_not_for_us(ours: Keyring, alice: Peer, changes: dict[str, Any], reason: str) -> None:
    """A message somebody else got may be passed on to us; the plaintext names its ends."""
    sent = body(alice.media_key(**changes))
    reading = open_transaction(sent, ours)

    assert [reason] == reasons(reading)
    assert [] == read(sent, reading).observations


# --- to-device: who sealed it ---------------------------------------------------------------------


def trust_of(
    ours: Keyring, message: dict[str, Any], identity: Identity | None = None
) -> tuple[str | None, DeviceTrust]:
    """Give the device that a media key is bound to, and how far it is trusted."""
    identities = {} if identity is None else {UserId(message["sender"]): identity}
    (plain,) = open_transaction(body(message), ours, identities).opened.messages.values()
    return plain.sender_device_id, plain.trust


def test_devices_by_what_they_send_along(ours: Keyring, alice: Peer) -> None:
    """Signed by itself, by a cross-signing key that is not known, that is known, or with nothing sent along."""
    signer, other = PkSigning(PkSigning.generate_seed()), PkSigning(PkSigning.generate_seed())
    signed = alice.device_keys(signer)
    known = Identity(str(signer.public_key))

    assert ("ALICE1", DeviceTrust.UNSIGNED) == trust_of(ours, alice.media_key())
    assert ("ALICE1", DeviceTrust.SIGNED_UNCHECKED) == trust_of(ours, alice.media_key(sender_device_keys=signed))
    assert ("ALICE1", DeviceTrust.CROSS_SIGNED) == trust_of(ours, alice.media_key(sender_device_keys=signed), known)
    replaced = Identity(str(other.public_key))
    assert ("ALICE1", DeviceTrust.UNSIGNED) == trust_of(ours, alice.media_key(sender_device_keys=signed), replaced)
    assert (None, DeviceTrust.UNKNOWN) == trust_of(ours, alice.media_key(sender_device_keys=None))


def test_devices_by_what_the_homeserver_says(ours: Keyring, alice: Peer) -> None:
    """Older clients send nothing along; and who was signed since is told by the homeserver."""
    signer = PkSigning(PkSigning.generate_seed())
    identity = Identity(str(signer.public_key), (alice.device_keys(signer),))

    assert ("ALICE1", DeviceTrust.CROSS_SIGNED) == trust_of(ours, alice.media_key(sender_device_keys=None), identity)
    assert ("ALICE1", DeviceTrust.CROSS_SIGNED) == trust_of(ours, alice.media_key(), identity)


def forgeries(alice: Peer, mallory: Peer) -> dict[str, Any]:
    """Give device keys that are not alice's own, or not as she signed them."""
    own = alice.device_keys()
    return {
        "another device's": mallory.device_keys(),
        "another user": {**own, "user_id": mallory.user},
        "another name": {**own, "device_id": "ALICE2"},
        "unsigned": {**own, "signatures": {}},
        "changed": {**own, "algorithms": []},
        "its own signing key with another's name": {**mallory.device_keys(), "user_id": alice.user},
        "no table": "text",
    }


@pytest.mark.parametrize(
    "which", ["another device's", "another user", "another name", "unsigned", "changed", "no table"]
)
def test_forged_device_keys(ours: Keyring, alice: Peer, which: str) -> None:
    """They bind a message to no device, and are told."""
    forged = forgeries(alice, Peer(ours, "@mallory:lab.test", "MALLORY1"))[which]

    assert (None, DeviceTrust.INVALID) == trust_of(ours, alice.media_key(sender_device_keys=forged))


def test_another_claimed_device_is_told(ours: Keyring, alice: Peer) -> None:
    """The Olm key says which device it was, whatever the content claims."""
    alice.device, claimed = "ALICE2", alice.device
    message = alice.media_key(
        content={"keys": {"index": 0, "key": "AAAA"}, "room_id": "!r", "member": {"claimed_device_id": claimed}}
    )
    (observation,) = read(body(message), open_transaction(body(message), ours)).observations

    assert isinstance(observation.body, ToDeviceKey)
    assert ("ALICE2", "ALICE1", False) == (
        observation.body.sender_device_id,
        observation.body.claimed_device_id,
        observation.body.device_matches,
    )


# --- rooms ----------------------------------------------------------------------------------------


def test_events_open_with_sessions_of_the_same_transaction(ours: Keyring, alice: Peer) -> None:
    """To-device messages come first, wherever they stand."""
    key = alice.megolm_key()
    sent = body(key, events=(alice.room_key(0), alice.event(1, "m.room.message", {"body": "a secret"})))
    reading = open_transaction(sent, ours)
    intake = read(sent, reading)
    (observation,) = intake.observations

    assert [] == reasons(reading)
    assert isinstance(observation.body, RoomKey)
    assert ("ALICE1", True, True) == (
        observation.body.sender_device_id,
        observation.body.encrypted,
        observation.body.device_matches,
    )
    assert "a secret" not in repr(reading)


def test_a_room_key_of_another_device_is_told(ours: Keyring, alice: Peer) -> None:
    """The session came from one device, the content claims another."""
    key = alice.megolm_key()
    content = {"call_id": "", "device_id": "ALICE9", "keys": [{"index": 0, "key": "AAAA"}]}
    sent = body(key, events=(alice.event(0, KEY_TYPE, content),))
    (observation,) = read(sent, open_transaction(sent, ours)).observations

    assert isinstance(observation.body, RoomKey)
    assert observation.body.device_matches is False


def test_state_is_never_sealed(ours: Keyring, alice: Peer) -> None:
    """A membership or room state inside a sealed event is none."""
    key = alice.megolm_key()
    kinds = (
        "m.room.encryption",
        "m.room.create",
        "m.room.redaction",
        "m.room.encrypted",
        "org.matrix.msc3401.call.member",
    )
    events = tuple(alice.event(number, kind, {}, state_key="") for number, kind in enumerate(kinds))
    sent = body(key, events=events)

    assert [] == read(sent, open_transaction(sent, ours)).observations


def test_events_that_are_not_what_they_seem(ours: Keyring, alice: Peer) -> None:
    """Moved to another room, sent on by another user, or under an index that was used: not opened."""
    first, moved, stolen, used = (
        alice.megolm_key(),
        alice.room_key(0, room_id="!other"),
        alice.room_key(1),
        alice.room_key(2),
    )
    stolen["sender"] = "@mallory:lab.test"
    reading = open_transaction(body(first, events=(moved, stolen, used, {**used, "event_id": "$again"}, used)), ours)

    assert ["wrong_room", "wrong_sender", "replayed"] == reasons(reading)
    assert ["$event2"] == list(reading.opened.events)


def test_events_before_the_session_begins(ours: Keyring, alice: Peer) -> None:
    """Who came later was given the session as it was then."""
    early = alice.room_key(0)
    reading = open_transaction(body(alice.megolm_key(), events=(early, alice.room_key(1))), ours)

    assert ["before_session"] == reasons(reading)
    assert ["missing_session"] == reasons(open_transaction(body(events=(early,)), our_keyring()))


def test_a_session_keeps_its_owner(ours: Keyring, alice: Peer) -> None:
    """A member who was given a session cannot hand it on as their own."""
    mallory = Peer(ours, "@mallory:lab.test", "MALLORY1")
    key = alice.megolm_key()
    mallory.megolm = alice.megolm
    reading = open_transaction(body(key, mallory.megolm_key(), events=(alice.room_key(0),)), ours)
    wrong = alice.megolm_key(session_id="another")

    assert 1 == len(reading.sessions)
    assert [] == reasons(reading)
    assert set() == open_transaction(body(wrong), ours).sessions


# --- anything ------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    likely = st.sampled_from(
        [
            "m.room.encrypted",
            "m.olm.v1.curve25519-aes-sha2",
            "m.megolm.v1.aes-sha2",
            OURS[0],
            OURS[1],
            "m.room_key.withheld",
            "$e",
            "!r",
        ]
    )
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, likely | _json))


_contents = _objects("algorithm", "ciphertext", "sender_key", "session_id", "room_id", "code")
_events = _objects("type", "sender", "event_id", "room_id", "to_user_id", "to_device_id").flatmap(
    lambda event: st.tuples(st.just(event), _contents | _json).map(lambda pair: {**pair[0], "content": pair[1]})
)


@given(st.lists(_events | _json, max_size=4), st.lists(_events | _json, max_size=4))
def test_nothing_raises(events: list[Any], messages: list[Any]) -> None:
    """Whatever a homeserver passes on, opening and reading it is no error."""
    ours = our_keyring()
    sent = {"events": events, "to_device": messages}

    read(sent, open_transaction(sent, ours))
