"""What a device of ours that is a member of the call adds: direct evidence of what was sent to it."""

import pytest

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import (
    Coverage,
    DeviceId,
    DeviceTrust,
    Evidence,
    FindingKind,
    GapReason,
    Severity,
    Verdict,
)
from tests.core.build import HOMESERVER, Scene, at, device_of, findings_of, modern, who

OURS = frozenset({who("ours")})


def watched() -> Scene:
    """Give a call of two, with a device of ours there before them."""
    scene = Scene(encrypted=True)
    for seconds, name in enumerate(("ours", "alice", "bob")):
        scene.join(name, seconds, modern(name))
    return scene


def test_what_does_not_reach_a_loss_free_witness_is_missing() -> None:
    """Each of the two owes our device a key when it joins, and whoever is there when somebody else leaves, too."""
    scene = watched()
    scene.read_key("alice", "ours", 1.2)
    call = scene.call(envelopes=False, witnesses=OURS, loss_free=True)

    assert (Coverage.TIMELINE, Coverage.WITNESS) == call.coverage
    assert (1, 1, 2) == (call.obligations.delivered, call.obligations.missing, call.obligations.unobservable)
    (finding,) = findings_of(call, FindingKind.KEY_NOT_RECEIVED)
    assert ("BOB1", Evidence.DIRECT) == (device_of(finding), finding.evidence)
    assert Verdict.TO_DEVICE is call.verdict


def test_a_witness_owes_no_keys() -> None:
    """It sends none: what a member of the call would owe is excused."""
    call = watched().call(envelopes=False, witnesses=OURS, loss_free=True)

    assert call.obligations.excused == 2
    assert all(device_of(finding) != "OURS1" for finding in call.findings)


def test_read_from_transactions_alone_nothing_is_missing() -> None:
    """Transactions lose to-device messages: a key that did not come by them is unconfirmed."""
    call = watched().call(envelopes=False, witnesses=OURS)

    assert (0, 2) == (call.obligations.missing, call.obligations.unconfirmed)


def test_a_message_that_did_not_open_makes_nothing_missing() -> None:
    """It may have been the key."""
    gap = Gap(
        gap_id="one",
        homeserver=HOMESERVER,
        reason=GapReason.UNDECRYPTABLE,
        started_at=at(1.1),
        ended_at=at(1.1),
    )
    call = watched().call(envelopes=False, witnesses=OURS, loss_free=True, gaps=(gap,))

    assert call.obligations.missing == 1  # bob's, who joined after it


@pytest.mark.parametrize("late", [5.5, 30])
def test_late_keys_are_told_by_the_witness(late: float) -> None:
    """A key that came behind the grace is late, with direct evidence."""
    scene = watched()
    scene.read_key("alice", "ours", 1 + late)
    scene.read_key("bob", "ours", 2.5)
    call = scene.call(envelopes=False, witnesses=OURS, loss_free=True)

    assert (1, 1, 0) == (call.obligations.delivered, call.obligations.late, call.obligations.missing)
    assert [Evidence.DIRECT] == [finding.evidence for finding in findings_of(call, FindingKind.KEY_LATE)]


@pytest.mark.parametrize(
    ("trust", "severity"),
    [
        (DeviceTrust.UNSIGNED, Severity.WARNING),
        (DeviceTrust.INVALID, Severity.CRITICAL),
        (DeviceTrust.CROSS_SIGNED, None),
        (DeviceTrust.SIGNED_UNCHECKED, None),
        (DeviceTrust.UNKNOWN, None),
    ],
)
def test_senders_that_are_not_trusted(trust: DeviceTrust, severity: Severity | None) -> None:
    """Told once per device, whatever it sent; where nothing is known nothing is said."""
    scene = watched()
    for seconds in (1.2, 1.4):
        scene.read_key("alice", "ours", seconds, trust=trust, sender_device_id=DeviceId("ALICE1"))
    scene.read_key("bob", "ours", 2.2, trust=DeviceTrust.CROSS_SIGNED)
    found = findings_of(scene.call(witnesses=OURS), FindingKind.UNTRUSTED_SENDER_DEVICE)

    assert ([] if severity is None else [("ALICE1", severity, 2)]) == [
        (device_of(finding), finding.severity, finding.details["count"]) for finding in found
    ]


def test_a_key_under_another_devices_name_is_no_delivery() -> None:
    """What alice's second device hands out as her first one's is told, and meets nothing that she owes."""
    scene = watched()
    scene.read_key("alice", "ours", 1.2, sender_device_id=DeviceId("ALICE2"), device_matches=False)
    call = scene.call(envelopes=False, witnesses=OURS, loss_free=True)
    (finding,) = findings_of(call, FindingKind.CLAIMED_DEVICE_MISMATCH)

    assert ("ALICE2", "ALICE1") == (device_of(finding), finding.details["claimed_device_id"])
    assert (0, 2) == (call.deliveries.to_device, call.obligations.missing)


def test_the_device_that_sealed_a_key_is_its_sender() -> None:
    """The newest form names no device: the Olm key tells it."""
    scene = watched()
    scene.read_key("alice", "ours", 1.2, claimed_device_id=None, sender_device_id=DeviceId("ALICE1"))
    call = scene.call(envelopes=False, witnesses=OURS, loss_free=True)

    assert (1, 1) == (call.deliveries.to_device, call.obligations.delivered)


def test_to_device_keys_without_olm() -> None:
    """A key sent to-device without Olm was readable by the server."""
    scene = watched()
    scene.read_key("alice", "ours", 1.2, encrypted=False)
    (finding,) = findings_of(scene.call(witnesses=OURS), FindingKind.KEY_IN_CLEAR)

    assert ("ALICE1", "to_device") == (device_of(finding), finding.details["key_transport"])
