"""
Stage 5: the totals. What a settled call or finding adds to them, and the closed list of what there is.

A total is written in the same commit as the finding or call it counts, once, and never recomputed:
so a restart, retention, replay or re-projection changes no number on the metrics page. What a call or
finding adds is split by evidence. What the service's own device opened, and what it could not, is added
in the commit that first records it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

from msgspec import Struct

from rtc_appservice.core.model import CallSession, DeviceRef, Fallback, Finding
from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode
from rtc_appservice.core.words import Evidence, FallbackCause, FindingKind, KeyTransport, Outcome, Verdict

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


#: `later`: it could not be opened when it came, and stands in the total of what could not, too.
_WHEN = ("at_once", "later")
_R = UndecryptableReason
_OF_EVENTS = (
    _R.MISSING_SESSION,
    _R.WITHHELD,
    _R.BEFORE_SESSION,
    _R.MEGOLM_FAILED,
    _R.REPLAYED,
    _R.WRONG_ROOM,
    _R.WRONG_SENDER,
    _R.MALFORMED,
)
_OF_MESSAGES = (_R.NO_OLM_SESSION, _R.OLM_FAILED, _R.WRONG_RECIPIENT, _R.WRONG_SENDER, _R.MALFORMED)

EVENTS_DECRYPTED = Total(
    name="events_decrypted",
    help="Encrypted events, of rooms the service's device is in, that it opened: at once, or later after all.",
    labels={"when": _WHEN},
)
EVENTS_UNDECRYPTABLE = Total(
    name="events_undecryptable",
    help="Encrypted events, of rooms the service's device is in, that it could not open when they came, by reason.",
    labels={"reason": _OF_EVENTS},
)
TO_DEVICE_DECRYPTED = Total(
    name="to_device_decrypted",
    help="To-device messages that the service's device opened.",
    labels={},
)
TO_DEVICE_UNDECRYPTABLE = Total(
    name="to_device_undecryptable",
    help="To-device messages that the service's device could not open, by reason.",
    labels={"reason": _OF_MESSAGES},
)
SESSIONS_WITHHELD = Total(
    name="megolm_sessions_withheld",
    help="Megolm sessions that a sender said to keep from the service's device, by the code it gave.",
    labels={"code": tuple(WithheldCode)},
)
KEYS_UNDECRYPTABLE = Total(
    name="keys_undecryptable",
    help="What may have been media keys in ended call sessions, and the service's device could not open when it came,"
    " by reason; `opened`: whether it could before the call session settled.",
    labels={"reason": tuple(UndecryptableReason), "opened": ("later", "never")},
)

TOTALS = (
    CALLS_ENDED,
    KEY_DISTRIBUTIONS,
    KEY_OBLIGATIONS,
    KEY_FALLBACKS,
    FINDINGS,
    KEYS_UNDECRYPTABLE,
    EVENTS_DECRYPTED,
    EVENTS_UNDECRYPTABLE,
    TO_DEVICE_DECRYPTED,
    TO_DEVICE_UNDECRYPTABLE,
    SESSIONS_WITHHELD,
)


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
        for key in session.undecryptable:
            add(KEYS_UNDECRYPTABLE, reason=key.reason, opened="never" if key.opened_at is None else "later")
    return [(name, dict(labels), amount) for (name, labels), amount in sorted(amounts.items())]


def room_increments(newly_settled: Sequence[Finding]) -> list[Increment]:
    """Give what the findings of a room itself add to the totals as they settle."""
    counted = Counter((finding.kind, finding.evidence) for finding in newly_settled)
    return [
        (FINDINGS.name, {"kind": str(kind), "evidence": str(evidence)}, count)
        for (kind, evidence), count in sorted(counted.items())
    ]


def event_increments(
    reasons: Sequence[UndecryptableReason], codes: Sequence[WithheldCode], *, at_once: int, later: int
) -> list[Increment]:
    """
    Give what room events add to the totals that were opened, or could not be, for the first time.

    Args:
        reasons: of the events that could not be opened.
        codes: of the Megolm sessions that are withheld.
        at_once: events that were opened when they came.
        later: events that were opened after they could not be.
    """
    opened = zip(_WHEN, (at_once, later), strict=True)
    return [
        *((EVENTS_DECRYPTED.name, {"when": when}, amount) for when, amount in opened if amount),
        *((EVENTS_UNDECRYPTABLE.name, {"reason": str(reason)}, 1) for reason in reasons),
        *((SESSIONS_WITHHELD.name, {"code": str(code)}, 1) for code in codes),
    ]


def message_increments(reasons: Sequence[UndecryptableReason], *, opened: int) -> list[Increment]:
    """Give what to-device messages for the device add: `reasons` of those that could not be opened, and the others."""
    return [
        *([(TO_DEVICE_DECRYPTED.name, {}, opened)] if opened else []),
        *((TO_DEVICE_UNDECRYPTABLE.name, {"reason": str(reason)}, 1) for reason in reasons),
    ]
