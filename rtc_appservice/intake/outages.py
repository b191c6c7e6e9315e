"""Stage 1: what was not seen, as gaps that begin, end, and wait to be written. Pure: time is passed in."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from msgspec.structs import replace

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, ServerName

#: A heartbeat that comes later than this after the one before does not say that the service lived in between.
ALIVE_WITHIN = timedelta(seconds=30)


class Life:
    """Since when this instance of the service has lived without a pause, by its heartbeats."""

    def __init__(self) -> None:
        """Begin before the first heartbeat."""
        self._since: datetime | None = None
        self._last_at: datetime | None = None

    def since(self, now: datetime) -> datetime:
        """Give since when it has lived, if it lives now."""
        if self._since is None or self._last_at is None or now - self._last_at > ALIVE_WITHIN:
            return now
        return self._since

    def beat(self, now: datetime) -> None:
        """Note a heartbeat that the database took."""
        self._since, self._last_at = self.since(now), now


class Outages:
    """
    The gaps of one homeserver's stream.

    To-device messages come at most once (Synapse keeps them neither for a retry nor while the service is down),
    so every outage loses what was sent during it: a `to_device_lost` gap runs until the stream is current again.

    Other instances of the service may begin and end gaps in the same database: see `follow`.
    """

    def __init__(self, homeserver: ServerName) -> None:
        """Begin with none."""
        self._homeserver = homeserver
        self._open: dict[GapReason, Gap] = {}
        self._unwritten: dict[str, Gap] = {}
        #: When a gap that was open already was begun again, since the database was asked last.
        self._again: dict[GapReason, datetime] = {}

    def adopt(self, gaps: Iterable[Gap]) -> None:
        """Go on with gaps of the whole homeserver that the database holds as open."""
        for gap in gaps:
            if gap.ended_at is None and gap.room_id is None and gap.gap_id not in self._unwritten:
                self._open.setdefault(gap.reason, gap)

    def follow(self, gaps: Iterable[Gap]) -> None:
        """Take the word of the database for which gaps are open, but for those that are not written yet."""
        held = list(gaps)
        is_open = {gap.gap_id for gap in held if gap.ended_at is None}
        again, self._again = self._again, {}
        for reason, gap in list(self._open.items()):
            if gap.gap_id not in is_open and gap.gap_id not in self._unwritten:
                del self._open[reason]  # another instance ended it
                if reason in again:
                    self.begin(reason, again[reason])
        self.adopt(held)

    def down(self, last_seen_at: datetime, now: datetime, gaps: Iterable[Gap]) -> None:
        """
        Note a start of the service: it was down since it was seen last.

        Nothing seen since an earlier one of `gaps` ended: it goes on, for the start in between came to nothing.
        """
        reason = GapReason.SERVICE_DOWN
        for gap in gaps:
            if gap.reason is reason and gap.ended_at is not None and gap.ended_at >= last_seen_at:
                self._open.setdefault(reason, gap)
        self.begin(reason, last_seen_at)
        self.end(reason, now)

    def begin(self, reason: GapReason, started_at: datetime) -> None:
        """Open a gap, unless one for this reason is open already."""
        if reason in self._open:
            self._again.setdefault(reason, started_at)
            return
        gap = Gap(
            gap_id=f"{reason}/{self._homeserver}/{started_at.isoformat()}",
            homeserver=self._homeserver,
            reason=reason,
            started_at=started_at,
            ended_at=None,
        )
        self._open[reason] = self._unwritten[gap.gap_id] = gap

    def end(self, reason: GapReason, ended_at: datetime) -> None:
        """Close the gap open for this reason, if there is one."""
        gap = self._open.pop(reason, None)
        self._again.pop(reason, None)
        if gap is not None:
            self._unwritten[gap.gap_id] = replace(gap, ended_at=ended_at)

    def end_before(self, reason: GapReason, shown_at: datetime) -> None:
        """Close the gap open for this reason if it began before a time at which all was well."""
        gap = self._open.get(reason)
        if gap is not None and (gap.started_at is None or gap.started_at < shown_at):
            self.end(reason, shown_at)

    def unwritten(self) -> list[Gap]:
        """Give the gaps whose newest state is not in the database yet."""
        return list(self._unwritten.values())

    def written(self, gaps: list[Gap]) -> None:
        """Note that these are in the database now, as they were given."""
        for gap in gaps:
            if self._unwritten.get(gap.gap_id) == gap:
                del self._unwritten[gap.gap_id]
