"""Stage 7: the overview: calls as they were counted, by day or week, by cause, by evidence and by what was seen."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.model import Readiness
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.readiness import JUDGED, TARGET, judge
from rtc_appservice.core.rollup import EVENTS_DECRYPTED, EVENTS_UNDECRYPTABLE
from rtc_appservice.core.tally import CauseCount, Tally
from rtc_appservice.core.words import Coverage, Evidence, ServerName, Verdict
from rtc_appservice.store import totals
from rtc_appservice.store.gaps import newest_gaps
from rtc_appservice.store.overview import load_tally
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.totals import Rollup

#: The newest gaps that the overview lists.
GAPS_LISTED = 30
#: Windows longer than this are counted by week.
DAYS_BY_DAY = 31


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


class Sealed(Struct, frozen=True, kw_only=True):
    """What the service's own device made of the encrypted events in its rooms, ever since."""

    events: int
    unread: int  #: could not be opened, neither at once nor later
    reasons: Mapping[str, int]  #: why not at once, the most frequent first

    @property
    def share(self) -> float:
        """Give the share that could not be opened."""
        return self.unread / self.events


class Overview(Struct, frozen=True, kw_only=True):
    """What the overview shows."""

    at: datetime
    readiness: Readiness
    calls: int
    live: int
    room_keys_in_history: int
    periods: tuple[Period, ...]
    by_week: bool
    causes: tuple[CauseCount, ...]
    by_verdict_and_evidence: Mapping[Verdict, Mapping[Evidence, int]]
    by_coverage: Mapping[Coverage, int]
    sealed: Sealed | None  #: None: no encrypted event was ever there to open
    gaps: Sequence[Gap]  #: the newest
    gap_count: int


async def read_overview(
    conn: Connection, homeservers: Mapping[ServerName, int], *, days: int, now: datetime, target: float = TARGET
) -> Overview:
    """
    Give the overview of homeservers, by name and number, over the last `days` days; today is one of them.

    `target` is the share of calls that must be all to-device to be ready.
    """
    since = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    numbers = list(homeservers.values())
    counted = await load_tally(conn, numbers, since, now)
    gaps, gap_count = await newest_gaps(conn, numbers, since, GAPS_LISTED)
    rollups = [rollup for rollup in await totals.load(conn) if rollup.homeserver in homeservers]
    standing = sum([await totals.room_keys_in_history(conn, number) for number in numbers])
    return Overview(
        at=now,
        readiness=judge(counted, now, target),
        calls=counted.calls,
        live=counted.live,
        room_keys_in_history=standing,
        periods=periods(counted, days, now.date()),
        by_week=days > DAYS_BY_DAY,
        causes=tuple(sorted(counted.causes, key=lambda count: (not count.blocks, -count.fallbacks, count.cause))),
        by_verdict_and_evidence=_grades(counted),
        by_coverage=_coverage(counted),
        sealed=sealed(rollups),
        gaps=gaps,
        gap_count=gap_count,
    )


def periods(counted: Tally, days: int, today: date) -> tuple[Period, ...]:
    """Count calls by day, or by week in a long window; periods without a call are there too."""
    by_week = days > DAYS_BY_DAY
    verdicts: dict[date, Counter[Verdict]] = defaultdict(Counter)
    grades: dict[date, Counter[Evidence]] = defaultdict(Counter)
    for count in counted.counts:
        begin = _begin(count.day, by_week)
        verdicts[begin][count.verdict] += count.calls
        grades[begin][count.evidence] += count.calls
    begins = sorted({_begin(today - timedelta(days=back), by_week) for back in range(days)})
    return tuple(Period(begin=begin, by_verdict=verdicts[begin], by_evidence=grades[begin]) for begin in begins)


def _begin(day: date, by_week: bool) -> date:
    return day - timedelta(days=day.weekday()) if by_week else day


def _grades(counted: Tally) -> dict[Verdict, Counter[Evidence]]:
    grades: dict[Verdict, Counter[Evidence]] = defaultdict(Counter)
    for count in counted.counts:
        grades[count.verdict][count.evidence] += count.calls
    return {verdict: grades[verdict] for verdict in Verdict if verdict in grades}


def _coverage(counted: Tally) -> Counter[Coverage]:
    found: Counter[Coverage] = Counter()
    for count in counted.counts:
        for source in count.coverage:
            found[source] += count.calls
    return found


def sealed(rollups: Sequence[Rollup]) -> Sealed | None:
    """Take totals; give what the service's own device could and could not open, None if there was nothing to open."""
    opened: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for rollup in rollups:
        if rollup.name == EVENTS_DECRYPTED.name:
            opened[rollup.labels["when"]] += rollup.value
        elif rollup.name == EVENTS_UNDECRYPTABLE.name:
            reasons[rollup.labels["reason"]] += rollup.value
    not_at_once = reasons.total()
    if not opened["at_once"] + not_at_once:
        return None
    return Sealed(
        events=opened["at_once"] + not_at_once,
        unread=max(0, not_at_once - opened["later"]),
        reasons=dict(reasons.most_common()),
    )
