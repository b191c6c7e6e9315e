"""A homeserver's transaction becomes observations: every wire form, nothing else, and never an error."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rtc_appservice.core.observed import Rejected, RoomKey, ToDeviceKey
from rtc_appservice.core.strip import KEY_EVENT_TYPES

from .build import KEY_TYPE, NOON, OTHER_ROOM, ROOM, ms
from .wire_events import (
    KEY,
    clear_key,
    event,
    member,
    olm,
    only,
    read,
    rejection,
    room_key,
    to_device,
)

FORMS = sorted((Path(__file__).parent.parent / "data" / "wire").glob("*.json"))


# --- every form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FORMS, ids=lambda path: str(path.stem))
def test_every_wire_form(path: Path) -> None:
    """Each form in tests/data/wire, as clients and homeservers send it, is read as the file says."""
    form = json.loads(path.read_text())
    intake = read(form["transaction"])
    bodies = [msgspec.to_builtins(observation.body) for observation in intake.observations]
    envelopes = [msgspec.to_builtins(envelope.body) for envelope in intake.envelopes]

    assert len(form["expected"]) == len(bodies)
    assert form["expected"] == [_like(body, wanted) for body, wanted in zip(bodies, form["expected"], strict=True)]
    assert form["envelopes"] == [
        _like(found, wanted) for found, wanted in zip(envelopes, form["envelopes"], strict=True)
    ]
    assert len(form["envelopes"]) == len(envelopes)


def _like(found: Any, wanted: Any) -> Any:
    """Give the part of a value that is named in another."""
    if isinstance(wanted, dict):
        return {name: _like(found[name], wanted[name]) for name in wanted}
    if isinstance(wanted, list) and len(wanted) == len(found):
        return [_like(*pair) for pair in zip(found, wanted, strict=True)]
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: str(path.stem))
def test_no_form_keeps_its_key(path: Path) -> None:
    """Nothing that was read holds a key that stood in the transaction."""
    intake = read(json.loads(path.read_text())["transaction"])
    dumped = msgspec.json.encode([intake.observations, intake.envelopes]).decode()

    assert KEY not in dumped and KEY[::-1] not in dumped


@pytest.mark.parametrize("kind", sorted(KEY_EVENT_TYPES))
def test_every_key_event_type(kind: str) -> None:
    """All names of the key event are read, in the timeline and to devices."""
    in_room = only(read({"events": [room_key() | {"type": kind}]})).body
    to_bob = only(read({"to_device": [clear_key() | {"type": kind}]})).body

    assert isinstance(in_room, RoomKey) and isinstance(to_bob, ToDeviceKey)
    assert [kind] * 2 == [in_room.event_type, to_bob.event_type]


@pytest.mark.parametrize("kind", ["org.matrix.msc3401.call.member", "m.call.member"])
def test_both_names_of_the_state_form(kind: str) -> None:
    """The stable name of the membership is read like the unstable one."""
    assert "membership" == msgspec.to_builtins(only(read({"events": [member(type=kind)]})).body)["kind"]


@pytest.mark.parametrize("name", ["to_device", "de.sorunome.msc2409.to_device"])
def test_both_names_of_the_to_device_list(name: str) -> None:
    """Synapse sends the unstable name only; the stable one is read as well."""
    intake = read({name: [olm(), clear_key()]})

    assert (1, 1, 2, NOON) == (
        len(intake.envelopes),
        len(intake.observations),
        intake.to_device_count,
        intake.newest_at,
    )


# --- what leaves nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["m.room.message", "m.reaction", "m.sticker", "m.room.topic", "m.room.power_levels", "m.call.invite", "m.rtc.slot"],
)
def test_other_events_are_passed_over(kind: str) -> None:
    """Events of no interest leave nothing, and only move the stream's time."""
    intake = read({"events": [event(kind, {"body": "x"})]})

    assert ([], [], set(), 1, NOON) == (
        intake.observations,
        intake.envelopes,
        intake.rtc_rooms,
        intake.event_count,
        intake.newest_at,
    )


@pytest.mark.parametrize("kind", ["m.room_key_request", "m.room_key", "m.dummy", "m.secret.request", "m.new_device"])
def test_other_to_device_messages_are_passed_over(kind: str) -> None:
    """To-device messages of other kinds leave nothing."""
    intake = read({"to_device": [to_device(kind, {"x": 1})]})

    assert ([], []) == (intake.observations, intake.envelopes)


@pytest.mark.parametrize(
    ("kind", "content", "changes"),
    [
        ("m.room.member", {"membership": "leave"}, {"state_key": "@alice:lab.test"}),
        ("m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "A" * 403}, {}),
        ("m.room.redaction", {"redacts": "$key"}, {}),
    ],
)
def test_some_events_matter_in_watched_rooms_only(kind: str, content: Any, changes: Any) -> None:
    """Room members, unreadable events and redactions are recorded where RTC events were seen before."""
    body = {"events": [event(kind, content, **changes)]}

    assert [] == read(body, watched=frozenset()).observations
    assert [] == read(body, watched=frozenset({OTHER_ROOM})).observations
    assert 1 == len(read(body).observations)


def test_an_rtc_event_makes_its_room_watched_at_once() -> None:
    """What follows a membership in the same transaction is of interest already."""
    sealed = event("m.room.encrypted", {"ciphertext": "A" * 403}, event_id="$two")
    intake = read({"events": [member(), sealed]}, watched=frozenset())

    assert ({ROOM}, 2) == (intake.rtc_rooms, len(intake.observations))


def test_a_sealed_sticky_event_makes_its_room_watched() -> None:
    """In an encrypted room the first sticky membership is sealed; that it sticks is enough."""
    sealed = event("m.room.encrypted", {"ciphertext": "A" * 700}, msc4354_sticky={"duration_ms": 3600000})

    assert {ROOM} == read({"events": [sealed]}, watched=frozenset()).rtc_rooms


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("m.room.create", {}),
        ("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}),
        ("m.room.history_visibility", {"history_visibility": "joined"}),
    ],
)
def test_state_that_detection_rests_on_is_taken_from_every_room(kind: str, content: Any) -> None:
    """Creation, encryption and visibility come before any call, and do not make a room watched."""
    intake = read({"events": [event(kind, content, state_key="")]}, watched=frozenset())

    assert (1, set()) == (len(intake.observations), intake.rtc_rooms)


def test_messages_posing_as_state_are_no_state() -> None:
    """Without a state key it is a message, whatever its type."""
    assert [] == read({"events": [event("m.room.encryption", {"algorithm": "x"})]}).observations


@pytest.mark.parametrize("membership", ["join", "invite", "knock"])
def test_coming_into_a_room_is_no_call_membership(membership: str) -> None:
    """Only leaving a room, or being removed from it, bears on a call."""
    joining = event("m.room.member", {"membership": membership}, state_key="@alice:lab.test")

    assert [] == read({"events": [joining]}).observations


# --- rejections ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (room_key(device_id=7), "content.device_id"),
        (room_key(device_id="x" * 256), "content.device_id"),
        (room_key(call_id=None), "content.call_id"),
        (room_key(keys={"index": 0, "key": KEY}), "content.keys"),
        (room_key(keys=[]), "content.keys"),
        (room_key(keys=None), "content.keys"),
        (room_key(keys=[KEY]), "content.keys[].index"),
        (room_key(keys=[{"index": 0}]), "content.keys[].key"),
        (room_key(keys=[{"key": KEY}]), "content.keys[].index"),
        (room_key(keys=[{"index": "0", "key": KEY}]), "content.keys[].index"),
        (room_key(keys=[{"index": True, "key": KEY}]), "content.keys[].index"),
        (room_key(keys=[{"index": -1, "key": KEY}]), "content.keys[].index"),
        (room_key(keys=[{"index": 256, "key": KEY}]), "content.keys[].index"),
        (room_key(sent_ts="soon"), "content.sent_ts"),
        (event(KEY_TYPE, KEY), "event.content"),
        (event(KEY_TYPE, None), "event.content"),
        (event("m.room.encryption", {}, state_key=""), "content.algorithm"),
        (event("m.room.history_visibility", {"history_visibility": 1}, state_key=""), "content.history_visibility"),
        (event("m.room.redaction", {"redacts": 1}), "redacts"),
        (member(content={"application": "m.call"}), "content.device_id"),
        (member(state_key=None), "event.state_key"),
        (member(origin_server_ts="noon"), "event.origin_server_ts"),
        (member(origin_server_ts=None), "origin_server_ts"),
        (event("m.rtc.member", {}), "content.msc4354_sticky_key"),
    ],
)
def test_a_malformed_event_is_recorded_by_its_field(bad: dict[str, Any], field: str) -> None:
    """What cannot be taken is a rejection that names event type, sender and field, and never a value."""
    body = rejection(read({"events": [bad]}))

    assert ("malformed", field, "@alice:lab.test", bad["type"]) == (
        body.reason,
        body.field,
        body.sender,
        body.event_type,
    )
    assert KEY not in msgspec.json.encode(body).decode()


def test_one_bad_event_does_not_harm_the_others() -> None:
    """The rest of the transaction is read."""
    kinds = [
        msgspec.to_builtins(found.body)["kind"]
        for found in read(
            {"events": [room_key(keys=1), {}, None, 1, "x", room_key() | {"event_id": "$2"}]}
        ).observations
    ]

    assert ["rejected", "room_key"] == kinds


def test_a_rejected_membership_keeps_its_place() -> None:
    """A malformed state event still replaces what stood at its state key."""
    assert "_@alice:lab.test_ALICE1" == rejection(read({"events": [member(content={"application": 1})]})).key


@pytest.mark.parametrize(
    ("seconds", "implausible"),
    [(0, False), (-604800, False), (-604801, True), (600, False), (601, True), (-(10**7), True), (10**7, True)],
)
def test_implausible_times_are_not_believed(seconds: float, implausible: bool) -> None:
    """More than 7 days old or 10 minutes ahead is rejected: a federated sender chooses its timestamp."""
    body = only(read({"events": [room_key() | {"origin_server_ts": ms(seconds)}]})).body

    assert implausible is (isinstance(body, Rejected) and body.reason == "implausible_time")


def test_a_rejection_for_its_time_stands_at_the_time_of_receipt() -> None:
    """The claimed time of an implausible event is not used."""
    assert NOON == only(read({"events": [room_key() | {"origin_server_ts": ms(-(10**7))}]})).event_at


@pytest.mark.parametrize("name", ["sender", "room_id", "event_id"])
@pytest.mark.parametrize("value", [None, 1, [], "", "x" * 256])
def test_an_event_without_identity_is_nothing(name: str, value: Any) -> None:
    """No homeserver sends one; there is nothing to record it under."""
    assert [] == read({"events": [room_key() | {name: value}]}).observations


@pytest.mark.parametrize("name", ["sender", "to_user_id", "to_device_id"])
@pytest.mark.parametrize("value", [None, 1, [], "", "x" * 256])
def test_a_to_device_message_without_ends_is_nothing(name: str, value: Any) -> None:
    """Sender, recipient and device are ids of at most 255 characters, or the message is passed over."""
    intake = read({"to_device": [olm() | {name: value}, clear_key() | {name: value}]})

    assert ([], []) == (intake.observations, intake.envelopes)


# --- envelopes and counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 400, 60000])
def test_envelopes_no_key_can_fill_are_not_held(length: int) -> None:
    """An Olm message far too short or too long for a media key is dropped at once."""
    assert [] == read({"to_device": [olm(length)]}).envelopes


@pytest.mark.parametrize(
    "ciphertext",
    [None, [], "x", {}, {"k": None}, {"k": {"type": 2, "body": "A" * 1280}}, {"k": {"type": 1}}, {"k": {"type": "1"}}],
)
def test_what_is_no_olm_ciphertext_is_passed_over(ciphertext: Any) -> None:
    """A to-device message that claims to be sealed and is not leaves nothing."""
    content = {"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": ciphertext, "sender_key": "x"}

    assert [] == read({"to_device": [to_device("m.room.encrypted", content)]}).envelopes


@pytest.mark.parametrize(
    ("body", "users"),
    [
        ({}, set()),
        ({"de.sorunome.msc2409.to_device": []}, set()),
        ({"to_device": [olm()]}, {"@bob:lab.test"}),
        ({"to_device": [to_device("m.dummy", {})]}, {"@bob:lab.test"}),
        ({"org.matrix.msc3202.device_one_time_keys_count": {"@a:lab.test": {}, "@b:lab.test": {}}}, None),
        ({"device_one_time_keys_count": {"@a:lab.test": {}, "@b:lab.test": {}}}, None),
    ],
)
def test_whose_to_device_traffic_was_shown(body: dict[str, Any], users: set[str] | None) -> None:
    """An empty list proves nothing; messages and one-time-key counts tell whose traffic is visible."""
    assert ({"@a:lab.test", "@b:lab.test"} if users is None else users) == read(body).served_users


def test_counts_of_what_came() -> None:
    """Events, to-device messages and ephemeral events are counted, of interest or not; doubled lists once."""
    twice = [{"type": "m.typing"}, {"type": "m.receipt"}]
    intake = read({"events": [{}, member()], "ephemeral": twice, "de.sorunome.msc2409.ephemeral": twice})

    assert (2, 0, 2) == (intake.event_count, intake.to_device_count, intake.ephemeral_count)


def test_an_empty_transaction_is_taken() -> None:
    """A device list change comes with no events at all."""
    changed = {"events": [], "org.matrix.msc3202.device_lists": {"changed": ["@alice:lab.test"], "left": []}}

    assert ([], [], None) == (read(changed).observations, read(changed).envelopes, read(changed).newest_at)
