"""What settled calls and findings add to the totals: each once, split by evidence."""

from rtc_appservice.core.rollup import EVENTS_UNDECRYPTABLE, TO_DEVICE_UNDECRYPTABLE, TOTALS, increments
from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import FindingKind

from .projected_call import ALICE, finding, make_call


def test_an_ended_call() -> None:
    """A call that settles adds itself, its distributions and its obligations."""
    assert increments(make_call(), (), True) == [
        ("calls_ended", {"verdict": "mixed", "evidence": "inferred"}, 1),
        ("key_distributions", {"key_transport": "room_event", "evidence": "direct"}, 2),
        ("key_distributions", {"key_transport": "to_device", "evidence": "inferred"}, 1),
        ("key_obligations", {"outcome": "recovered_by_room_event", "evidence": "inferred"}, 1),
        ("key_obligations", {"outcome": "room_event", "evidence": "inferred"}, 1),
        ("key_obligations", {"outcome": "unconfirmed", "evidence": "inferred"}, 2),
        ("keys_undecryptable", {"reason": "missing_session", "opened": "later"}, 1),
        ("keys_undecryptable", {"reason": "withheld", "opened": "never"}, 1),
    ]


def test_settled_findings() -> None:
    """A finding adds itself; a fallback adds its cause too. A call that was counted adds nothing again."""
    call = make_call()

    assert increments(call, call.report.findings[:2], False) == [
        ("findings", {"kind": "fallback", "evidence": "direct"}, 2),
        ("key_fallbacks", {"cause": "followed", "evidence": "direct"}, 1),
        ("key_fallbacks", {"cause": "room_only_client", "evidence": "direct"}, 1),
    ]
    assert increments(call, (), False) == []


def test_labels_are_those_that_stand_at_zero() -> None:
    """Every increment is to a total that was announced, with label values that were announced."""
    call = make_call()
    announced = {(total.name, tuple(labels.items())) for total in TOTALS for labels in total.label_sets()}
    every = [finding(number, kind, ALICE, 1) for number, kind in enumerate(FindingKind)]

    made = {(name, tuple(labels.items())) for name, labels, _ in increments(call, every, True)}

    assert made <= announced


def test_no_reason_is_without_a_total() -> None:
    """Whatever keeps the device from opening something, an event's total or a message's has a place for it."""
    reasons = {*EVENTS_UNDECRYPTABLE.labels["reason"], *TO_DEVICE_UNDECRYPTABLE.labels["reason"]}

    assert set(UndecryptableReason) == reasons
