"""How the device is a member of a call: as the others are, so that they see it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rtc_appservice.core.membership import parse_state, parse_sticky
from rtc_appservice.core.stints import DeviceStint, build_stints, in_order
from rtc_appservice.core.words import Device, DeviceId, UserId
from rtc_appservice.intake.call_form import (
    STATE_TYPE,
    STICKY_TYPE,
    CallForm,
    others_in,
    refreshed,
    state_membership,
    sticky_membership,
    wanted_form,
)
from tests.core.build import RECORDINGS, SLOT, Scene, at, membership, modern, sticky

OURS: Device = (UserId("@ours:lab.test"), DeviceId("OURS1"))
STATE = CallForm(SLOT, None)


def stints(scene: Scene, seconds: float = 100) -> list[DeviceStint]:
    """Give the stints of a scene as of some seconds after noon."""
    return build_stints(in_order(scene.observations), at(seconds))


def recorded(kind: str, scenario: str = "sticky-generations") -> Iterator[dict[str, Any]]:
    """Give the recorded events of a type."""
    for line in (RECORDINGS / scenario / "transactions.jsonl").read_text().splitlines():
        yield from (event for event in json.loads(line)["body"].get("events", ()) if event["type"] == kind)


@pytest.mark.parametrize(("name", "dialect"), [("alice", "js_39"), ("bob", "js_41"), ("carol", "js_43")])
def test_sticky_memberships_are_those_of_the_dialect(name: str, dialect: str) -> None:
    """Field for field as recorded from that client, join and leave, apart from its ids and its SFU."""
    join, leave = (event["content"] for event in recorded(STICKY_TYPE) if event["sender"] == f"@{name}:lab.test")
    device = (UserId(join["member"]["user_id"]), DeviceId(join["member"]["device_id"]))
    found = sticky_membership(device, CallForm(SLOT, dialect), join["member"]["id"])
    for content in (join, found.content):
        content.get("transports", {}).pop("published", None)
        content.pop("rtc_transports", None)

    assert (join, leave) == (found.content, found.leave)
    assert STICKY_TYPE == found.event_type


@pytest.mark.parametrize("dialect", ["js_39", "js_41", "js_43"])
def test_sticky_memberships_are_counted(dialect: str) -> None:
    """As clients count them, in the slot and the dialect of the others."""
    sent = sticky_membership(OURS, CallForm(SLOT, dialect), "an-id")
    join, leave = (parse_sticky(content, OURS[0], 3600.0) for content in (sent.content, sent.leave))

    assert (SLOT, dialect, True, None) == (join.slot_id, join.dialect, join.live, join.ignored)
    assert (join.key, False) == (leave.key, leave.live)
    assert sent.key == join.key


def test_state_memberships_take_the_sfu_of_another() -> None:
    """We may become the oldest member, whose SFU clients use."""
    other = next(event["content"] for event in recorded(STATE_TYPE, "modern"))
    sent = state_membership(OURS, STATE, other)
    found = parse_state(sent.content, OURS[0], sent.key)

    assert (other["foci_preferred"], other["focus_active"]) == (
        sent.content["foci_preferred"],
        sent.content["focus_active"],
    )
    assert (SLOT, True, None) == (found.slot_id, found.live, found.ignored)


@pytest.mark.parametrize("slot", [SLOT, "m.call#another", "org.example#ROOM"])
def test_state_memberships_stand_alone(slot: str) -> None:
    """Also where nothing is known of the older member, clients count it, in the slot asked for."""
    sent = state_membership(OURS, CallForm(slot, None), {})
    found = parse_state(sent.content, OURS[0], sent.key)

    assert (slot, True, None) == (found.slot_id, found.live, found.ignored)


def test_a_refresh_goes_on_from_the_first_time() -> None:
    """js-sdk: `created_ts` stays, `expires` grows; a sticky event is sent again as it was."""
    first = state_membership(OURS, STATE, {})
    once = refreshed(first, 1000)
    again = refreshed(once, 1000)
    stuck = sticky_membership(OURS, CallForm(SLOT, "js_43"), "an-id")

    assert [(1000, 8 * 3600_000), (1000, 12 * 3600_000)] == [
        (sent.content["created_ts"], sent.content["expires"]) for sent in (once, again)
    ]
    assert "created_ts" not in first.content
    assert stuck is refreshed(stuck, 1000)


def test_joins_as_the_others_are() -> None:
    """The state form comes first, then the dialect of the oldest member."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice", "js_41"))
    scene.join("bob", 1, sticky("bob", "js_43"))

    assert CallForm(SLOT, "js_41") == wanted_form(others_in(stints(scene), OURS[0]), None)
    scene.join("carol", 2, modern("carol"))
    assert STATE == wanted_form(others_in(stints(scene), OURS[0]), None)


def test_stays_as_it_is_while_that_has_members() -> None:
    """Coming and going makes others rotate their keys: only the state form is worth a change."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice", "js_41"))
    scene.join("bob", 1, sticky("bob", "js_43"))
    now = CallForm(SLOT, "js_43")

    assert now == wanted_form(others_in(stints(scene), OURS[0]), now)
    scene.leave("bob", 2, sticky("bob", "js_43"))
    assert CallForm(SLOT, "js_41") == wanted_form(others_in(stints(scene), OURS[0]), now)
    scene.join("carol", 3, membership("carol"))
    assert STATE == wanted_form(others_in(stints(scene), OURS[0]), now)


def test_nobody_else_is_no_call() -> None:
    """Not its own membership, not one that ended or expired, not one that names no device."""
    scene = Scene()
    scene.join("ours", 0, modern("ours"))
    scene.join("alice", 0, sticky("alice", "msc4143"))
    scene.join("bob", 0, modern("bob"))
    scene.leave("bob", 1, modern("bob"))
    scene.join("carol", 0, modern("carol", expires_seconds=50.0))

    assert [] == others_in(stints(scene), OURS[0])
    assert None is wanted_form([], STATE)


def test_oldest_first() -> None:
    """The one whose SFU is in use is asked first."""
    scene = Scene()
    for seconds, name in enumerate(("bob", "alice", "carol")):
        scene.join(name, seconds, modern(name))

    assert ["BOB1", "ALICE1", "CAROL1"] == [stint.device_id for stint in others_in(stints(scene), OURS[0])]
