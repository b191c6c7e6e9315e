"""
Stage 5: many calls, counted: what readiness is judged by and an overview shows.

Counted here from reports that are at hand, or by the database, which then need not hand them over; both give the same.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.model import CallReport, Fallback
from rtc_appservice.core.words import (
    BLOCKING_CAUSES,
    Coverage,
    Device,
    Evidence,
    FallbackCause,
    FindingKind,
    Platform,
    Verdict,
)

#: No blocker may have been seen for so long.
NO_BLOCKER_FOR = timedelta(days=14)


class CallCount(Struct, frozen=True, kw_only=True):
    """How many calls of one kind began on one day, UTC."""

    day: date
    verdict: Verdict
    evidence: Evidence
    coverage: tuple[Coverage, ...]
    calls: int


class CauseCount(Struct, frozen=True, kw_only=True):
    """The fallbacks of one cause."""

    cause: FallbackCause
    fallbacks: int
    devices: int
    by_evidence: Mapping[Evidence, int]
    last_seen_at: datetime

    @property
    def blocks(self) -> bool:
        """Tell whether it stands in the way of the switch-off."""
        return self.cause in BLOCKING_CAUSES


class Blockers(Struct, frozen=True, kw_only=True):
    """Devices of one kind that stand in the way of the switch-off, seen within `NO_BLOCKER_FOR`."""

    cause: FallbackCause
    generation: str
    platform: Platform
    devices: int
    last_seen_at: datetime


class Tally(Struct, frozen=True, kw_only=True):
    """Calls, counted."""

    counts: tuple[CallCount, ...] = ()
    causes: tuple[CauseCount, ...] = ()  #: in order of their names
    blockers: tuple[Blockers, ...] = ()  #: in order of cause, generation and platform
    live: int = 0  #: calls going on
    split: int = 0  #: calls going on whose participants cannot get each other's keys

    @property
    def calls(self) -> int:
        """Give how many calls there are."""
        return sum(count.calls for count in self.counts)

    def by_verdict(self) -> Counter[Verdict]:
        """Give how many calls have each verdict."""
        found: Counter[Verdict] = Counter()
        for count in self.counts:
            found[count.verdict] += count.calls
        return found


def tally(calls: Sequence[CallReport], now: datetime) -> Tally:
    """Count calls, and the devices that blocked the switch-off of late, as of now."""
    kinds = Counter(
        (call.started_at.astimezone(UTC).date(), call.verdict, call.evidence, call.coverage) for call in calls
    )
    live = [call for call in calls if call.ended_at is None]
    return Tally(
        counts=tuple(
            CallCount(day=day, verdict=verdict, evidence=evidence, coverage=coverage, calls=count)
            for (day, verdict, evidence, coverage), count in sorted(kinds.items())
        ),
        causes=_causes(calls),
        blockers=_blockers(calls, now),
        live=len(live),
        split=sum(any(finding.kind is FindingKind.SPLIT_CALL for finding in call.findings) for call in live),
    )


def _causes(calls: Sequence[CallReport]) -> tuple[CauseCount, ...]:
    found: dict[FallbackCause, list[Fallback]] = defaultdict(list)
    for call in calls:
        for fallback in call.fallbacks:
            found[fallback.cause].append(fallback)
    return tuple(
        CauseCount(
            cause=cause,
            fallbacks=len(fallbacks),
            devices=len({(each.user_id, each.device_id) for each in fallbacks}),
            by_evidence=Counter(each.evidence for each in fallbacks),
            last_seen_at=max(each.at for each in fallbacks),
        )
        for cause, fallbacks in sorted(found.items())
    )


def _blockers(calls: Sequence[CallReport], now: datetime) -> tuple[Blockers, ...]:
    devices: dict[tuple[FallbackCause, str, Platform], set[Device]] = defaultdict(set)
    last: dict[tuple[FallbackCause, str, Platform], datetime] = {}
    for call in calls:
        clients = {
            (one.user_id, one.device_id): (one.generation, one.platform or Platform.UNKNOWN)
            for one in call.participants
        }
        for fallback in call.fallbacks:
            if fallback.cause not in BLOCKING_CAUSES or fallback.at < now - NO_BLOCKER_FOR:
                continue
            device = (fallback.user_id, fallback.device_id)
            kind = (fallback.cause, *clients.get(device, ("unknown", Platform.UNKNOWN)))
            devices[kind].add(device)
            last[kind] = max(fallback.at, last.get(kind, fallback.at))
    return tuple(
        Blockers(cause=kind[0], generation=kind[1], platform=kind[2], devices=len(found), last_seen_at=last[kind])
        for kind, found in sorted(devices.items())
    )
