"""Findings: each with severity, evidence and the observations it rests on, once, and settled when nothing is due."""

import uuid
from typing import Any

import msgspec
import pytest

from rtc_appservice.core.model import Finding
from rtc_appservice.core.observed import Rejected
from rtc_appservice.core.words import Evidence, FindingKind, Severity

from .build import Scene, at, device_of, findings_of, membership, modern, sticky, who


def pair(**changes: Any) -> Scene:
    """Give a call of alice and bob."""
    scene = Scene(**changes)
    scene.join("alice", 0)
    scene.join("bob", 10)
    return scene


def found(scene: Scene, kind: FindingKind, until: float = 1000) -> list[Finding]:
    """Give the findings of one kind in the room's only call."""
    return findings_of(scene.call(until), kind)


# --- identity ------------------------------------------------------------------------------------------


def busy() -> Scene:
    """Give a call with findings of several kinds."""
    scene = pair()
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.to_device("bob", "alice", 30)
    scene.join("carol", 50)
    scene.room_key("carol", 50.1)
    scene.room_key("alice", 50.3, padded=True)
    scene.room_key("mallory", 60)
    scene.leave("carol", 100)
    scene.leave("bob", 300)
    scene.leave("alice", 301)
    return scene


def test_ids_are_stable_uuids() -> None:
    """A finding's id derives from what it is about: a replay yields the same, and no two share one."""
    first, again = (busy().call(2000).findings for _ in range(2))
    ids = [finding.finding_id for finding in first]

    assert ids == [finding.finding_id for finding in again]
    assert len(ids) == len(set(ids))
    assert {5} == {uuid.UUID(one).version for one in ids}


def test_ids_do_not_change_as_time_passes() -> None:
    """What was found early is the same finding later."""
    early = {finding.finding_id for finding in busy().call(400).findings}

    assert early <= {finding.finding_id for finding in busy().call(4000).findings}


def test_ids_differ_between_calls_and_homeservers() -> None:
    """The same happening in another call is another finding."""
    one, other = pair(), pair()
    other.observations[1] = msgspec.structs.replace(other.observations[1], identity="$another")
    for scene in (one, other):
        scene.room_key("mallory", 20)

    assert found(one, FindingKind.STRAY_KEY)[0].finding_id != found(other, FindingKind.STRAY_KEY)[0].finding_id


def test_findings_come_in_order_of_time() -> None:
    """The list is ordered."""
    times = [finding.at for finding in busy().call(2000).findings]

    assert sorted(times) == times


def test_every_finding_rests_on_observations() -> None:
    """No finding without its evidence: grade, and the identities it rests on."""
    scene = busy()
    identities = {observation.identity for observation in scene.observations}

    for finding in scene.call(2000).findings:
        assert finding.observations and set(finding.observations) <= identities
        assert isinstance(finding.evidence, Evidence) and isinstance(finding.severity, Severity)


def test_a_healthy_call_has_none() -> None:
    """Keys delivered in time, nothing in the room: nothing to tell."""
    scene = pair()
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.hand_out("bob", "alice", seconds=10.1)

    assert () == scene.call().findings


# --- settling ------------------------------------------------------------------------------------------


def test_everything_settles_once_the_call_is_over() -> None:
    """When nothing still due can change it."""
    assert {True} == {finding.settled for finding in busy().call(2000).findings}
    assert busy().call(2000).settled


def test_nothing_settles_at_once() -> None:
    """A finding just made may still change."""
    scene = pair()
    scene.room_key("alice", 20)

    assert {False} == {finding.settled for finding in scene.call(21).findings}


def test_an_open_call_is_not_settled() -> None:
    """As long as it goes on, its totals may change."""
    assert not pair().call(5000).settled


def test_counted_findings_settle_with_their_call() -> None:
    """One that still counts cannot have been counted."""
    scene = pair()
    scene.room_key("alice", 20)
    (clear,) = found(scene, FindingKind.KEY_IN_CLEAR, until=3000)

    assert not clear.settled


# --- each kind -----------------------------------------------------------------------------------------


def test_key_in_clear_in_the_room() -> None:
    """Readable by the server: one finding per sender and day, counted."""
    scene = pair()
    for seconds in (20, 30, 40):
        scene.room_key("alice", seconds)
    (finding,) = found(scene, FindingKind.KEY_IN_CLEAR)

    assert (3, "room_event", Severity.WARNING) == (
        finding.details["count"],
        finding.details["key_transport"],
        finding.severity,
    )
    assert (Evidence.DIRECT, 3) == (finding.evidence, len(finding.observations))


def test_key_in_clear_to_a_device() -> None:
    """A to-device key without Olm is readable by the servers on its way."""
    scene = pair()
    scene.read_key("alice", "bob", 10.2, encrypted=False)
    (finding,) = found(scene, FindingKind.KEY_IN_CLEAR)

    assert ("to_device", "ALICE1") == (finding.details["key_transport"], device_of(finding))


@pytest.mark.parametrize("encrypted", [True, False])
def test_key_readable_in_history(encrypted: bool) -> None:
    """Every room key stays in history; where the room is unencrypted that weighs more."""
    scene = pair(encrypted=encrypted)
    scene.room_key("alice", 20, encrypted=encrypted)
    (finding,) = found(scene, FindingKind.KEY_READABLE_IN_HISTORY)

    assert (Severity.INFO if encrypted else Severity.WARNING) is finding.severity
    assert int(not encrypted) == len(found(scene, FindingKind.KEY_IN_CLEAR))


def test_days_are_counted_apart() -> None:
    """A call across midnight has one finding for each day."""
    scene = pair()
    scene.join("alice", 20, expires_seconds=200000.0)
    scene.room_key("alice", 30)
    scene.room_key("alice", 12 * 3600 + 60, 1)

    assert 2 == len(found(scene, FindingKind.KEY_IN_CLEAR, until=50000))


@pytest.mark.parametrize(
    ("steps", "reused"),
    [
        ([(0, "a"), (1, "a")], 1),
        ([(0, "a"), (0, "a")], 0),
        ([(0, "a"), (1, "b")], 0),
        ([(0, None), (1, None)], 0),
        ([(0, "a"), (1, "b"), (2, "a")], 1),
    ],
)
def test_key_reused(steps: list[tuple[int, str | None]], reused: int) -> None:
    """A rotation that did not rotate: the old bytes under a new index. It takes comparison tags."""
    scene = pair()
    for number, (index, tag) in enumerate(steps):
        scene.room_key("alice", 20 + number, index, tags=(tag,))

    assert reused == len(found(scene, FindingKind.KEY_REUSED))


@pytest.mark.parametrize(
    ("steps", "regressed"),
    [
        ([(0, "a"), (1, "b")], 0),
        ([(5, "a"), (3, "b")], 1),
        ([(255, "a"), (0, "b")], 0),
        ([(15, "a"), (0, "b")], 0),
        ([(0, "a"), (1, "b"), (0, "a")], 0),
    ],
)
def test_index_regressed(steps: list[tuple[int, str]], regressed: int) -> None:
    """A new key under a lower index; wrapping and sending an old key again are not that."""
    scene = pair()
    for number, (index, tag) in enumerate(steps):
        scene.room_key("alice", 20 + number, index, tags=(tag,))

    assert regressed == len(found(scene, FindingKind.INDEX_REGRESSED))


def test_a_rejoin_starts_at_index_0_again() -> None:
    """Indexes belong to a stint."""
    scene = pair()
    scene.room_key("alice", 20, 4, tags=("a",))
    scene.leave("alice", 30)
    scene.join("alice", 40)
    scene.room_key("alice", 40.1, 0, tags=("b",))

    assert [] == found(scene, FindingKind.INDEX_REGRESSED)


def test_forged_membership() -> None:
    """A state key that names another user than the sender."""
    scene = pair()
    scene.join("mallory", 20, key=membership("carol").key, claimed_user_id=who("carol")[0])
    (finding,) = found(scene, FindingKind.FORGED_MEMBERSHIP)

    assert ("MALLORY1", who("carol")[0]) == (device_of(finding), finding.details["state_key_names"])


def test_malformed() -> None:
    """One per sender and day, with a count and the fields, never a value."""
    scene = pair()
    for field in ("content.device_id", "content.call_id", "content.device_id"):
        scene.add(20, Rejected(sender=who("eve")[0], event_type="m.call.member", reason="malformed", field=field))
    (finding,) = found(scene, FindingKind.MALFORMED)

    assert (3, ["content.call_id", "content.device_id"]) == (finding.details["count"], finding.details["fields"])


@pytest.mark.parametrize("reason", ["pre_matrixrtc", "not_supported_yet", "implausible_time"])
def test_other_rejections_are_not_malformed(reason: str) -> None:
    """Forms of before MatrixRTC and implausible times are recorded, and are no malformed events."""
    scene = pair()
    scene.add(20, Rejected(sender=who("eve")[0], event_type="m.call.member", reason=reason))

    assert [] == found(scene, FindingKind.MALFORMED)


# --- rotation ------------------------------------------------------------------------------------------


def rotating(*, answer: float | None, stays_until: float | None = None) -> Scene:
    """Give a room-key call of three whose carol leaves at 100 s; alice answers after so many seconds, bob at once."""
    scene = pair()
    scene.join("carol", 20)
    for seconds, name in ((0.1, "alice"), (10.1, "bob"), (20.1, "carol")):
        scene.room_key(name, seconds)
    scene.leave("carol", 100)
    scene.room_key("bob", 103, 1)
    if answer is not None:
        scene.room_key("alice", 100 + answer, 1)
    if stays_until is not None:
        scene.leave("alice", stays_until)
    return scene


@pytest.mark.parametrize(("answer", "missing"), [(3, 0), (59, 0), (61, 1), (None, 1)])
def test_not_rotated(answer: float | None, missing: int) -> None:
    """No new key within the horizon after a leave: the leaver can still decrypt."""
    assert missing == len(found(rotating(answer=answer), FindingKind.NOT_ROTATED))


def test_a_resend_is_no_rotation() -> None:
    """The old key again hands the leaver nothing new to miss."""
    scene = rotating(answer=None)
    scene.room_key("alice", 103, 0)

    assert ["ALICE1"] == [device_of(finding) for finding in found(scene, FindingKind.NOT_ROTATED)]


def test_one_that_leaves_soon_owes_no_rotation() -> None:
    """Who goes within the horizon has nobody to rotate for."""
    assert [] == found(rotating(answer=None, stays_until=130), FindingKind.NOT_ROTATED)


def test_the_last_one_owes_no_rotation() -> None:
    """Alone in the call there is nobody to hand a key to."""
    scene = pair()
    scene.room_key("alice", 0.1)
    scene.room_key("bob", 10.1)
    scene.leave("bob", 100)

    assert [] == found(scene, FindingKind.NOT_ROTATED)


def test_silence_of_envelopes_is_not_not_rotated() -> None:
    """A device in to-device mode whose envelopes did not show may well have rotated."""
    scene = pair()
    scene.join("carol", 20)
    scene.hand_out("alice", "bob", "carol", seconds=20.1)
    scene.leave("carol", 100)

    assert [] == found(scene, FindingKind.NOT_ROTATED)


def test_not_rotated_waits_for_the_horizon() -> None:
    """Nothing is missing before it is due."""
    assert [] == found(rotating(answer=None), FindingKind.NOT_ROTATED, until=159)


@pytest.mark.parametrize(("keys", "storms"), [(8, 0), (40, 1)])
def test_rotation_storm(keys: int, storms: int) -> None:
    """Far more new keys in a minute than joins and leaves ask for; told once per device."""
    scene = pair()
    for number in range(keys):
        scene.room_key("alice", 20 + number, number)

    assert storms == len(found(scene, FindingKind.ROTATION_STORM))


def test_joins_and_leaves_are_no_storm() -> None:
    """Thirty that come one after another make each present device rotate as often."""
    scene = pair()
    for number in range(30):
        scene.join(f"user{number}", 20 + number)
        scene.to_device("alice", "bob", 20 + number + 0.2)

    assert [] == found(scene, FindingKind.ROTATION_STORM)


# --- split calls ---------------------------------------------------------------------------------------


def test_transport_split() -> None:
    """One in room mode, one that never reads room keys: neither gets the other's keys, the wire looks perfect."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10)
    scene.room_key("bob", 10.1)
    scene.to_device("alice", "bob", 10.1, variant="to_device_40")
    (finding,) = found(scene, FindingKind.SPLIT_CALL)

    assert (Severity.CRITICAL, "transport_split") == (finding.severity, finding.details["split"])
    assert {"ALICE1", "BOB1"} == {device_of(finding), finding.details["other"]["device_id"]}


def test_a_follower_is_not_split() -> None:
    """It switched within 5 s: both are in room mode."""
    scene = pair()
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.room_key("bob", 10.2)
    scene.room_key("alice", 10.5, padded=True)

    assert [] == found(scene, FindingKind.SPLIT_CALL)


def test_one_that_leaves_within_5_s_is_not_split() -> None:
    """It had no time to answer."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10)
    scene.to_device("alice", "bob", 10.1, variant="to_device_40")
    scene.room_key("bob", 10.1)
    scene.leave("alice", 13, modern("alice"))

    assert [] == found(scene, FindingKind.SPLIT_CALL)


def test_a_split_is_told_5_s_after_the_room_key() -> None:
    """An alarm while live: as soon as it is decidable, not at the end of the call."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10)
    scene.to_device("alice", "bob", 10.1, variant="to_device_40")
    scene.room_key("bob", 10.2)

    assert (0, 1) == (
        len(found(scene, FindingKind.SPLIT_CALL, until=15)),
        len(found(scene, FindingKind.SPLIT_CALL, until=15.3)),
    )


def test_room_only_clients_are_not_split() -> None:
    """A call of one room-only generation is healthy in itself."""
    scene = pair()
    for seconds, name in ((0.1, "alice"), (10.1, "bob"), (10.2, "alice")):
        scene.room_key(name, seconds)

    assert [] == found(scene, FindingKind.SPLIT_CALL)


@pytest.mark.parametrize(
    ("dialects", "splits"),
    [
        (("js_43", "js_43"), 0),
        (("js_39", "js_43"), 1),
        (("js_39", "js_41", "js_43"), 3),
        (("js_43", "js_43", "js_41"), 2),
    ],
)
def test_dialect_split(dialects: tuple[str, ...], splits: int) -> None:
    """Sticky memberships of different js-sdk dialects do not see each other: each such pair is told."""
    scene = Scene()
    for number, dialect in enumerate(dialects):
        scene.join(f"user{number}", number, sticky(f"user{number}", dialect))
    kinds = [finding.details["split"] for finding in found(scene, FindingKind.SPLIT_CALL)]

    assert ["dialect_split"] * splits == kinds


def test_a_dialect_split_of_a_pair_is_told_once() -> None:
    """One that leaves and joins anew is split from the same people again: one finding, at the first time."""
    scene = Scene()
    scene.join("carol", 0, sticky("carol", "js_43"))
    scene.join("dave", 1, sticky("dave", "js_41"))
    scene.leave("dave", 2, sticky("dave"))
    scene.join("dave", 100, sticky("dave", "js_41"))

    assert [at(1)] == [finding.at for finding in found(scene, FindingKind.SPLIT_CALL)]


def test_dialects_that_never_met_are_not_split() -> None:
    """One left before the other came."""
    scene = Scene()
    scene.join("zoe", 0, sticky("zoe", "js_43"))
    scene.join("alice", 1, sticky("alice", "js_39"))
    scene.leave("alice", 10, sticky("alice"))
    scene.leave("zoe", 5, sticky("zoe"))
    scene.join("bob", 20, sticky("bob", "js_43"))
    kinds = [findings_of(session.report, FindingKind.SPLIT_CALL) for session in scene.sessions(1000)]

    assert [1, 0] == [len(one) for one in kinds]
