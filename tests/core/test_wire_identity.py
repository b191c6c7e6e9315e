"""When an observation stands, what it is known by, and which keys are told to be the same."""

from datetime import timedelta

import msgspec
import pytest

from rtc_appservice.core.observed import RoomKey, ToDeviceKey
from rtc_appservice.core.wire import TransactionReader

from .build import HOMESERVER, NOON, OTHER_ROOM, SECRET, at, ms
from .wire_events import (
    KEY,
    READER,
    clear_key,
    event,
    olm,
    only,
    read,
    room_key,
)

# --- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "expected"), [(-30, -30), (0, 0), (30, 0)])
def test_event_time_is_the_earlier_of_sending_and_receipt(sent: float, expected: float) -> None:
    """A clock that is ahead does not move an event into the future."""
    observation = only(read({"events": [room_key() | {"origin_server_ts": ms(sent)}]}))

    assert (at(expected), NOON) == (observation.event_at, observation.received_at)


@pytest.mark.parametrize(("behind", "late"), [(0, False), (60, False), (61, True), (3600, True)])
def test_what_the_watermark_has_passed_is_late(behind: float, late: bool) -> None:
    """More than 60 s behind the watermark is late."""
    found = only(read({"events": [room_key()]}, watermark_at=NOON + timedelta(seconds=behind)))

    assert late is found.late


def test_without_a_watermark_nothing_is_late() -> None:
    """At the very first transaction there is nothing to be behind."""
    assert not only(read({"events": [room_key() | {"origin_server_ts": ms(-3600)}]})).late


def test_only_local_senders_and_to_device_move_the_watermark() -> None:
    """Another server's clock does not move the watermark; of local events the newest does; to-device has ours."""
    far = room_key() | {"sender": "@far:far.test"}
    near = event("m.room.message", {}, origin_server_ts=ms(-20))
    older = event("m.room.message", {}, origin_server_ts=ms(-50))

    assert None is read({"events": [far]}).newest_at
    assert at(-20) == read({"events": [far, near, older]}).newest_at
    assert NOON == read({"events": [older], "to_device": [olm()]}).newest_at


def test_a_local_clock_that_is_ahead_does_not_move_the_watermark_ahead() -> None:
    """The watermark never passes the time of receipt."""
    assert NOON == read({"events": [event("m.room.message", {}, origin_server_ts=ms(500))]}).newest_at


def test_a_server_name_is_matched_whole() -> None:
    """A server whose name ends like ours is another."""
    assert None is read({"events": [event("m.room.message", {}, sender="@x:notlab.test")]}).newest_at


# --- identity and tags -------------------------------------------------------------------------------


def test_a_room_event_is_known_by_its_id() -> None:
    """The event id is the identity, whatever else changes on a retry."""
    first = only(read({"events": [room_key()]}))
    again = only(read({"events": [room_key() | {"age": 5, "unsigned": {"age": 5}}]}, received_at=at(100)))

    assert "$event" == first.identity == again.identity


def test_an_envelope_is_known_by_ciphertext_and_recipient() -> None:
    """The same message is recognised whenever and under whatever name it comes; another is not."""
    first = read({"to_device": [olm()]}).envelopes[0]
    again = read({"de.sorunome.msc2409.to_device": [olm()]}, received_at=at(50)).envelopes[0]
    others = [olm(body="B"), olm(to_device_id="BOB2"), olm(to_user_id="@carol:lab.test")]

    assert first.identity == again.identity
    assert 4 == len({first.identity, *(read({"to_device": [other]}).envelopes[0].identity for other in others)})


def test_a_cleartext_key_is_known_by_content_and_recipient() -> None:
    """Equal content to the same device has an equal identity; another key, index or recipient has not."""
    first = only(read({"to_device": [clear_key()]}))
    again = only(read({"to_device": [clear_key()]}, received_at=at(50)))
    others = [
        clear_key() | {"to_device_id": "BOB2"},
        clear_key(keys={"index": 1, "key": KEY}),
        clear_key(keys={"index": 0, "key": KEY[::-1]}),
    ]

    assert first.identity == again.identity
    assert 4 == len({first.identity, *(only(read({"to_device": [other]})).identity for other in others)})


def test_identities_hold_nothing_of_the_message() -> None:
    """An identity is a keyed hash: another deployment gives another, and no ciphertext is in it."""
    other = TransactionReader(HOMESERVER, b"another secret")
    mine, theirs = (read({"to_device": [olm()]}, reader=reader).envelopes[0] for reader in (READER, other))

    assert mine.identity != theirs.identity and mine.body.sender_key_id != theirs.body.sender_key_id
    assert "alice's key" not in msgspec.json.encode(mine).decode()


def test_devices_of_one_user_are_told_apart_by_their_olm_key() -> None:
    """Equal sender keys give equal ids, different ones different ids."""
    content = olm()["content"]
    laptop = olm(content=content | {"sender_key": "her laptop's key"})
    ids = [found.body.sender_key_id for found in read({"to_device": [olm(), olm(body="B"), laptop]}).envelopes]

    assert ids[0] == ids[1] != ids[2]


def test_the_same_key_has_the_same_tag_on_both_transports() -> None:
    """A key that went to-device in clear and then into the room is recognised, however it is written."""
    intake = read({"events": [room_key()], "to_device": [clear_key(keys={"index": 0, "key": KEY + "=="})]})
    tags = {found.body.keys[0].tag for found in intake.observations if isinstance(found.body, RoomKey | ToDeviceKey)}

    assert 1 == len(tags) and None not in tags


def test_tags_do_not_link_rooms() -> None:
    """The same key in two rooms has two tags."""
    intake = read({"events": [room_key(), room_key() | {"room_id": OTHER_ROOM, "event_id": "$2"}]})
    tags = {found.body.keys[0].tag for found in intake.observations if isinstance(found.body, RoomKey)}

    assert 2 == len(tags)


def test_tags_can_be_switched_off() -> None:
    """One switch leaves every mark without a tag."""
    untagged = TransactionReader(HOMESERVER, SECRET, comparison_tags=False)
    intake = read({"events": [room_key()], "to_device": [clear_key()]}, reader=untagged)
    tags = [found.body.keys[0].tag for found in intake.observations if isinstance(found.body, RoomKey | ToDeviceKey)]

    assert [None, None] == tags


@pytest.mark.parametrize("field", ["room_id", "call_id", "device_id", "note"])
def test_a_key_repeated_in_the_content_is_not_recorded(field: str) -> None:
    """A sender that writes its key into another field does not get it recorded."""
    intake = read({"events": [room_key(**{field: KEY})], "to_device": [clear_key(**{field: KEY})]})

    assert KEY not in msgspec.json.encode(intake.observations).decode()
