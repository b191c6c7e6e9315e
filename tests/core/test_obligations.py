"""Who owed whom a key, and what became of it: every obligation ends in exactly one outcome."""

import msgspec
import pytest

from rtc_appservice.core.model import CallReport, ObligationCounts, Settings
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import FindingKind, GapReason, Outcome, Verdict

from .build import HOMESERVER, Scene, at, device_of, findings_of, modern


def counts(call: CallReport) -> dict[str, int]:
    """Give the outcomes that occurred."""
    found: dict[str, int] = msgspec.to_builtins(call.obligations)
    return {outcome: count for outcome, count in found.items() if count}


def pair(*, encrypted: bool = True) -> Scene:
    """Give a call of alice (0 s on) and bob (10 s on), who owe each other a key then."""
    scene = Scene(encrypted=encrypted)
    scene.join("alice", 0)
    scene.join("bob", 10)
    return scene


def test_nobody_owes_anything_alone() -> None:
    """One device owes nobody."""
    scene = Scene(encrypted=True)
    scene.join("alice", 0)

    assert {} == counts(scene.call())


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_join_owes_both_ways(size: int) -> None:
    """The k-th to join owes k-1 keys and is owed as many: n(n-1) in all."""
    scene = Scene(encrypted=True)
    for number in range(size):
        scene.join(f"user{number}", 10 * number)

    assert size * (size - 1) == sum(counts(scene.call()).values())


def test_a_leave_owes_a_new_key_to_all_who_stay() -> None:
    """Two that stay owe each other: two more obligations."""
    scene = pair()
    scene.join("carol", 20)
    before = sum(counts(scene.call()).values())
    scene.leave("carol", 100)

    assert before + 2 == sum(counts(scene.call()).values())


@pytest.mark.parametrize(
    ("seconds", "outcome"),
    [(8, "delivered"), (10, "delivered"), (15, "delivered"), (15.1, "late"), (70, "late"), (70.1, "unconfirmed")],
)
def test_grace_and_horizon(seconds: float, outcome: str) -> None:
    """Within 5 s it is delivered, within 60 s late; afterwards envelopes cannot confirm it."""
    scene = pair()
    scene.to_device("alice", "bob", seconds)
    scene.to_device("bob", "alice", 10.1)

    assert {"delivered": 1} | {outcome: 1 + (outcome == "delivered")} == counts(scene.call())


def test_grace_and_horizon_are_settings() -> None:
    """An operator may choose them."""
    scene = pair()
    scene.to_device("alice", "bob", 25)
    scene.to_device("bob", "alice", 25)
    call = scene.call(settings=Settings(grace_seconds=20, horizon_seconds=100))

    assert {"delivered": 2} == counts(call)


def test_nothing_is_judged_before_it_is_due() -> None:
    """Before the watermark reaches the horizon the outcome is open."""
    scene = pair()

    assert {"pending": 2} == counts(scene.call(until=69))
    assert {"unconfirmed": 2} == counts(scene.call(until=70))


def test_a_leave_is_met_by_a_key_sent_after_it_only() -> None:
    """A key handed out before the leave is one the leaver has."""
    scene = pair()
    scene.join("carol", 20)
    scene.hand_out("alice", "bob", "carol", seconds=20.1)
    scene.hand_out("bob", "alice", "carol", seconds=20.1)
    scene.hand_out("carol", "alice", "bob", seconds=20.1)
    scene.leave("carol", 22)
    early = counts(scene.call())
    scene.hand_out("alice", "bob", seconds=22.1)
    scene.hand_out("bob", "alice", seconds=22.1)

    assert early.get("delivered", 0) + 2 == counts(scene.call())["delivered"]


def test_one_distribution_may_meet_several_obligations() -> None:
    """Two join at about the same moment; one key answers both joins."""
    scene = pair()
    scene.join("carol", 10.5)
    scene.hand_out("alice", "bob", "carol", seconds=11)
    scene.hand_out("bob", "alice", "carol", seconds=11)
    scene.hand_out("carol", "alice", "bob", seconds=11)

    assert {"delivered": 6} == counts(scene.call())


def test_after_leave_meets_nothing() -> None:
    """A key from a stint that has ended discharges no obligation of that stint."""
    scene = pair()
    scene.leave("alice", 11)
    scene.to_device("alice", "bob", 11.1)

    assert 0 == counts(scene.call()).get("delivered", 0)


def test_a_room_only_device_owes_by_room_event() -> None:
    """No finding per pair: the fallback says it."""
    scene = Scene()
    scene.join("alice", 0)
    scene.room_key("alice", 0.1)
    scene.join("bob", 10)
    scene.room_key("bob", 10.1)
    scene.room_key("alice", 10.2)
    call = scene.call()

    assert {"room_event": 2} == counts(call)
    assert [] == findings_of(call, FindingKind.KEY_NOT_RECEIVED)


def test_a_switched_device_owes_by_room_event_from_then_on() -> None:
    """Its own room key of this stint precedes the moment."""
    scene = pair(encrypted=False)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.hand_out("bob", "alice", seconds=10.1)
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True)
    scene.room_key("bob", 30.3, padded=True)
    scene.hand_out("alice", "carol", seconds=30.1)
    scene.hand_out("bob", "carol", seconds=30.1)
    before = counts(scene.call())
    scene.join("dave", 60)

    assert before.get("room_event", 0) + 3 <= counts(scene.call())["room_event"]


@pytest.mark.parametrize(
    ("padded", "cause"),
    [(True, "host_cannot_send")],
)
def test_a_host_that_cannot_send_is_covered_by_its_room_key(padded: bool, cause: str) -> None:
    """A key that should have gone by to-device came as a room event: one finding for each pair."""
    scene = pair(encrypted=False)
    scene.room_key("alice", 10.5, padded=padded)
    scene.hand_out("bob", "alice", seconds=10.1)
    call = scene.call()
    (finding,) = findings_of(call, FindingKind.KEY_NOT_RECEIVED)

    assert [cause] == [fallback.cause for fallback in call.fallbacks if fallback.device_id == "ALICE1"]
    assert {"delivered": 1, "recovered_by_room_event": 1} == counts(call)
    assert ("ALICE1", Outcome.RECOVERED_BY_ROOM_EVENT) == (device_of(finding), finding.details["outcome"])


def test_one_who_gave_up_is_covered_by_its_room_key() -> None:
    """It sent by to-device at first, then by room event, nobody before it."""
    scene = pair(encrypted=False)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.hand_out("bob", "alice", seconds=10.1)
    scene.join("carol", 30)
    scene.hand_out("bob", "carol", seconds=30.1)
    scene.hand_out("carol", "alice", "bob", seconds=30.1)
    scene.room_key("alice", 31, 1, padded=True)
    call = scene.call()

    assert ["gave_up"] == [fallback.cause for fallback in call.fallbacks]
    assert 1 == counts(call)["recovered_by_room_event"]


@pytest.mark.parametrize("who_goes", ["alice", "bob"])
def test_gone_before_grace_is_excused(who_goes: str) -> None:
    """One that leaves at once can neither send nor receive."""
    scene = pair()
    scene.leave(who_goes, 13)

    assert {"excused": 2} == counts(scene.call())


def test_key_management_off_is_excused() -> None:
    """An unencrypted call that shows no key at all has no keys to hand out."""
    assert {"excused": 2} == counts(pair(encrypted=False).call())


def test_without_sight_of_envelopes_nothing_can_be_said() -> None:
    """The registration's scope shows no to-device traffic: unobservable, never missing."""
    assert {"unobservable": 2} == counts(pair().call(envelopes=False))


def test_remote_recipients_are_unobservable() -> None:
    """What goes to another homeserver's users is not shown; what comes from them is."""
    scene = Scene(encrypted=True)
    scene.join("alice", 0)
    scene.join("far@far.test", 10)
    scene.to_device("far@far.test", "alice", 10.1)

    assert {"delivered": 1, "unobservable": 1} == counts(scene.call())


@pytest.mark.parametrize("reason", [GapReason.TO_DEVICE_LOST, GapReason.SERVICE_DOWN, GapReason.BACKLOG])
def test_a_gap_makes_its_pairs_unobservable(reason: GapReason) -> None:
    """To-device messages are lost while the service is down: silence then means nothing."""
    gap = Gap(gap_id="gap", homeserver=HOMESERVER, reason=reason, started_at=at(5), ended_at=at(100))

    assert {"unobservable": 2} == counts(pair().call(gaps=(gap,)))


def test_a_gap_elsewhere_in_time_changes_nothing() -> None:
    """A gap that was over before the call does not excuse it."""
    gap = Gap(
        gap_id="gap", homeserver=HOMESERVER, reason=GapReason.TO_DEVICE_LOST, started_at=at(-900), ended_at=at(-800)
    )

    assert {"unconfirmed": 2} == counts(pair().call(gaps=(gap,)))


def test_silence_of_envelopes_is_never_missing() -> None:
    """Synapse loses some on the way to a service: a pair without an envelope is unconfirmed, and no finding."""
    call = pair().call()

    assert {"unconfirmed": 2} == counts(call)
    assert [] == findings_of(call, FindingKind.KEY_NOT_RECEIVED)


def test_a_late_key_is_a_finding_of_its_pair() -> None:
    """One finding per obligation, naming both ends and the wait."""
    scene = pair()
    scene.read_key("alice", "bob", 30)
    scene.read_key("bob", "alice", 10.1)
    (finding,) = findings_of(scene.call(), FindingKind.KEY_LATE)

    assert ("ALICE1", {"user_id": "@bob:lab.test", "device_id": "BOB1"}, 20.0) == (
        device_of(finding),
        finding.details["recipient"],
        finding.details["waited_seconds"],
    )


def test_a_late_envelope_is_no_finding() -> None:
    """An earlier envelope may have been lost on its way to us, not on its way to bob."""
    scene = pair()
    scene.to_device("alice", "bob", 30)
    call = scene.call()

    assert (1, []) == (counts(call)["late"], findings_of(call, FindingKind.KEY_LATE))


def test_a_stint_of_no_length_owes_nothing() -> None:
    """A membership that had expired when it came."""
    scene = pair()
    scene.join("carol", 20, expires_seconds=0.0)

    assert 2 == sum(counts(scene.call()).values())


@pytest.mark.parametrize("size", [3, 10])
def test_a_healthy_call_is_all_delivered(size: int) -> None:
    """Everybody rotates at each join and leave, nothing is lost."""
    names = [f"user{number}" for number in range(size)]
    scene = Scene()
    for number, name in enumerate(names):
        scene.join(name, 20 * number, modern(name))
        for sender in names[: number + 1]:
            others = [other for other in names[: number + 1] if other != sender]
            scene.hand_out(sender, *others, seconds=20 * number + 0.2, variant="to_device_40")
    scene.leave(names[0], 500, modern(names[0]))
    for sender in names[1:]:
        others = [other for other in names[1:] if other != sender]
        scene.hand_out(sender, *others, seconds=500.1, variant="to_device_40")
    call = scene.call()

    assert ObligationCounts(delivered=size * (size - 1) + (size - 1) * (size - 2)) == call.obligations
    assert (Verdict.TO_DEVICE, ()) == (call.verdict, call.findings)


@pytest.mark.parametrize("until", [0, 12, 40, 71, 500])
def test_outcomes_add_up_at_any_time(until: float) -> None:
    """Whatever is known by then, every obligation has one outcome."""
    scene = pair()
    scene.join("carol", 20)
    scene.to_device("alice", "carol", 21)
    scene.leave("bob", 35)

    # Six for the joins, two for the leave of bob: alice and carol stay.
    assert 8 == sum(counts(scene.call(until=until)).values())
