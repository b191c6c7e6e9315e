"""Stage 1: what was not seen, as gaps that begin, end, and wait to be written. Pure: time is passed in."""

from collections.abc import Iterable
from datetime import datetime

from msgspec.structs import replace

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, ServerName


class Outages:
    """
    The gaps of one homeserver's stream.

    To-device messages come at most once (Synapse keeps them neither for a retry nor while the service is down),
    so every outage loses what was sent during it: a `to_device_lost` gap runs until the stream is current again.
    """

    def __init__(self, homeserver: ServerName) -> None:
        """Begin with none."""
        self._homeserver = homeserver
        self._open: dict[GapReason, Gap] = {}
        self._unwritten: dict[str, Gap] = {}

    def adopt(self, gaps: Iterable[Gap]) -> None:
        """Go on with gaps of the whole homeserver that the database holds as open."""
        for gap in gaps:
            if gap.ended_at is None and gap.room_id is None:
                self._open.setdefault(gap.reason, gap)

    def begin(self, reason: GapReason, started_at: datetime) -> None:
        """Open a gap, unless one for this reason is open already."""
        if reason in self._open:
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
        if gap is not None:
            self._unwritten[gap.gap_id] = replace(gap, ended_at=ended_at)

    def unwritten(self) -> list[Gap]:
        """Give the gaps whose newest state is not in the database yet."""
        return list(self._unwritten.values())

    def written(self, gaps: list[Gap]) -> None:
        """Note that these are in the database now, as they were given."""
        for gap in gaps:
            if self._unwritten.get(gap.gap_id) == gap:
                del self._unwritten[gap.gap_id]
