"""Memberships become participant stints and calls, as clients would count them."""

from datetime import timedelta
from itertools import permutations
from typing import Any

import msgspec
import pytest

from rtc_appservice.core.observed import MegolmEnvelope, Membership, Rejected
from rtc_appservice.core.words import MembershipMode, Verdict

from .build import SLOT, Scene, at, left, membership, modern, sticky, who


def stints_of(scene: Scene, name: str = "alice", until: float = 1000) -> list[tuple[float, float | None, str | None]]:
    """Give a device's stints over all calls: (joined, left, end reason), in seconds after noon."""
    found = []
    for session in scene.sessions(until):
        for one in session.report.participants:
            if (one.user_id, one.device_id) == who(name):
                for stint in one.stints:
                    ended = None if stint.left_at is None else (stint.left_at - at(0)).total_seconds()
                    reason = None if stint.end_reason is None else stint.end_reason.value
                    found.append(((stint.joined_at - at(0)).total_seconds(), ended, reason))
    return found


def spans_of(scene: Scene, until: float = 1000) -> list[tuple[float, float | None]]:
    """Give the calls: (start, end) in seconds after noon."""
    return [
        (
            (session.report.started_at - at(0)).total_seconds(),
            None if session.report.ended_at is None else (session.report.ended_at - at(0)).total_seconds(),
        )
        for session in scene.sessions(until)
    ]


# --- state form ------------------------------------------------------------------------------------


def test_a_join_opens_a_stint_and_a_leave_ends_it() -> None:
    """The plain case."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 30)

    assert [(0, 30, "left")] == stints_of(scene)
    assert [(0, 30)] == spans_of(scene)


def test_an_open_stint_has_no_end() -> None:
    """As long as the membership lasts, stint and call go on."""
    scene = Scene()
    scene.join("alice", 0)

    assert [(0, None, None)] == stints_of(scene)
    assert [(0, None)] == spans_of(scene)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, 14400),
        ({"expires_seconds": None}, 14400),
        ({"expires_seconds": 20.0}, 20),
        ({"expires_seconds": 100.0, "created_at": at(-40)}, 60),
        ({"expires_seconds": 0.0}, 0),
    ],
)
def test_a_membership_expires(changes: dict[str, Any], end: float) -> None:
    """It ends at (`created_ts` or the event's time) + `expires`, or after four hours."""
    scene = Scene()
    scene.join("alice", 0, **changes)

    assert [(0, end, "expired")] == stints_of(scene, until=14400)


def test_expiry_waits_for_the_watermark() -> None:
    """Nothing expires before the homeserver's stream has reached that time."""
    scene = Scene()
    scene.join("alice", 0, expires_seconds=20.0)

    assert [(0, None, None)] == stints_of(scene, until=19)
    assert [(0, 20, "expired")] == stints_of(scene, until=20)


def test_a_far_created_ts_does_no_harm() -> None:
    """A claimed creation at the end of time neither fails nor makes a membership last for ever."""
    scene = Scene()
    scene.join("alice", 0, created_at=at(0).replace(year=9999))
    scene.join("bob", 0, created_at=at(0).replace(year=1970))

    assert ["expired"] == [reason for _, _, reason in stints_of(scene, until=10**6)]
    assert ["expired"] == [reason for _, _, reason in stints_of(scene, "bob")]


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at": at(0), "expires_seconds": 28800.0},
        {"created_at": at(0)},
        {"expires_seconds": 28800.0},
    ],
)
def test_a_refresh_keeps_the_stint(changes: dict[str, Any]) -> None:
    """An event with `created_ts` or a greater `expires` is an update of the same stint."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice", 500, **changes)

    assert [(0, None, None)] == stints_of(scene)


def test_refreshes_add_up_from_the_first_event() -> None:
    """`expires` is cumulative from `created_ts`: the second period ends at twice the first."""
    scene = Scene()
    scene.join("alice", 0, expires_seconds=20.0)
    scene.join("alice", 15, expires_seconds=40.0, created_at=at(0))

    assert [(0, 40, "expired")] == stints_of(scene)


def test_a_new_join_without_a_leave_is_a_rejoin() -> None:
    """An event that neither has `created_ts` nor lasts longer opens a new stint in the same call."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice", 50)

    assert [(0, 50, "replaced"), (50, None, None)] == stints_of(scene)
    assert [(0, None)] == spans_of(scene)


def test_a_refresh_of_an_expired_membership_opens_a_new_stint() -> None:
    """What has ended cannot be refreshed."""
    scene = Scene()
    scene.join("alice", 0, expires_seconds=20.0)
    scene.join("alice", 30, expires_seconds=40.0, created_at=at(0))

    assert [(0, 20, "expired"), (30, 40, "expired")] == stints_of(scene)


def test_another_user_can_end_a_stint() -> None:
    """A state event replaces whatever stood at its key, whoever sent it."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 20, sender=who("admin")[0])

    assert [(0, 20, "kicked")] == stints_of(scene)


def test_another_users_join_at_the_same_key_replaces() -> None:
    """The new member is the sender, not the user the key names."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("mallory", 20, key=membership("alice").key)

    assert [(0, 20)] == [stint[:2] for stint in stints_of(scene)]
    assert [(20, None, None)] == stints_of(scene, "mallory")


def test_a_malformed_event_replaces_too() -> None:
    """No client counts it, and what stood there is gone."""
    scene = Scene()
    scene.join("alice", 0)
    key = membership("alice").key
    scene.add(20, Rejected(sender=who("alice")[0], event_type="m.call.member", reason="malformed", key=key))

    assert [(0, 20)] == [stint[:2] for stint in stints_of(scene)]


@pytest.mark.parametrize("name", ["alice", "alice/2"])
def test_devices_of_one_user_are_participants_each(name: str) -> None:
    """A user with two devices takes part twice."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice/2", 5)
    scene.leave(name, 20)

    assert 20 == stints_of(scene, name)[0][1]
    assert 2 == scene.call().max_participants


@pytest.mark.parametrize(("sender", "reason"), [("alice", "left"), ("admin", "kicked")])
def test_leaving_the_room_ends_the_stint(sender: str, reason: str) -> None:
    """Who is no room member is no call member: left by oneself, kicked by another."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice/2", 1)
    scene.join("bob", 2)
    scene.state("m.room.member", 20, value="leave", state_key=who("alice")[0], sender=sender)

    assert [(0, 20, reason)] == stints_of(scene)
    assert [(1, 20, reason)] == stints_of(scene, "alice/2")
    assert [(2, None, None)] == stints_of(scene, "bob")


def test_a_leave_without_a_join_is_nothing() -> None:
    """An end of what was never seen opens no call."""
    scene = Scene()
    scene.leave("alice", 0)

    assert [] == scene.sessions(100)


def test_state_keys_of_two_eras_are_two_places() -> None:
    """The same device under both state keys has two memberships; the call ends with the last."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice", 10, modern("alice"))
    scene.leave("alice", 20)

    assert [(0, None)] == spans_of(scene)


# --- sticky form -------------------------------------------------------------------------------------


def test_a_sticky_stint_ends_with_its_stickiness() -> None:
    """It lives as long as it sticks."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice"))

    assert [(0, 3600, "expired")] == stints_of(scene, until=3600)


def test_a_sticky_refresh_keeps_the_stint() -> None:
    """Join and refresh are matched by (room, sender, sticky key)."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice"))
    scene.join("alice", 3000, sticky("alice"))

    assert [(0, 6600, "expired")] == stints_of(scene, until=7000)


def test_a_sticky_leave_ends_its_own_key_only() -> None:
    """Another key of the same sender goes on."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice"))
    scene.join("alice/2", 0, sticky("alice/2"))
    scene.leave("alice", 30, sticky("alice"))

    assert [(0, 30, "left")] == stints_of(scene)
    assert [(0, None, None)] == stints_of(scene, "alice/2")


def test_another_senders_sticky_key_is_another_place() -> None:
    """Unlike state, a sticky value can be replaced by its sender only."""
    scene = Scene()
    scene.join("alice", 0, sticky("alice"))
    scene.leave("mallory", 20, sticky("mallory", key=sticky("alice").key))

    assert [(0, None, None)] == stints_of(scene)


def test_a_membership_no_client_counts_opens_nothing() -> None:
    """It still replaces what stood at its key."""
    scene = Scene()
    scene.join("bob", 0, sticky("bob"), ignored="member_user_is_not_sender")
    scene.join("alice", 5, sticky("alice"))
    scene.join("alice", 20, sticky("alice"), ignored="member_user_is_not_sender")

    assert [] == stints_of(scene, "bob")
    assert [(5, 20)] == [stint[:2] for stint in stints_of(scene)]


def test_a_sealed_sticky_membership_is_a_call_of_unknown_people() -> None:
    """An unreadable sticky event yields one call with verdict `unknown`, and invents nobody."""
    scene = Scene(encrypted=True)
    for seconds, name in ((0, "alice"), (3, "bob")):
        scene.add(seconds, MegolmEnvelope(sender=who(name)[0], length=700, sticky_seconds=3600.0))
    for seconds, name in ((20, "alice"), (30, "bob")):
        scene.leave(name, seconds, sticky(name))
    call = scene.call()

    assert (Verdict.UNKNOWN, (), MembershipMode.MATRIX_2_0) == (call.verdict, call.participants, call.membership_mode)
    assert [(0, 30)] == spans_of(scene)


@pytest.mark.parametrize(
    ("bodies", "mode"),
    [
        ([membership("alice"), membership("bob")], MembershipMode.LEGACY),
        ([membership("alice"), modern("bob")], MembershipMode.COMPATIBILITY),
        ([modern("alice"), sticky("bob")], MembershipMode.MATRIX_2_0),
        ([membership("alice"), modern("bob", focus_selection="oldest_membership")], MembershipMode.LEGACY),
    ],
)
def test_membership_mode(bodies: list[Membership], mode: MembershipMode) -> None:
    """Any sticky membership is Matrix 2.0; state events with `multi_sfu` are compatibility; else legacy."""
    scene = Scene()
    for seconds, body in enumerate(bodies):
        scene.add(seconds, body)

    assert mode is scene.call().membership_mode


# --- calls -------------------------------------------------------------------------------------------


def test_a_call_lasts_as_long_as_anybody_is_in_it() -> None:
    """It is the maximal span with at least one live membership in the slot."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.leave("alice", 20)
    scene.join("carol", 30)
    scene.leave("bob", 40)
    scene.leave("carol", 50)

    assert [(0, 50)] == spans_of(scene)
    assert 2 == scene.call().max_participants


def test_when_all_have_left_a_new_join_is_a_new_call() -> None:
    """Calls of a slot follow one another, each with an id of its own."""
    scene = Scene()
    for start in (0, 100, 200):
        scene.join("alice", start)
        scene.leave("alice", start + 50)

    assert [(0, 50), (100, 150), (200, 250)] == spans_of(scene)
    assert 3 == len({session.report.call_id for session in scene.sessions(1000)})


def test_every_slot_has_its_own_call() -> None:
    """Calls of different ids go on side by side."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10, slot_id="m.call#breakout", key="_@bob:lab.test_BOB1_m.callbreakout")

    assert [SLOT, "m.call#breakout"] == [session.report.slot_id for session in scene.sessions(100)]


def test_one_device_in_two_slots_is_in_both() -> None:
    """A device may be in a breakout beside the room's call."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("alice", 10, slot_id="m.call#breakout", key="_@alice:lab.test_ALICE1_m.callbreakout")

    assert [(0, None, None), (10, None, None)] == stints_of(scene)


def test_the_call_id_comes_from_the_opening_event() -> None:
    """The same opening event gives the same id, however the call goes on; another one another id."""
    short, long, other = Scene(), Scene(), Scene()
    for scene in (short, long):
        scene.join("alice", 0)
    long.join("bob", 10)
    other.add(-50, membership("zoe"), identity="$elsewhere")
    ids = [scene.sessions(100)[0].report.call_id for scene in (short, long, other)]

    assert ids[0] == ids[1] != ids[2]


def test_the_earliest_membership_opens_the_call_whatever_came_first() -> None:
    """The opening event is the earliest by (event time, event id), in any order of arrival."""
    scene = Scene()
    scene.join("bob", 0)
    scene.join("alice", 0)
    scene.join("carol", 5)
    scene.leave("bob", 20)
    ids = {scene.sessions(100, observations=order)[0].report.call_id for order in permutations(scene.observations)}

    assert 1 == len(ids)


def test_members_who_come_and_go_at_one_moment_count_once() -> None:
    """Two that never were there together are not two at once."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 10)
    scene.join("bob", 10)
    scene.leave("bob", 20)

    assert [1] == [session.report.max_participants for session in scene.sessions(100)]


# --- late observations -------------------------------------------------------------------------------


def test_a_late_join_opens_nothing() -> None:
    """A membership that came when its time had long passed never opens a call."""
    scene = Scene()
    scene.add(0, membership("alice"), late=True, received_at=at(300))

    assert [] == scene.sessions(1000)


def test_a_late_join_merges_nothing() -> None:
    """Two calls stay two, even where a late membership would bridge them."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 50)
    scene.join("alice", 100)
    scene.leave("alice", 150)
    scene.add(40, membership("bob"), late=True, received_at=at(400))

    assert [(0, 50), (100, 150)] == spans_of(scene)


def test_a_late_leave_splits_nothing() -> None:
    """An end that came late counts from when it came: the past is not split by it."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 100)
    scene.add(50, left(membership("alice")), late=True, received_at=at(300))

    assert [(0, None)] == spans_of(scene)
    assert 300 == stints_of(scene)[0][1]


def test_a_late_leave_does_not_end_a_later_join() -> None:
    """The device had joined anew after the leave that came late: it is in the call."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 0)
    scene.join("alice", 200)
    scene.add(100, left(membership("alice")), late=True, received_at=at(400))

    assert (200, None, None) == stints_of(scene)[-1]


def test_a_copy_that_comes_late_changes_nothing() -> None:
    """Of duplicates the one received first counts, in whatever order they are given."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 1)
    scene.leave("bob", 100)
    scene.leave("alice", 300)
    first = tuple(scene.observations)
    copies = tuple(
        msgspec.structs.replace(o, late=True, received_at=o.received_at + timedelta(seconds=600)) for o in first
    )
    alone = scene.sessions(1000)

    assert alone == scene.sessions(1000, observations=first + copies)
    assert alone == scene.sessions(1000, observations=copies + first)
