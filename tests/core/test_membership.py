"""Membership events are validated as js-sdk validates them (js-sdk 43, `CallMembership`)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtc_appservice.core.fields import Malformed
from rtc_appservice.core.membership import (
    is_pre_matrixrtc,
    normalise_slot,
    parse_state,
    parse_sticky,
    sticky_seconds,
)
from rtc_appservice.core.observed import Membership
from rtc_appservice.core.words import UserId

from .test_strip import json_values

ALICE = UserId("@alice:lab.test")
STATE_KEY = "_@alice:lab.test_ALICE1"
STATE: dict[str, Any] = {
    "application": "m.call",
    "call_id": "",
    "device_id": "ALICE1",
    "expires": 14400000,
    "foci_preferred": [{"type": "livekit", "livekit_service_url": "https://sfu.lab.invalid"}],
    "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
    "scope": "m.room",
}
STICKY: dict[str, Any] = {
    "application": {"type": "m.call"},
    "member": {"id": "uuid", "user_id": ALICE, "device_id": "ALICE1"},
    "msc4354_sticky_key": "uuid",
    "slot_id": "m.call#ROOM",
    "rtc_transports": [{"type": "livekit"}],
    "versions": [],
}
ABSENT = object()


def changed(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Give content with the field at a dotted path set to a value, or left out."""
    result: dict[str, Any] = json.loads(json.dumps(content))
    *parents, name = path.split(".")
    target = result
    for parent in parents:
        target = target[parent]
    if value is ABSENT:
        target.pop(name, None)
    else:
        target[name] = value
    return result


def fault_of(parse: Any) -> str:
    """Give the field a parser calls malformed."""
    with pytest.raises(Malformed) as fault:
        parse()
    return fault.value.field


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("device_id", ABSENT),
        ("device_id", 1),
        ("call_id", ABSENT),
        ("call_id", None),
        ("application", {"type": "m.call"}),
        ("application", 1),
        ("focus_active", ABSENT),
        ("focus_active", []),
        ("focus_active.type", ABSENT),
        ("focus_active.type", 1),
        ("foci_preferred", {}),
        ("foci_preferred", [{"livekit_service_url": "x"}]),
        ("foci_preferred", [1]),
        ("created_ts", "now"),
        ("created_ts", True),
        ("scope", 1),
        ("m.call.intent", 1),
    ],
)
def test_state_fields_of_another_shape_are_malformed(path: str, value: Any) -> None:
    """Each field js-sdk checks in the state form is checked, and named when at fault."""
    content = STATE | {path: value} if path == "m.call.intent" else changed(STATE, path, value)
    fault = fault_of(lambda: parse_state(content, ALICE, STATE_KEY))

    assert f"content.{path}" == fault.removesuffix("[].type")


@pytest.mark.parametrize("path", ["foci_preferred", "created_ts", "scope", "expires", "m.call.intent"])
def test_optional_state_fields_may_be_absent(path: str) -> None:
    """Clients of other generations leave these out."""
    assert parse_state(changed(STATE, path, ABSENT) if "." not in path else STATE, ALICE, STATE_KEY).live


@pytest.mark.parametrize("value", ["soon", None, [], True, -1])
def test_expires_is_not_checked(value: Any) -> None:
    """js-sdk does not check the type of `expires`; what is no duration stands for the default."""
    parsed = parse_state(changed(STATE, "expires", value), ALICE, STATE_KEY)

    assert (True, None) == (parsed.live, parsed.expires_seconds)


def test_an_empty_state_event_is_a_leave() -> None:
    """`{}` ends what stands at its key; nothing in it says who asked for it."""
    left = Membership(sender=ALICE, form="session_v1", key=STATE_KEY, live=False)

    assert left == parse_state({}, ALICE, STATE_KEY)


@pytest.mark.parametrize("content", [{"x": 1}, {"device_id": "ALICE1"}, {"memberships": []}])
def test_without_application_nobody_is_a_member(content: dict[str, Any]) -> None:
    """Content without `application` is no membership, whatever else it holds; it still replaces."""
    parsed = parse_state(content, ALICE, STATE_KEY)

    assert (False, STATE_KEY) == (parsed.live, parsed.key)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"memberships": []}, True),
        ({"memberships": [{}]}, True),
        ({"m.calls": []}, True),
        ({}, False),
        (STATE, False),
        (STATE | {"memberships": []}, False),
    ],
)
def test_forms_of_before_matrixrtc_are_told_apart(content: dict[str, Any], expected: bool) -> None:
    """Full-mesh calls and the membership array are recognised where no session stands beside them."""
    assert expected is is_pre_matrixrtc(content)


@pytest.mark.parametrize(
    ("key", "device_id", "form"),
    [
        ("_@alice:lab.test_ALICE1", "ALICE1", "session_v1"),
        ("_@alice:lab.test_ALICE1_m.call", "ALICE1", "session_v2"),
        ("_@alice:lab.test_ALICE1_m.callbreakout", "ALICE1", "session_v2"),
        ("@alice:lab.test_ALICE1", "ALICE1", "owned"),
        ("@alice:lab.test_ALICE1_m.call", "ALICE1", "owned"),
        ("_@al_ice:lab.test_DE_VICE", "DE_VICE", "session_v1"),
        ("_@al_ice:lab.test_DE_VICE_m.call", "DE_VICE", "session_v2"),
        ("_@alice:lab.test_X_m.call", "X_m.call", "session_v1"),
    ],
)
def test_state_keys_of_both_eras(key: str, device_id: str, form: str) -> None:
    """The state key tells the era even where ids hold underscores."""
    assert form == parse_state(changed(STATE, "device_id", device_id), ALICE, key).form


@pytest.mark.parametrize(
    ("key", "sender", "device_id", "claimed"),
    [
        ("_@alice:lab.test_ALICE1", "@alice:lab.test", "ALICE1", None),
        ("_@alice:lab.test_ALICE1_m.call", "@alice:lab.test", "ALICE1", None),
        ("@alice:lab.test_ALICE1", "@alice:lab.test", "ALICE1", None),
        ("@alice:lab.test", "@alice:lab.test", "ALICE1", None),
        ("", "@alice:lab.test", "ALICE1", None),
        ("_@al_ice:lab.test_D_1", "@al_ice:lab.test", "D_1", None),
        ("_@bob:lab.test_BOB1", "@alice:lab.test", "BOB1", "@bob:lab.test"),
        ("_@bob:lab.test_BOB1_m.call", "@alice:lab.test", "BOB1", "@bob:lab.test"),
        ("_@alice:lab.test.evil_BOB1", "@alice:lab.test", "BOB1", "@alice:lab.test.evil"),
    ],
)
def test_state_keys_that_name_another_user(key: str, sender: str, device_id: str, claimed: str | None) -> None:
    """The sender is the member; a state key that names another user is noted, and only then."""
    parsed = parse_state(changed(STATE, "device_id", device_id), UserId(sender), key)

    assert (sender, claimed) == (parsed.sender, parsed.claimed_user_id)


@pytest.mark.parametrize("name", ["", "ROOM", "room"])
def test_the_room_call_is_one_slot(name: str) -> None:
    """`""`, `ROOM` and `room` are the same call."""
    assert "m.call#ROOM" == normalise_slot("m.call", name)
    assert "m.call#ROOM" == parse_state(changed(STATE, "call_id", name), ALICE, STATE_KEY).slot_id
    assert "m.call#ROOM" == parse_sticky(changed(STICKY, "slot_id", f"m.call#{name}"), ALICE, 3600).slot_id


@pytest.mark.parametrize("name", ["Room", "other", "ROOM2"])
def test_other_names_are_other_slots(name: str) -> None:
    """Any other id is a slot of its own."""
    assert f"m.call#{name}" == normalise_slot("m.call", name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("slot_id", ABSENT),
        ("slot_id", 1),
        ("slot_id", "ROOM"),
        ("slot_id", "m.board#ROOM"),
        ("slot_id", "m.call#ROOM#2"),
        ("slot_id", "m.call"),
        ("application", "m.call"),
        ("application.type", ABSENT),
        ("application.type", 1),
        ("application.m.call.intent", 1),
        ("member.id", ABSENT),
        ("member.id", 1),
        ("member.device_id", ABSENT),
        ("member.device_id", 1),
        ("member.user_id", 1),
        ("rtc_transports", ABSENT),
        ("rtc_transports", {}),
        ("rtc_transports", [{"livekit_service_url": "x"}]),
        ("versions", ABSENT),
        ("versions", [1]),
        ("versions", "1"),
        ("msc4354_sticky_key", ABSENT),
        ("msc4354_sticky_key", 1),
    ],
)
def test_sticky_fields_of_another_shape_are_malformed(path: str, value: Any) -> None:
    """Each field js-sdk checks in the sticky form is checked, and named when at fault."""
    if path.endswith("m.call.intent"):
        content = STICKY | {"application": {"type": "m.call", "m.call.intent": value}}
    else:
        content = changed(STICKY, path, value)
    fault = fault_of(lambda: parse_sticky(content, ALICE, 3600))

    assert f"content.{path}" == fault.removesuffix("[].type")


def test_a_type_with_a_hash_makes_no_slot() -> None:
    """An application type holds no `#`: the slot id has exactly one."""
    content = changed(changed(STICKY, "application.type", "m#call"), "slot_id", "m#call#ROOM")

    assert "content.slot_id" == fault_of(lambda: parse_sticky(content, ALICE, 3600))


@pytest.mark.parametrize("keys", [{"sticky_key": "uuid"}, {"sticky_key": "uuid", "msc4354_sticky_key": "uuid"}])
def test_either_name_of_the_sticky_key_counts(keys: dict[str, str]) -> None:
    """The stable name, the unstable one, or both where they agree."""
    content = changed(STICKY, "msc4354_sticky_key", ABSENT) | keys

    assert "uuid" == parse_sticky(content, ALICE, 3600).key


def test_sticky_keys_that_disagree_are_malformed() -> None:
    """Two different sticky keys are none."""
    assert fault_of(lambda: parse_sticky(STICKY | {"sticky_key": "other"}, ALICE, 3600)).endswith("sticky_key")


@pytest.mark.parametrize(
    ("content", "dialect"),
    [
        (changed(STICKY, "slot_id", "m.call#"), "js_39"),
        (STICKY, "js_41"),
        (changed(STICKY, "rtc_transports", ABSENT) | {"transports": {"published": [], "can_subscribe": []}}, "js_43"),
        (changed(STICKY, "member", {"id": "uuid", "membership": "join"}), "msc4143"),
    ],
)
def test_each_dialect_is_recognised(content: dict[str, Any], dialect: str) -> None:
    """Clients of different dialects do not see each other, so each is told apart, and all are members."""
    parsed = parse_sticky(content, ALICE, 3600)

    assert (True, dialect) == (parsed.live, parsed.dialect)


def test_a_member_of_another_user_counts_for_nobody() -> None:
    """`member.user_id` must be the sender, or clients ignore the membership."""
    parsed = parse_sticky(changed(STICKY, "member.user_id", "@bob:lab.test"), ALICE, 3600)

    assert ("@alice:lab.test", "member_user_is_not_sender") == (parsed.sender, parsed.ignored)


def test_a_message_that_does_not_stick_counts_for_nobody() -> None:
    """The sticky form rests on the sticky store: an ordinary message never enters it."""
    assert "not_sticky" == parse_sticky(STICKY, ALICE, None).ignored


@pytest.mark.parametrize(
    "content",
    [
        {"msc4354_sticky_key": "uuid"},
        {"msc4354_sticky_key": "uuid", "slot_id": "m.call#ROOM"},
        {"sticky_key": "uuid"},
        STICKY | {"member": {"id": "uuid", "membership": "leave"}},
        {"sticky_key": "uuid", "member": {"id": "uuid", "membership": "leave"}, "leave_reason": {"code": "leave"}},
    ],
)
def test_sticky_leaves(content: dict[str, Any]) -> None:
    """Every dialect's leave names the sticky key it ends."""
    parsed = parse_sticky(content, ALICE, 3600)

    assert (False, "uuid", "sticky") == (parsed.live, parsed.key, parsed.form)


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        ({"msc4354_sticky": {"duration_ms": 3600000}}, 3600.0),
        ({"sticky": {"duration_ms": 1000}}, 1.0),
        ({"sticky": {"duration_ms": 86400000}}, 3600.0),
        ({}, None),
        ({"sticky": {}}, None),
        ({"sticky": 1}, None),
        ({"sticky": {"duration_ms": "1"}}, None),
        ({"sticky": {"duration_ms": True}}, None),
        ({"sticky": {"duration_ms": -1}}, None),
        ({"sticky": {"duration_ms": 10**400}}, 3600.0),
    ],
)
def test_stickiness_is_at_most_an_hour(event: dict[str, Any], seconds: float | None) -> None:
    """MSC4354 grants an hour at most, whatever the event says."""
    assert seconds == sticky_seconds(event)


names = st.sampled_from([*STATE, *STICKY, "created_ts", "membershipID", "m.call.intent", "transports", "sticky_key"])
inner = st.dictionaries(
    st.sampled_from(["type", "id", "user_id", "device_id", "membership", "focus_selection", "published"]), json_values
)
contents = st.dictionaries(names | st.text(max_size=5), json_values | inner, max_size=10)
changes = st.dictionaries(names, json_values | inner, max_size=3)


@given(contents | changes.map(lambda c: STATE | c), st.text(max_size=40))
def test_any_state_content_parses_or_is_malformed(content: dict[str, Any], key: str) -> None:
    """No JSON object raises anything but Malformed, and what is live names slot and device."""
    try:
        parsed = parse_state(content, ALICE, key)
    except Malformed:
        return

    assert not parsed.live or (parsed.slot_id is not None and parsed.device_id is not None)


@given(contents | changes.map(lambda c: STICKY | c), st.none() | st.floats(1, 3600))
def test_any_sticky_content_parses_or_is_malformed(content: dict[str, Any], seconds: float | None) -> None:
    """No JSON object raises anything but Malformed, and what is live names slot and device."""
    try:
        parsed = parse_sticky(content, ALICE, seconds)
    except Malformed:
        return

    assert not parsed.live or (parsed.slot_id is not None and parsed.device_id is not None)
