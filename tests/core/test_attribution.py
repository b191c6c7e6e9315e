"""Each key belongs to the call and stint that the first fitting rule names."""

import msgspec
import pytest

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.observed import MegolmEnvelope
from rtc_appservice.core.words import Evidence, FallbackCause, FindingKind, KeyTransport

from .build import SLOT, Scene, at, findings_of, modern, who


def pair(scene: Scene | None = None) -> Scene:
    """Give a call of alice (0 s on) and bob (10 s on)."""
    scene = scene or Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    return scene


def room_keys(call: CallReport) -> int:
    """Give the number of room keys of a call."""
    return call.distributions.room_event


# --- room keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 5, 99])
def test_a_room_key_belongs_to_its_devices_live_stint(seconds: float) -> None:
    """The plain case: no remark on it."""
    scene = pair()
    scene.room_key("alice", seconds)
    (fallback,) = scene.call().fallbacks

    assert (who("alice"), at(seconds), 1) == ((fallback.user_id, fallback.device_id), fallback.at, fallback.room_keys)
    assert fallback.cause not in (FallbackCause.STRAY, FallbackCause.AFTER_LEAVE)


@pytest.mark.parametrize(("before", "belongs"), [(0.1, True), (10, True), (10.1, False)])
def test_a_key_may_come_before_its_membership(before: float, belongs: bool) -> None:
    """Old clients often send the key first: up to 10 s before the stint it is the stint's."""
    scene = Scene()
    scene.join("alice", 0)
    scene.room_key("bob", 50 - before)
    scene.join("bob", 50)
    (fallback,) = scene.call().fallbacks

    assert belongs is (fallback.cause is not FallbackCause.STRAY)


def test_a_key_before_the_very_first_membership_opens_no_call_and_is_not_lost() -> None:
    """The key of the one who opens the call may overtake the opening event."""
    scene = Scene()
    scene.room_key("alice", -0.2)
    scene.join("alice", 0)
    call = scene.call()

    assert (at(0), 1) == (call.started_at, room_keys(call))


@pytest.mark.parametrize(("after", "cause"), [(0.05, "after_leave"), (3600, "after_leave"), (86401, "stray")])
def test_a_key_after_leaving(after: float, cause: str) -> None:
    """Within 24 h of the device's last stint it is `after_leave`; later it is stray."""
    scene = pair()
    scene.join("bob", 12, expires_seconds=10.0**6, created_at=at(12))
    scene.leave("alice", 100)
    scene.room_key("alice", 100 + after)
    (fallback,) = scene.call(until=100000).fallbacks

    assert cause == fallback.cause


def test_after_leave_is_placed_in_the_live_call() -> None:
    """A device that left an earlier call and sends into a later one."""
    scene = pair()
    scene.leave("alice", 50)
    scene.leave("bob", 60)
    scene.join("bob", 100)
    scene.room_key("alice", 110)
    first, second = (session.report for session in scene.sessions(1000))

    assert (0, 1) == (room_keys(first), room_keys(second))
    assert [FallbackCause.AFTER_LEAVE] == [fallback.cause for fallback in second.fallbacks]


def test_after_leave_with_no_call_going_on_is_placed_in_the_one_that_ended_last() -> None:
    """The last key of the last one to leave."""
    scene = pair()
    scene.leave("alice", 50)
    scene.leave("bob", 60)
    scene.room_key("bob", 60.05)

    assert [FallbackCause.AFTER_LEAVE] == [fallback.cause for fallback in scene.call().fallbacks]


def test_a_key_of_nobody_in_the_call_is_stray() -> None:
    """Anyone in the room can send one; it is a security finding beside."""
    scene = pair()
    scene.room_key("mallory", 20)
    call = scene.call()

    assert [FallbackCause.STRAY] == [fallback.cause for fallback in call.fallbacks]
    assert 1 == len(findings_of(call, FindingKind.STRAY_KEY))


def test_another_device_of_a_member_is_not_the_member() -> None:
    """Identity is sender and device: alice's second device is in no call."""
    scene = pair()
    scene.room_key("alice/2", 20)

    assert [FallbackCause.STRAY] == [fallback.cause for fallback in scene.call().fallbacks]


def test_a_claimed_device_of_another_user_is_stray() -> None:
    """The sender of the event is who counts: mallory naming BOB1 is not bob."""
    scene = pair()
    scene.room_key("mallory", 20)
    sent = scene.observations.pop()
    scene.add(20, msgspec.structs.replace(sent.body, device_id=who("bob")[1]))

    assert [FallbackCause.STRAY] == [fallback.cause for fallback in scene.call().fallbacks]


def test_a_key_of_another_slot_is_not_this_calls() -> None:
    """Two calls side by side in one room keep their keys apart."""
    scene = pair()
    scene.join("carol", 0, slot_id="m.call#x", key="_@carol:lab.test_CAROL1_m.callx")
    scene.room_key("carol", 20, slot_id="m.call#x")
    by_slot = {session.report.slot_id: session.report for session in scene.sessions(1000)}

    assert (0, 1) == (room_keys(by_slot[SLOT]), room_keys(by_slot["m.call#x"]))
    assert [] == findings_of(by_slot[SLOT], FindingKind.KEY_IN_CLEAR)
    assert 1 == len(findings_of(by_slot["m.call#x"], FindingKind.KEY_IN_CLEAR))


def test_one_event_is_one_distribution_however_many_keys_it_repeats() -> None:
    """js-sdk up to 34.5 sends its whole key history."""
    scene = pair()
    scene.room_key("alice", 5, 0, 1, 2)

    assert 1 == room_keys(scene.call())


def test_resends_are_counted() -> None:
    """The same key under the same index again is a resend; a new key is none."""
    scene = pair()
    for seconds, index in ((5, 0), (11, 0), (20, 1), (25, 1)):
        scene.room_key("alice", seconds, index)

    assert (4, 2) == (scene.call().distributions.room_event, scene.call().distributions.resends)


def test_the_first_key_of_a_new_stint_is_no_resend() -> None:
    """Indexes are not unique in time: index 0 recurs at each join."""
    scene = pair()
    scene.room_key("alice", 5, tags=("first",))
    scene.leave("alice", 20)
    scene.join("alice", 30)
    scene.room_key("alice", 31, tags=("second",))

    assert 0 == scene.call().distributions.resends


@pytest.mark.parametrize(("encrypted", "evidence"), [(False, Evidence.DIRECT), (True, Evidence.DECRYPTED)])
def test_a_readable_key_tells_how_it_was_read(encrypted: bool, evidence: Evidence) -> None:
    """In clear, or after decryption by a device of ours."""
    scene = pair()
    scene.room_key("alice", 5, encrypted=encrypted)

    assert evidence is scene.call().fallbacks[0].evidence


# --- sealed room events --------------------------------------------------------------------------------


def test_a_sealed_event_as_long_as_a_key_is_an_inferred_room_key() -> None:
    """Its length and its sender tell; certainty it is not."""
    scene = pair(Scene(encrypted=True))
    scene.sealed_room_key("alice", 0.2)
    (fallback,) = scene.call().fallbacks

    assert Evidence.INFERRED is fallback.evidence
    assert fallback.confidence < 0.9


@pytest.mark.parametrize("extra", [44, 200, -44])
def test_a_sealed_event_of_another_length_is_no_key(extra: int) -> None:
    """A message that cannot be a key event does not lower coverage."""
    scene = pair(Scene(encrypted=True))
    scene.sealed_room_key("alice", 0.2, extra=extra)
    call = scene.call()

    assert (0, True) == (room_keys(call), "timeline" in call.coverage)


def test_a_sealed_event_of_nobody_in_the_call_is_no_key() -> None:
    """Ordinary messages of other room members say nothing."""
    scene = pair(Scene(encrypted=True))
    scene.sealed_room_key("zoe", 20)
    call = scene.call()

    assert (0, True) == (room_keys(call), "timeline" in call.coverage)


def test_a_sealed_key_without_its_device_is_the_members() -> None:
    """`device_id` is deprecated on the wire: without it the sender's call device is taken."""
    scene = pair(Scene(encrypted=True))
    scene.sealed_room_key("alice", 0.2)
    body = scene.observations[-1].body
    assert isinstance(body, MegolmEnvelope)
    scene.observations.pop()
    scene.add(0.2, MegolmEnvelope(sender=body.sender, length=body.length))

    assert 1 == room_keys(scene.call())


# --- to-device -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["to_device_37_4", "to_device_37_11", "to_device_40", "to_device_40_user"])
@pytest.mark.parametrize("olm_type", [0, 1])
def test_an_envelope_as_long_as_a_key_is_a_delivery(variant: str, olm_type: int) -> None:
    """Every content variant, in both Olm types."""
    scene = pair()
    scene.to_device("alice", "bob", 11, variant=variant, olm_type=olm_type)
    call = scene.call()

    assert (1, 0, 0) == (call.deliveries.to_device, call.deliveries.after_leave, call.deliveries.unclassified)


@pytest.mark.parametrize("signed", ["", "+signed"])
def test_a_megolm_share_is_no_delivery(signed: str) -> None:
    """Call devices also share Megolm sessions; that is neither a key nor unclassified."""
    scene = pair(Scene(encrypted=True))
    scene.to_device("alice", "bob", 11, variant="megolm_share" + signed)
    call = scene.call()

    assert (0, 0) == (call.deliveries.to_device, call.deliveries.unclassified)


def test_what_fits_no_size_is_unclassified() -> None:
    """At a moment that owes a key, a message that fits nothing is counted as such."""
    scene = pair()
    scene.to_device("alice", "bob", 11, extra=-200)
    call = scene.call()

    assert (0, 1) == (call.deliveries.to_device, call.deliveries.unclassified)


@pytest.mark.parametrize(("seconds", "low"), [(10.2, 0), (19, 0), (60, 1)])
def test_a_message_at_no_moment_is_of_low_confidence(seconds: float, low: int) -> None:
    """It fits the size of a key, and nobody had joined or left shortly before: a delivery of lower confidence."""
    scene = pair()
    scene.to_device("alice", "bob", seconds)
    call = scene.call()

    assert (1, low) == (call.deliveries.to_device, call.deliveries.low_confidence)


def test_what_fits_neither_size_nor_moment_is_nothing() -> None:
    """Olm traffic of other kinds between call devices is not counted."""
    scene = pair()
    scene.to_device("alice", "bob", 60, extra=-200)
    call = scene.call()

    assert (0, 0) == (call.deliveries.to_device, call.deliveries.unclassified)


def test_a_key_around_a_rejoin_belongs_to_the_stint_that_ended() -> None:
    """The newer manager goes on sending after leaving: 5 s before the rejoin it is the old stint's, still running."""
    scene = pair()
    scene.leave("alice", 50)
    scene.room_key("alice", 50.1, padded=True)
    scene.join("alice", 55)

    assert [FallbackCause.AFTER_LEAVE] == [fallback.cause for fallback in scene.call().fallbacks]


@pytest.mark.parametrize(
    ("seconds", "delivered", "after_leave"),
    [(4.9, 0, 0), (5, 1, 0), (50, 1, 0), (105, 1, 1), (99, 1, 0)],
)
def test_when_an_envelope_counts(seconds: float, delivered: int, after_leave: int) -> None:
    """The recipient joins at 10 s, the sender leaves at 100 s and goes on sending."""
    scene = pair()
    scene.leave("alice", 100)
    scene.to_device("alice", "bob", seconds)
    call = scene.call()

    assert (delivered, after_leave) == (call.deliveries.to_device, call.deliveries.after_leave)


def test_messages_that_leave_together_are_one_distribution() -> None:
    """One act of a device, one delivery for each recipient; another second is another act."""
    scene = pair()
    scene.join("carol", 20)
    for recipient, seconds in (("bob", 21), ("carol", 21.9), ("bob", 23.1), ("carol", 23.2)):
        scene.to_device("alice", recipient, seconds)
    session = scene.session()

    assert (2, 4) == (session.report.distributions.to_device, session.report.deliveries.to_device)
    assert [2, 2] == [one.recipients for one in session.distributions]


def test_two_senders_at_one_moment_are_two_distributions() -> None:
    """A distribution is the act of one device."""
    scene = pair()
    scene.to_device("alice", "bob", 11)
    scene.to_device("bob", "alice", 11)

    assert 2 == scene.call().distributions.to_device


def test_a_users_devices_are_told_apart_by_their_olm_key() -> None:
    """The envelope names no sending device: its identity key and the stints do."""
    scene = pair()
    scene.leave("alice", 50)
    scene.join("alice/2", 60, modern("alice/2"))
    scene.to_device("alice", "bob", 11)
    scene.to_device("alice/2", "bob", 61, variant="to_device_40")
    session = scene.session()
    senders = [(one.sender.user_id, one.sender.device_id) for one in session.distributions]

    assert [who("alice"), who("alice/2")] == senders


def test_a_user_sends_to_her_own_other_device() -> None:
    """Keys go to one's own other devices as well."""
    scene = pair()
    scene.join("alice/2", 20)
    scene.to_device("alice", "alice/2", 21)
    session = scene.session()

    assert [who("alice")] == [(one.sender.user_id, one.sender.device_id) for one in session.distributions]


def test_a_read_to_device_key_is_a_delivery_with_its_index() -> None:
    """What a device of ours decrypted is a fact, not a guess."""
    scene = pair()
    scene.read_key("alice", "bob", 11, index=3)
    (distribution,) = scene.session().distributions

    assert (KeyTransport.TO_DEVICE, 3) == (distribution.key_transport, distribution.index)
    assert distribution.evidence is not Evidence.INFERRED


def test_nothing_is_attributed_without_memberships() -> None:
    """Keys and envelopes alone make no call."""
    scene = Scene()
    scene.room_key("alice", 0)
    scene.to_device("alice", "bob", 1)

    assert [] == scene.sessions(100)
