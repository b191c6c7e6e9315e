"""
Stage 5: what is posted to the operator's room: calls and readiness in, notices in words out.

Ids stand in clear: the room is the operator's own, and whoever is to act must know whom it concerns.
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.model import CallReport, Finding, Readiness
from rtc_appservice.core.wording import READINESS, how_many, moment, plain
from rtc_appservice.core.words import FindingKind

#: What readiness is judged by: as far back as `report` looks.
SUMMARY_SPAN = timedelta(days=28)
#: In a large call every pair of devices can be a finding; who was told of these few looks the call up.
ALARMS_PER_CALL = 3
#: A user id has no more characters; what a stranger calls a device might, and an event holds 64 KiB.
_ID_CHARACTERS = 255
_REASONS = 40

_SPLITS = {
    "transport_split": "the first sends its key as room event, the second sends by to-device and does not follow",
    "dialect_split": "they announce themselves in dialects of MatrixRTC that do not understand each other",
}


class Notice(Struct, frozen=True, kw_only=True):
    """One notice; the same `notice_id` is never posted twice."""

    notice_id: str
    text: str


def alarms(calls: Sequence[CallReport], posted: Collection[str]) -> list[Notice]:
    """Give a notice for each split of calls that go on now, without those posted, a few of a call at most."""
    notices = []
    for call in calls:
        before = sum(notice_id.startswith(_of_call(call)) for notice_id in posted)
        due = [each for each in _splits(call) if _of_call(call) + each.finding_id not in posted]
        for number, finding in enumerate(due[: max(0, ALARMS_PER_CALL - before)], start=before + 1):
            is_last = number == ALARMS_PER_CALL
            notices.append(Notice(notice_id=_of_call(call) + finding.finding_id, text=_alarm(call, finding, is_last)))
    return notices


def week_of(now: datetime) -> str:
    """Give the ISO week (UTC) that a time is in."""
    return f"{now.astimezone(UTC):%G-W%V}"


def weekly_id(now: datetime) -> str:
    """Give the id of the summary of the week that a time is in."""
    return f"weekly/{week_of(now)}"


def weekly(readiness: Readiness, calls: int, now: datetime) -> Notice:
    """Give the summary of readiness over so many calls."""
    lines = [
        f"Week {week_of(now)}: {READINESS.get(readiness.verdict, readiness.verdict)}",
        f"{how_many(calls, 'call')} in the last {SUMMARY_SPAN.days} days.",
        *(f"- {reason}" for reason in readiness.reasons[:_REASONS]),
    ]
    return Notice(notice_id=weekly_id(now), text="\n".join(plain(line) for line in lines))


def _of_call(call: CallReport) -> str:
    return f"split_call/{call.call_id}/"


def _splits(call: CallReport) -> Iterator[Finding]:
    """Yield the splits of a call that goes on, the earliest first."""
    if call.ended_at is None:
        found = (finding for finding in call.findings if finding.kind is FindingKind.SPLIT_CALL)
        yield from sorted(found, key=lambda finding: (finding.at, finding.finding_id))


def _shown(name: str) -> str:
    return plain(name[:_ID_CHARACTERS])


def _alarm(call: CallReport, finding: Finding, is_last: bool) -> str:
    """Put one split into words; ids are made by strangers and stand on lines of ours."""
    generations = {(each.user_id, each.device_id): each.generation for each in call.participants}
    other = finding.details["other"]
    pair = [(other["user_id"], other["device_id"])]
    if finding.subject is not None:
        pair.insert(0, (finding.subject.user_id, finding.subject.device_id))
    devices = [f"{_shown(u)} {_shown(d)} (generation {generations.get((u, d), 'unknown')})" for u, d in pair]
    how = finding.details["split"]
    lines = [
        f"Split call in {_shown(call.room_id)} since {moment(finding.at)}: "
        f"{' and '.join(devices)} cannot get each other's media keys.",
        f"{how} ({finding.evidence}): {_SPLITS[how]}.",
        f"The call began {moment(call.started_at)}; `rtc-appservice call {call.call_id}` shows it in full.",
    ]
    if is_last:
        lines.append("Further splits of this call are not posted.")
    return "\n".join(lines)
