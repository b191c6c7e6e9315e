"""What was known of a room when a call began in it."""

import pytest

from rtc_appservice.core.observed import Gap, MegolmEnvelope
from rtc_appservice.core.room_facts import room_left, state_read
from rtc_appservice.core.words import GapReason, UserId

from .build import HOMESERVER, OTHER_ROOM, ROOM, Scene, at, sticky, who

HOURS = 3600.0
OURS = UserId("@rtc-auditor-device:lab.test")


def alone(*, created: bool = False) -> Scene:
    """Give a call that alice begins at noon."""
    scene = Scene(created=created)
    scene.join("alice", 0)
    return scene


def gap(start: float, end: float | None, reason: GapReason = GapReason.SERVICE_DOWN, **changes: object) -> Gap:
    """Give a gap between two times."""
    return Gap(
        gap_id=f"{start}",
        homeserver=HOMESERVER,
        reason=reason,
        started_at=at(start),
        ended_at=None if end is None else at(end),
        **changes,  # type: ignore[arg-type]
    )


def test_seen_since_the_rooms_creation() -> None:
    """A room watched from its first event on."""
    assert alone(created=True).call().beginning_seen


def read(scene: Scene, seconds: float) -> Scene:
    """Note that the state of the room was read."""
    scene.observations.append(state_read(HOMESERVER, ROOM, OURS, at(seconds)))
    return scene


def left(scene: Scene, seconds: float) -> Scene:
    """Note that our device left the room."""
    scene.observations.append(room_left(HOMESERVER, ROOM, OURS, at(seconds), f"$left{seconds}"))
    return scene


@pytest.mark.parametrize(("seconds", "seen"), [(-10, True), (0, False), (10, False)])
def test_seen_since_a_snapshot(seconds: float, seen: bool) -> None:
    """Read as a state snapshot before the call began; one that is in the snapshot went on already."""
    call = read(alone(), seconds).call()

    assert seen is call.beginning_seen
    assert (False if seen else None) is call.encrypted_room


@pytest.mark.parametrize(
    ("reads", "leaves", "seen"),
    [
        ([-100], [-50], False),
        ([-100, -10], [-50], True),
        ([-100], [-200], True),
        ([-100], [-100], False),
        ([-100], [0], False),
        ([-100], [50], True),
        ([-100, 50], [10], True),
    ],
)
def test_a_snapshot_holds_until_the_device_leaves(reads: list[float], leaves: list[float], seen: bool) -> None:
    """Joined again, the room is read again: calls of in between began unseen, those of before stay as they were."""
    scene = alone()
    for seconds in reads:
        read(scene, seconds)
    for seconds in leaves:
        left(scene, seconds)
    call = scene.call()

    assert seen is call.beginning_seen
    assert (False if seen else None) is call.encrypted_room


@pytest.mark.parametrize(("start", "end", "seen"), [(-90, -60, False), (-200, -150, True), (-90, None, False)])
def test_a_gap_after_a_snapshot_voids_it(start: float, end: float | None, seen: bool) -> None:
    """One that ended before it does not: the state was read after it."""
    call = read(alone(), -100).call(gaps=(gap(start, end),), watched_since=at(-100))

    assert seen is call.beginning_seen


@pytest.mark.parametrize(("seconds", "seen"), [(-HOURS - 1, True), (-HOURS + 1, False)])
def test_sticky_memberships_are_in_no_snapshot(seconds: float, seen: bool) -> None:
    """They show themselves again, or end, within the longest stickiness: an hour."""
    scene = Scene(created=False)
    scene.join("alice", 0, sticky("alice"))

    assert seen is read(scene, seconds).call().beginning_seen


@pytest.mark.parametrize(("seconds", "seen"), [(-HOURS - 1, True), (-HOURS + 1, False)])
def test_a_membership_that_cannot_be_read_may_be_sticky(seconds: float, seen: bool) -> None:
    """So the call began unseen, unless the room was read that long before."""
    scene = Scene(encrypted=True, created=False)
    scene.add(0, MegolmEnvelope(sender=who("alice")[0], length=700, sticky_seconds=3600.0))

    assert seen is read(scene, seconds).call().beginning_seen


def test_a_member_whose_clock_is_ahead_was_there_all_the_same() -> None:
    """Its membership stands in the snapshot, and counts from when that was read at the latest."""
    scene = Scene(created=False)
    scene.join("alice", 5)

    assert not read(scene, 5).call().beginning_seen


@pytest.mark.parametrize(("hours", "seen"), [(4.1, True), (3.9, False), (0, False)])
def test_seen_for_four_hours(hours: float, seen: bool) -> None:
    """Memberships of before have shown themselves or expired by then."""
    assert seen is alone().call(watched_since=at(-hours * HOURS)).beginning_seen


def test_not_seen_at_all() -> None:
    """Without any of these the beginning is not seen."""
    assert not alone().call().beginning_seen


@pytest.mark.parametrize(
    ("start", "end", "seen"),
    [(-9 * HOURS, -5 * HOURS, True), (-3 * HOURS, -2 * HOURS, False), (-100, None, False), (-100, 100, False)],
    ids=["long over", "within four hours", "still open", "over the beginning"],
)
def test_a_gap_begins_the_four_hours_anew(start: float, end: float | None, seen: bool) -> None:
    """Watched for four hours without a gap."""
    call = alone().call(watched_since=at(-20 * HOURS), gaps=(gap(start, end),))

    assert seen is call.beginning_seen


def test_gaps_of_other_rooms_do_not_matter() -> None:
    """Another room's gap says nothing of this one."""
    call = alone().call(watched_since=at(-20 * HOURS), gaps=(gap(-100, -50, room_id=OTHER_ROOM),))

    assert call.beginning_seen


@pytest.mark.parametrize("reason", [GapReason.TO_DEVICE_LOST, GapReason.UNDECRYPTABLE, GapReason.BACKLOG])
def test_lost_to_device_messages_hide_no_membership(reason: GapReason) -> None:
    """Memberships are room events, which the homeserver keeps and sends again."""
    call = alone().call(watched_since=at(-20 * HOURS), gaps=(gap(-100, -50, reason),))

    assert call.beginning_seen


@pytest.mark.parametrize("reason", [GapReason.UNDECRYPTABLE, GapReason.ROOM_JOINED_LATE])
def test_what_is_sealed_in_the_room_hides_no_membership_and_no_message(reason: GapReason) -> None:
    """A device that came late found the call's members in the state, and to-device messages are in no room."""
    scene = read(alone(), -10)
    scene.state("m.room.encryption", -50, value="m.megolm.v1.aes-sha2")
    scene.join("bob", 10)
    sealed = gap(-100, 60, reason, room_id=ROOM)
    call = scene.call(gaps=(sealed,), until=600)
    of_all_rooms = scene.call(gaps=(gap(-100, 60),), until=600)

    assert call.beginning_seen
    assert (0, 2) == (call.obligations.unobservable, of_all_rooms.obligations.unobservable)


@pytest.mark.parametrize(("seconds", "encrypted"), [(-50, True), (50, True), (5000, False)])
def test_encryption_stays(seconds: float, encrypted: bool) -> None:
    """Once seen it holds, also when switched on during the call; what comes after the call says nothing of it."""
    scene = alone(created=True)
    scene.leave("alice", 100)
    scene.state("m.room.encryption", seconds, value="m.megolm.v1.aes-sha2")

    assert encrypted is scene.call(until=9000).encrypted_room


def test_history_visibility_of_the_beginning_is_told() -> None:
    """Findings on readable keys say who can read them: the setting in force when the call began."""
    scene = alone(created=True)
    scene.state("m.room.history_visibility", -200, value="shared")
    scene.state("m.room.history_visibility", -100, value="world_readable")
    scene.state("m.room.history_visibility", 50, value="joined")
    scene.room_key("alice", 10)

    assert {"world_readable"} == {
        finding.details["history_visibility"]
        for finding in scene.call().findings
        if "history_visibility" in finding.details
    }
