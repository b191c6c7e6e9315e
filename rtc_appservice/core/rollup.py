"""
Stage 5: the totals. What a settled call or finding adds to them, and the closed list of what there is.

A total is written in the same commit as the finding or call it counts, once, and never recomputed:
so a restart, retention, replay or re-projection changes no number on the metrics page. Every total
is split by evidence.
"""

from collections.abc import Mapping, Sequence
from itertools import product

from msgspec import Struct

from rtc_appservice.core.model import (
    CallSession,
    DeviceRef,
    Evidence,
    Fallback,
    FallbackCause,
    Finding,
    FindingKind,
    KeyTransport,
    Outcome,
    Verdict,
)

Labels = Mapping[str, str]

#: (name, labels, amount): one row to add to.
Increment = tuple[str, Labels, int]


class Total(Struct, frozen=True, kw_only=True):
    """One total that only grows: its name, its one-sentence meaning, and every value each label can take."""

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]]

    def label_sets(self) -> list[dict[str, str]]:
        """Give every combination of label values, so that each can stand at 0 before it first happens."""
        return [dict(zip(self.labels, map(str, values), strict=True)) for values in product(*self.labels.values())]


_EVIDENCE = tuple(Evidence)

CALLS_ENDED = Total(
    name="calls_ended",
    help="Call sessions that ended, by the way their media keys travelled.",
    labels={"verdict": tuple(Verdict), "evidence": _EVIDENCE},
)
KEY_DISTRIBUTIONS = Total(
    name="key_distributions",
    help="Acts of one device handing out a media key in ended call sessions, resends included.",
    labels={"key_transport": tuple(KeyTransport), "evidence": _EVIDENCE},
)
KEY_OBLIGATIONS = Total(
    name="key_obligations",
    help="Media keys owed by to-device in ended call sessions, by outcome; evidence is that of the call session.",
    labels={"outcome": tuple(o for o in Outcome if o is not Outcome.PENDING), "evidence": _EVIDENCE},
)
KEY_FALLBACKS = Total(
    name="key_fallbacks",
    help="Devices that used room events for their media key in a call session, by cause.",
    labels={"cause": tuple(FallbackCause), "evidence": _EVIDENCE},
)
FINDINGS = Total(
    name="findings",
    help="Settled findings, by kind.",
    labels={"kind": tuple(FindingKind), "evidence": _EVIDENCE},
)

TOTALS = (CALLS_ENDED, KEY_DISTRIBUTIONS, KEY_OBLIGATIONS, KEY_FALLBACKS, FINDINGS)


def fallback_of(session: CallSession, finding: Finding) -> Fallback | None:
    """Give the fallback a `fallback` or `stray_key` finding speaks of: its device's at that time, else its first."""
    own = [
        f for f in session.report.fallbacks if DeviceRef(user_id=f.user_id, device_id=f.device_id) == finding.subject
    ]
    return next((f for f in own if f.at == finding.at), own[0] if own else None)


def increments(session: CallSession, newly_settled: Sequence[Finding], newly_ended: bool) -> list[Increment]:
    """
    Take a projected call and what settled with this projection; give what it adds to the totals.

    The result is sorted, so that two writers lock the rows of the totals in one order.

    Args:
        newly_settled: findings that were not settled before this projection.
        newly_ended: the call itself (`report.settled`) was not settled before this projection.
    """
    amounts: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def add(total: Total, amount: int = 1, **labels: str) -> None:
        key = (total.name, tuple((name, str(labels[name])) for name in total.labels))
        amounts[key] = amounts.get(key, 0) + amount

    for finding in newly_settled:
        add(FINDINGS, kind=finding.kind, evidence=finding.evidence)
        if finding.kind in (FindingKind.FALLBACK, FindingKind.STRAY_KEY):
            fallback = fallback_of(session, finding)
            cause = fallback.cause if fallback else FallbackCause.UNKNOWN
            add(KEY_FALLBACKS, cause=cause, evidence=finding.evidence)
    if newly_ended:
        report = session.report
        add(CALLS_ENDED, verdict=report.verdict, evidence=report.evidence)
        for distribution in session.distributions:
            add(KEY_DISTRIBUTIONS, key_transport=distribution.key_transport, evidence=distribution.evidence)
        for outcome in KEY_OBLIGATIONS.labels["outcome"]:
            if count := getattr(report.obligations, outcome):
                add(KEY_OBLIGATIONS, count, outcome=outcome, evidence=report.evidence)
    return [(name, dict(labels), amount) for (name, labels), amount in sorted(amounts.items())]
