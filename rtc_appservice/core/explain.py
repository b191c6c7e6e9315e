"""
Stage 5: one call told in full: its timeline, and who owed whom which key and what came of it.

Answers "why could Bob not hear Alice". Worked out anew from the observations, by the same analysis as the report.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.model import CallReport, CallSession, DeviceRef, RoomHistory, Settings
from rtc_appservice.core.obligations import ObligationGroup, obligations
from rtc_appservice.core.room_findings import within_limit
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.words import CallId, Evidence, KeyTransport, Outcome


class TimelineEntry(Struct, frozen=True, kw_only=True):
    """One thing that happened in a call."""

    at: datetime
    what: str  #: `joined`, `left`, `key_distributed`, `finding`
    device: DeviceRef | None
    key_transport: KeyTransport | None = None
    key_index: int | None = None
    recipients: int | None = None
    evidence: Evidence | None = None
    note: str | None = None  #: end reason, `resend`, `after_leave`, or the finding's kind


class OwedKey(Struct, frozen=True, kw_only=True):
    """One obligation: a key owed by a device to another, and its outcome."""

    sender: DeviceRef
    recipient: DeviceRef
    moment: str  #: `join` or `leave`
    owed_at: datetime
    outcome: Outcome
    excuse: str | None
    met_at: datetime | None
    evidence: Evidence


class CallExplanation(Struct, frozen=True, kw_only=True):
    """A call's report, its timeline in order, and every obligation in order of (time, sender, recipient)."""

    call: CallReport
    timeline: tuple[TimelineEntry, ...]
    owed: tuple[OwedKey, ...]


def explain(history: RoomHistory, call_id: CallId, settings: Settings | None = None) -> CallExplanation | None:
    """Tell one call of a room in full, or give None if the room had no such call."""
    settings = settings or Settings()
    projection = RoomProjection(settings)
    projection.feed(history.observations)
    with projection.looked_at(history) as look:
        for call, view in look.calls:
            if call.call_id == call_id:
                (session,) = within_limit([call.session(view)], [], history, settings).calls
                groups = obligations(call.traffic, call.analyse(view).sight)
                timeline = _timeline(session, call.traffic.span.stints)
                owed = sorted(_owed(groups), key=lambda key: (key.owed_at, str(key.sender), str(key.recipient)))
                return CallExplanation(
                    call=session.report,
                    timeline=tuple(sorted(timeline, key=lambda entry: (entry.at, entry.what, str(entry.device)))),
                    owed=tuple(owed),
                )
    return None


def _timeline(session: CallSession, stints: Sequence[DeviceStint]) -> Iterator[TimelineEntry]:
    for stint in stints:
        device = None if stint.sealed else _ref(stint)
        yield TimelineEntry(at=stint.joined_at, what="joined", device=device, evidence=Evidence.DIRECT)
        if stint.left_at is not None:
            reason = None if stint.end_reason is None else stint.end_reason.value
            yield TimelineEntry(at=stint.left_at, what="left", device=device, note=reason, evidence=Evidence.DIRECT)
    for distribution in session.distributions:
        notes = [
            name
            for name, is_so in (("resend", distribution.resend), ("after_leave", distribution.after_leave))
            if is_so
        ]
        yield TimelineEntry(
            at=distribution.at,
            what="key_distributed",
            device=distribution.sender,
            key_transport=distribution.key_transport,
            key_index=distribution.index,
            recipients=distribution.recipients,
            evidence=distribution.evidence,
            note=", ".join(notes) or None,
        )
    for finding in session.report.findings:
        yield TimelineEntry(
            at=finding.at, what="finding", device=finding.subject, evidence=finding.evidence, note=finding.kind.value
        )


def _owed(groups: Iterable[ObligationGroup]) -> Iterator[OwedKey]:
    for group in groups:
        for recipient in group.recipients():
            yield OwedKey(
                sender=_ref(group.sender),
                recipient=_ref(recipient),
                moment=group.moment.kind,
                owed_at=group.moment.at,
                outcome=group.outcome,
                excuse=group.excuse,
                met_at=group.met_at,
                evidence=group.evidence,
            )


def _ref(stint: DeviceStint) -> DeviceRef:
    return DeviceRef(user_id=stint.user_id, device_id=stint.device_id)
