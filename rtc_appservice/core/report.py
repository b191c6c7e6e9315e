"""Stage 5: calls, gaps and the ledger's total in, the whole report out."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import asdict

from rtc_appservice.core.model import CallReport, Finding, Report, RoomFinding, Totals
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.readiness import TARGET, assess
from rtc_appservice.core.words import RoomId, ServerName

SCHEMA_VERSION = 1


def build_report(
    calls: Sequence[CallReport],
    *,
    gaps: Sequence[Gap],
    room_keys_in_history: int,
    now: datetime,
    findings: Sequence[RoomFinding] = (),
    target: float = TARGET,
) -> Report:
    """
    Build a report over calls, in order of start, and the findings of rooms, in order of time.

    `target` is the share of calls that must be all to-device to be ready.
    """
    ordered = tuple(sorted(calls, key=lambda call: (call.started_at, call.call_id)))
    return Report(
        schema_version=SCHEMA_VERSION,
        generated_at=now,
        calls=ordered,
        totals=Totals(
            calls=len(ordered),
            by_verdict=dict(sorted(Counter(call.verdict.value for call in ordered).items())),
            by_evidence=dict(sorted(Counter(call.evidence.value for call in ordered).items())),
            room_keys_in_history=room_keys_in_history,
        ),
        readiness=assess(ordered, now, target),
        gaps=tuple(gaps),
        findings=tuple(sorted(findings, key=lambda finding: (finding.at, finding.finding_id))),
    )


def room_finding(finding: Finding, homeserver: ServerName, room_id: RoomId) -> RoomFinding:
    """Give a finding of a room with the room's name."""
    return RoomFinding(homeserver=homeserver, room_id=room_id, **asdict(finding))
