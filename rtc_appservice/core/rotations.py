"""Stage 5: after somebody left, which staying sender in room mode made no new key."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import Device

#: Who leaves this soon after a leave need not have made a new key.
GONE_SOON = timedelta(seconds=60)


@dataclass(slots=True, frozen=True)
class NotRotated:
    """A staying sender in room mode that gave no new key within the horizon after a leave."""

    device: Device
    left_at: datetime
    because_of: str


class Rotations:
    """Watches the leaves of a call; each is judged once its horizon has passed."""

    def __init__(self, call: CallTraffic, horizon: timedelta) -> None:
        """Begin before the first leave."""
        self._call = call
        self._horizon = horizon
        self._judged: set[int] = set()
        self._found: list[NotRotated] = []

    def missing(self, watermark_at: datetime, final_until: datetime) -> list[NotRotated]:
        """Give the rotations that failed to come, as of the watermark; none where silence may only be unreadable."""
        found: list[NotRotated] = []
        senders = [stint for stint in self._call.span.stints if id(stint) in self._call.new_keys]
        if not senders:
            return []
        for left in self._call.span.stints:
            if left.left_at is None or left.sealed or id(left) in self._judged:
                continue
            if left.left_at + max(self._horizon, GONE_SOON) <= final_until:
                self._judged.add(id(left))
                self._found += self._after(left, left.left_at, senders)
            elif left.left_at + self._horizon <= watermark_at:
                found += self._after(left, left.left_at, senders)
        return [] if self._call.unreadable else self._found + found

    def _after(self, left: DeviceStint, left_at: datetime, senders: list[DeviceStint]) -> Iterator[NotRotated]:
        for stint in senders:
            own = self._call.new_keys[id(stint)]
            if own[0] >= left_at or not stint.is_live(left_at):
                continue  # not in room mode: its silence in the timeline means nothing
            if not any(
                s is not stint and not s.sealed and s.is_live(left_at) for s in reversed(self._call.span.stints)
            ):
                continue  # nobody is left to hand a key to
            position = bisect_left(own, left_at)
            in_time = position < len(own) and own[position] <= left_at + self._horizon
            gone_soon = stint.left_at is not None and stint.left_at <= left_at + GONE_SOON
            if not in_time and not gone_soon:
                yield NotRotated(stint.device, left_at, left.opened_by.identity)
