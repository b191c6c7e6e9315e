"""Stage 5: findings of a room that belong to no call, and the most findings that are told of one room and day."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from msgspec.structs import replace

from rtc_appservice.core.findings import finding_id, first_of
from rtc_appservice.core.model import CallSession, DeviceRef, Finding, Projected, RoomHistory, Settings
from rtc_appservice.core.observed import Membership, Observation, Rejected, RoomKey
from rtc_appservice.core.outside import Gathered, Outside
from rtc_appservice.core.room_facts import RoomFacts
from rtc_appservice.core.words import DeviceId, Evidence, FindingKind, Severity

#: More findings than this of one room and day say nothing more.
MAX_FINDINGS = 1000

_SEVERITY = {
    FindingKind.STRAY_KEY: Severity.WARNING,
    FindingKind.KEY_IN_CLEAR: Severity.WARNING,
    FindingKind.KEY_READABLE_IN_HISTORY: Severity.WARNING,
    FindingKind.MALFORMED: Severity.INFO,
    FindingKind.FORGED_MEMBERSHIP: Severity.WARNING,
}


def day_of(at: datetime) -> datetime:
    """Give the beginning of the day, UTC, that a time lies in."""
    return datetime.combine(at.astimezone(UTC).date(), time(), UTC)


def settles_at(at: datetime, settings: Settings) -> datetime:
    """Give when what a room's day tells has settled: nothing of the day is due any more."""
    return day_of(at) + timedelta(days=1, seconds=settings.horizon_seconds + settings.late_seconds)


def find_outside(outside: Outside, room: RoomFacts, history: RoomHistory, settings: Settings) -> list[Finding]:
    """Give the findings of what belongs to no call: one a kind, sender and day."""
    found = []
    for gathered, observations in outside.found.items():
        told: Sequence[Observation] = observations
        if gathered[0] is FindingKind.STRAY_KEY:
            # Of a call that began unseen, the memberships are not known: a key of it looks stray.
            told = [one for one in observations if room.seen_before(one.event_at, sticky=True)]
        if told:
            found.append(_finding(gathered, told, room, history, settings))
    return sorted(found, key=_order)


def _finding(
    gathered: Gathered, found: Sequence[Observation], room: RoomFacts, history: RoomHistory, settings: Settings
) -> Finding:
    kind, sender, day, key_transport = gathered
    first, last = found[0], found[-1]
    severity = _SEVERITY[kind]
    details: dict[str, Any] = {"count": len(found)}
    is_decrypted = any(isinstance(one.body, RoomKey) and one.body.encrypted for one in found)
    if kind in (FindingKind.KEY_IN_CLEAR, FindingKind.KEY_READABLE_IN_HISTORY):
        encrypted = room.encrypted_between(first.event_at, last.event_at)
        details |= {
            "key_transport": key_transport,
            "encrypted_room": encrypted,
            "history_visibility": room.visibility_at(first.event_at),
        }
        if kind is FindingKind.KEY_READABLE_IN_HISTORY and encrypted:
            severity = Severity.INFO
    elif isinstance(first.body, Membership):
        details["state_key_names"] = first.body.claimed_user_id
    elif kind is FindingKind.MALFORMED:
        fields = {one.body.field for one in found if isinstance(one.body, Rejected)}
        details["fields"] = sorted(field for field in fields if field)
    return Finding(
        finding_id=_id(kind, history, sender, f"{day.isoformat()} {key_transport}"),
        kind=kind,
        severity=severity,
        at=first.event_at,
        evidence=Evidence.DECRYPTED if is_decrypted else Evidence.DIRECT,
        subject=DeviceRef(user_id=sender, device_id=DeviceId("")),
        settled=history.watermark_at >= settles_at(first.event_at, settings),
        details=details,
        observations=tuple(first_of(found)),
    )


def within_limit(
    calls: Sequence[CallSession], outside: Sequence[Finding], history: RoomHistory, settings: Settings
) -> Projected:
    """
    Give a room with at most 1,000 findings a day (UTC), those of its calls and others: the first by time and id.

    One `flood` stands for the rest of the day.
    """
    found = [*outside, *(finding for call in calls for finding in call.report.findings)]
    if len(found) <= MAX_FINDINGS:
        return Projected(calls=tuple(calls), findings=tuple(outside))
    days: dict[date, list[Finding]] = defaultdict(list)
    for finding in found:
        days[day_of(finding.at)].append(finding)
    left_out: set[str] = set()
    floods = []
    for of_day in days.values():
        rest = sorted(of_day, key=_order)[MAX_FINDINGS:]
        if rest:
            left_out.update(finding.finding_id for finding in rest)
            floods.append(_flood(rest, history, settings))
    kept = [finding for finding in outside if finding.finding_id not in left_out]
    return Projected(
        calls=tuple(_without(call, left_out) for call in calls),
        findings=tuple(sorted((*kept, *floods), key=_order)),
    )


def _flood(rest: Sequence[Finding], history: RoomHistory, settings: Settings) -> Finding:
    at = rest[0].at
    grades = list(Evidence)
    return Finding(
        finding_id=_id(FindingKind.FLOOD, history, "", day_of(at).date().isoformat()),
        kind=FindingKind.FLOOD,
        severity=Severity.WARNING,
        at=at,
        evidence=max((finding.evidence for finding in rest), key=grades.index),
        settled=history.watermark_at >= settles_at(at, settings),
        details={"suppressed": len(rest)},
    )


def _without(call: CallSession, left_out: set[str]) -> CallSession:
    findings = call.report.findings
    kept = tuple(finding for finding in findings if finding.finding_id not in left_out)
    return call if len(kept) == len(findings) else replace(call, report=replace(call.report, findings=kept))


def _id(kind: FindingKind, history: RoomHistory, sender: str, what: str) -> str:
    return finding_id(kind, f"{history.homeserver}\0{history.room_id}", sender, what)


def _order(finding: Finding) -> tuple[datetime, str]:
    return finding.at, finding.finding_id
