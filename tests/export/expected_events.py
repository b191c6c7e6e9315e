"""Which events a settled call must have become, told from its report alone."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import FindingKind


def expected_events(call: CallReport) -> Counter[str]:
    """Give how many events of each name a call gives, from its start until it is settled."""
    kinds = Counter(finding.kind for finding in call.findings)
    unmet = call.obligations.recovered_by_room_event + call.obligations.missing
    assert unmet == kinds[FindingKind.KEY_NOT_RECEIVED]
    events = {
        "RtcCallStarted": 1,
        "RtcCallEnded": 1,
        "RtcKeyDistributed": call.distributions.room_event + call.distributions.to_device,
        "RtcKeyFallback": len(call.fallbacks),
        "RtcKeyNotReceived": unmet,
        "RtcSplitCall": kinds[FindingKind.SPLIT_CALL],
    }
    return Counter({name: count for name, count in events.items() if count})


def by_call(events: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """Count events by name for each call, under its pseudonym; the auditor's own do not count."""
    counted: dict[str, Counter[str]] = {}
    for event in events:
        if event["event"] != "RtcAuditorReport":
            counted.setdefault(event["distinct_id"], Counter())[event["event"]] += 1
    return counted


def in_order(counts: Iterable[Counter[str]]) -> list[list[tuple[str, int]]]:
    """Give counts so that two lots of calls can be compared without knowing whose is whose."""
    return sorted(sorted(count.items()) for count in counts)
