"""Marks leave some client generations possible; what all of them leave is the answer."""

from typing import Any

import pytest

from rtc_appservice.core.model import Participant
from rtc_appservice.core.observed import Membership

from .build import SCENARIOS, Scene, history_of, membership, modern, project_room, sticky, truth_of, who

#: js-sdk release -> its generation with the to-device option on.
GENERATION = {"36": "R1", "37": "S3", "39": "D1", "41": "D1", "43": "D2"}


def participant(scene: Scene, name: str = "alice") -> Participant:
    """Give a participant."""
    (found,) = [one for one in scene.call().participants if (one.user_id, one.device_id) == who(name)]
    return found


def alone(body: Membership) -> Participant:
    """Give alice as known by her membership alone."""
    scene = Scene()
    scene.join("alice", 0, body)
    return participant(scene)


@pytest.mark.parametrize(
    ("body", "mark"),
    [
        (membership("alice"), "state_key_v1"),
        (membership("alice", expires_seconds=None), "no_expires"),
        (modern("alice", membership_id=None), "state_key_v2"),
        (modern("alice"), "membership_id"),
        (modern("alice"), "multi_sfu"),
        (sticky("alice", "js_39"), "sticky_js_39"),
        (sticky("alice", "js_41"), "sticky_js_41"),
        (sticky("alice", "js_43"), "sticky_js_43"),
    ],
)
def test_memberships_leave_marks(body: Membership, mark: str) -> None:
    """What a client writes into its membership tells of its release."""
    assert mark in alone(body).generation_marks


@pytest.mark.parametrize(
    ("body", "generation"),
    [
        (membership("alice"), "unknown"),
        (membership("alice", expires_seconds=None), "R0"),
        (modern("alice", membership_id=None, focus_selection="oldest_membership"), "unknown"),
        (modern("alice"), "D"),
        (sticky("alice", "js_41"), "D"),
        (sticky("alice", "js_43"), "D2"),
        (sticky("alice", "msc4143"), "unknown"),
    ],
)
def test_a_membership_alone(body: Membership, generation: str) -> None:
    """The coarse letter where marks are few, `unknown` where they leave several letters."""
    found = alone(body)

    assert generation == found.generation
    assert (generation == "unknown") is (found.generation_confidence == 0)


@pytest.mark.parametrize(
    ("key", "generation"),
    [
        ({"sent_ts": False}, "R0"),
        ({"indexes": (0, 1), "sent_ts": False}, "R0"),
        ({"padded": True}, "S"),
        ({}, "R1"),
    ],
)
def test_a_room_key_beside_an_old_membership(key: dict[str, Any], generation: str) -> None:
    """Form and content of its first room key, sent with its join."""
    scene = Scene()
    scene.join("bob", 0)
    scene.join("alice", 10)
    scene.room_key("alice", 10.1, *key.pop("indexes", (0,)), **key)

    assert participant(scene).generation.startswith(generation)


@pytest.mark.parametrize(
    ("variant", "body", "generation"),
    [
        ("to_device_37_4", membership("alice"), "S1"),
        ("to_device_37_11", membership("alice"), "S"),
        ("to_device_40", modern("alice"), "D"),
        ("to_device_40", sticky("alice"), "D2"),
    ],
)
def test_the_length_of_an_envelope_tells_its_variant(variant: str, body: Membership, generation: str) -> None:
    """The predicted length also tells the content variant, hence generations."""
    scene = Scene()
    scene.join("alice", 0, body)
    scene.join("bob", 10)
    # Another length than the neighbours': variants that fill the same number of blocks cannot be told apart.
    scene.to_device("alice", "bob", 10.1, variant=variant)

    assert participant(scene).generation.startswith(generation[0])


def test_one_that_switched_is_smart() -> None:
    """Only S generations send by both transports in one stint."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.room_key("bob", 10.2)
    scene.room_key("alice", 10.4, padded=True)

    assert "switched" in participant(scene).generation_marks
    assert "S" == participant(scene).generation[0]


def test_one_that_ignores_room_keys_does_not_react() -> None:
    """A foreign room key came while it was live, and it stayed on without one of its own."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10)
    scene.hand_out("alice", "bob", seconds=10.1, variant="to_device_40")
    scene.room_key("bob", 10.2)

    assert "ignores_room_keys" in participant(scene).generation_marks


def test_contradictory_marks_are_unknown() -> None:
    """A device that writes what no release writes together is of no generation."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice", "js_43"))
    scene.join("bob", 1)
    scene.room_key("alice", 5, sent_ts=False)

    assert ("unknown", 0) == (participant(scene).generation, participant(scene).generation_confidence)


def test_marks_are_named_once() -> None:
    """However often a mark was left, it is listed once."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 1)
    for seconds in (2, 3, 4):
        scene.room_key("alice", seconds)
    marks = participant(scene).generation_marks

    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_recorded_clients_are_never_misjudged(scenario: str) -> None:
    """Of every recorded client the answer is its generation, its letter, or `unknown`."""
    clients = {(c["user"], c["device"]): c["js_sdk"][:2] for c in truth_of(scenario)["clients"]}
    for session in project_room(history_of(scenario)):
        for one in session.report.participants:
            expected = GENERATION[clients[(one.user_id, one.device_id)]]

            assert one.generation in ("unknown", expected, expected[0])
