"""Stage 7: the overview: a report counted by day or week, by cause, by evidence and by what was seen."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.model import (
    BLOCKING_CAUSES,
    CallReport,
    Coverage,
    Evidence,
    FallbackCause,
    Report,
    Verdict,
)

#: Windows longer than this are counted by week.
DAYS_BY_DAY = 31
#: The verdicts that enter the share of calls that are all to-device.
JUDGED = (Verdict.TO_DEVICE, Verdict.MIXED, Verdict.ROOM_EVENT)


class Period(Struct, frozen=True, kw_only=True):
    """The calls that started in one day or week."""

    begin: date
    by_verdict: Mapping[Verdict, int]
    by_evidence: Mapping[Evidence, int]

    @property
    def calls(self) -> int:
        """Give how many there were."""
        return sum(self.by_verdict.values())

    @property
    def judged(self) -> int:
        """Give how many of them enter the share."""
        return sum(self.by_verdict.get(verdict, 0) for verdict in JUDGED)

    @property
    def share(self) -> float | None:
        """Give the share that sent all media keys by to-device; None if none could be judged."""
        return self.by_verdict.get(Verdict.TO_DEVICE, 0) / self.judged if self.judged else None


class CauseCount(Struct, frozen=True, kw_only=True):
    """The fallbacks of one cause."""

    cause: FallbackCause
    blocks: bool
    fallbacks: int
    devices: int
    by_evidence: Mapping[Evidence, int]
    last_seen_at: datetime


class Overview(Struct, frozen=True, kw_only=True):
    """What the overview shows beside the report itself."""

    periods: tuple[Period, ...]
    by_week: bool
    causes: tuple[CauseCount, ...]
    by_verdict_and_evidence: Mapping[Verdict, Mapping[Evidence, int]]
    by_coverage: Mapping[Coverage, int]
    live: int


def overview(report: Report, days: int) -> Overview:
    """Count a report over the last `days` days; periods without a call are there too."""
    by_week = days > DAYS_BY_DAY
    grades: dict[Verdict, Counter[Evidence]] = defaultdict(Counter)
    for call in report.calls:
        grades[call.verdict][call.evidence] += 1
    return Overview(
        periods=tuple(_periods(report, days, by_week)),
        by_week=by_week,
        causes=tuple(_causes(report.calls)),
        by_verdict_and_evidence={verdict: grades[verdict] for verdict in Verdict if verdict in grades},
        by_coverage=Counter(source for call in report.calls for source in call.coverage),
        live=sum(call.ended_at is None for call in report.calls),
    )


def _periods(report: Report, days: int, by_week: bool) -> list[Period]:
    today = report.generated_at.date()
    calls: dict[date, list[CallReport]] = defaultdict(list)
    for call in report.calls:
        calls[_begin(call.started_at.date(), by_week)].append(call)
    begins = sorted({_begin(today - timedelta(days=back), by_week) for back in range(days)})
    return [
        Period(
            begin=begin,
            by_verdict=Counter(call.verdict for call in calls[begin]),
            by_evidence=Counter(call.evidence for call in calls[begin]),
        )
        for begin in begins
    ]


def _begin(day: date, by_week: bool) -> date:
    return day - timedelta(days=day.weekday()) if by_week else day


def _causes(calls: Sequence[CallReport]) -> list[CauseCount]:
    found = defaultdict(list)
    for call in calls:
        for fallback in call.fallbacks:
            found[fallback.cause].append(fallback)
    counts = [
        CauseCount(
            cause=cause,
            blocks=cause in BLOCKING_CAUSES,
            fallbacks=len(fallbacks),
            devices=len({(each.user_id, each.device_id) for each in fallbacks}),
            by_evidence=Counter(each.evidence for each in fallbacks),
            last_seen_at=max(each.at for each in fallbacks),
        )
        for cause, fallbacks in found.items()
    ]
    return sorted(counts, key=lambda count: (not count.blocks, -count.fallbacks, count.cause))
