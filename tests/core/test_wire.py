"""A homeserver's transaction becomes observations: every wire form, nothing else, and never an error."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtc_appservice.core.model import Observation, Rejected, RoomId, RoomKey, ToDeviceKey
from rtc_appservice.core.strip import KEY_EVENT_TYPES
from rtc_appservice.core.wire import Intake, TransactionReader

from .build import HOMESERVER, KEY_TYPE, NOON, OTHER_ROOM, ROOM, SCENARIOS, SECRET, at, ms, transactions_of, truth_of
from .test_strip import json_values

FORMS = sorted((Path(__file__).parent.parent / "data" / "wire").glob("*.json"))
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


# --- whatever comes ----------------------------------------------------------------------------------

kinds = st.sampled_from(
    [
        *sorted(KEY_EVENT_TYPES),
        STATE_TYPE,
        "m.rtc.member",
        "m.room.encrypted",
        "m.room.member",
        "m.room.redaction",
        "m.room.create",
        "m.room.encryption",
    ]
)
fields = st.sampled_from(
    [
        "sender",
        "room_id",
        "event_id",
        "origin_server_ts",
        "state_key",
        "content",
        "redacts",
        "sticky",
        "msc4354_sticky",
        "to_user_id",
        "to_device_id",
        "type",
    ]
)
odd = st.builds(
    lambda base, kind, changes: base | {"type": kind} | changes,
    st.sampled_from([room_key(), member(), olm(), clear_key(), {}]),
    kinds,
    st.dictionaries(fields, json_values, max_size=4),
)
lists = st.lists(odd | json_values, max_size=5) | json_values
bodies = st.fixed_dictionaries(
    {},
    optional={
        "events": lists,
        "to_device": lists,
        "de.sorunome.msc2409.to_device": lists,
        "ephemeral": json_values,
        "device_one_time_keys_count": json_values,
        "org.matrix.msc3202.device_one_time_keys_count": json_values,
    },
)


@settings(max_examples=400)
@given(bodies, st.booleans())
def test_no_transaction_raises(body: dict[str, Any], is_watched: bool) -> None:
    """Whatever JSON a transaction holds, reading it gives an intake whose values can be stored as JSON."""
    intake = read(body, watched=WATCHED if is_watched else frozenset())
    stored = msgspec.json.encode(intake.observations)

    assert intake.observations == msgspec.json.decode(stored, type=list[Observation])


@pytest.mark.parametrize(
    "body",
    [
        {"events": [{"type": ["x"]}]},
        {"events": [{"type": {"x": 1}, "room_id": ROOM}]},
        {"events": [{"type": "m.room.member", "room_id": ["x"]}]},
        {"to_device": [{"type": {}}]},
        {"to_device": [{"type": []}]},
        {"events": [room_key() | {"origin_server_ts": 10**400}]},
        {"events": [room_key(sent_ts=10**400)]},
        {"events": [event("m.rtc.member", {"sticky_key": "x"}, sticky={"duration_ms": 10**400})]},
        {"events": [event("m.room.message", {}, origin_server_ts=10**400)]},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_hostile_shapes_do_not_raise(body: dict[str, Any]) -> None:
    """Types that cannot be looked up and numbers no float can hold are wire data like any other."""
    assert len(body.get("events", ())) == read(body).event_count


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_recordings_are_read_whole(scenario: str) -> None:
    """Every room key and membership of a recorded call is observed once, and nothing in it is rejected."""
    truth = truth_of(scenario)
    watched: set[RoomId] = set()
    found: dict[str, Observation] = {}
    for transaction in transactions_of(scenario):
        intake = READER.read(transaction.body, received_at=transaction.received_at, watched=watched, watermark_at=None)
        watched |= intake.rtc_rooms
        assert not set(found) & {observation.identity for observation in intake.observations}
        found |= {observation.identity: observation for observation in intake.observations}
    sent = {request["event_id"] for request in truth["membership_requests"] if request["event_id"]}

    assert set() == (set(truth["room_key_events"]) | sent) - set(found)
    assert [] == [observation for observation in found.values() if isinstance(observation.body, Rejected)]
