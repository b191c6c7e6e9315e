"""Stage 5: what is odd in the order of a call's keys: rotation storms, indexes that fall, keys that come again."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core.model import KeyDistribution
from rtc_appservice.core.traffic import CallTraffic, RoomKeySeen
from rtc_appservice.core.words import Device, FindingKind

#: A storm is so many distributions within a minute beyond the joins and leaves that ask for one.
STORM_WINDOW = timedelta(seconds=60)
STORM_EXCESS = 10


@dataclass(slots=True, frozen=True)
class Storm:
    """A device handed out far more new keys in a minute than joins and leaves ask for."""

    device: Device
    distributions: Sequence[KeyDistribution]
    moments: int


@dataclass(slots=True, frozen=True)
class IndexFault:
    """A new key under a lower index, or an old key under a new index."""

    kind: FindingKind
    key: RoomKeySeen
    index: int
    before: int


class Storms:
    """Watches the distributions of each device; tells the first storm of each."""

    def __init__(self, call: CallTraffic) -> None:
        """Begin without distributions."""
        self._call = call
        self._of: dict[Device, list[KeyDistribution]] = defaultdict(list)
        self._found: dict[Device, Storm] = {}

    def settle(self, distributions: Sequence[KeyDistribution]) -> None:
        """Take final distributions, in order of time."""
        for device, storm in self._watch(distributions, self._of):
            self._found[device] = storm

    def all(self, open_distributions: Sequence[KeyDistribution]) -> list[Storm]:
        """Give the storms, those that the last distributions make included."""
        recent: dict[Device, list[KeyDistribution]] = {}
        for distribution in open_distributions:
            device = _sender(distribution)
            if device not in recent:
                known = self._of.get(device, [])
                since = bisect_left(known, distribution.at - STORM_WINDOW, key=lambda found: found.at)
                recent[device] = known[since:]
        return [*self._found.values(), *(storm for _, storm in self._watch(open_distributions, recent))]

    def _watch(
        self, distributions: Sequence[KeyDistribution], of: dict[Device, list[KeyDistribution]]
    ) -> Iterator[tuple[Device, Storm]]:
        told: set[Device] = set()
        for last in distributions:
            device = _sender(last)
            if last.resend or device in self._found or device in told:
                continue
            found = of[device]
            found.append(last)
            start = bisect_left(found, last.at - STORM_WINDOW, key=lambda distribution: distribution.at)
            asked = self._call.times.moments(found[start].at - STORM_WINDOW, last.at)
            if len(found) - start > asked + STORM_EXCESS:
                told.add(device)
                yield device, Storm(device, found[start:], asked)


class Indexes:
    """Watches index and comparison tag of each stint's keys; without tags it sees nothing."""

    def __init__(self, call: CallTraffic) -> None:
        """Begin without keys."""
        self._call = call
        self._taken = 0
        self._of: dict[int, _Watch] = {}
        self._found: list[IndexFault] = []

    def settle(self, final_until: datetime) -> None:
        """Take the room keys that are final."""
        keys = self._call.room_keys
        while self._taken < len(keys) and keys[self._taken].at <= final_until:
            key = keys[self._taken]
            if key.stint is not None:
                self._found += self._of.setdefault(id(key.stint), _Watch()).take(key)
            self._taken += 1

    def all(self) -> list[IndexFault]:
        """Give what was odd, in the open keys too."""
        # A legacy manager re-sends the key in use: it may have gone by to-device before.
        sealed = self._call.deliveries_of
        found = list(self._found)
        recent: dict[int, _Watch] = {}
        for key in self._call.room_keys[self._taken :]:
            stint = id(key.stint)
            if key.stint is not None:
                if stint not in recent:
                    recent[stint] = _Watch(self._of.get(stint))
                found += recent[stint].take(key)
        is_reuse = FindingKind.KEY_REUSED
        return [fault for fault in found if fault.kind is is_reuse or not sealed.get(fault.key.sender)]


class _Watch:
    """The highest index of a stint, and which key had which; on top of another's, which stays as it is."""

    def __init__(self, before: "_Watch | None" = None) -> None:
        self.index_of: dict[str, int] = {}
        self.highest: int = -1 if before is None else before.highest
        self._before = {} if before is None else before.index_of

    def take(self, key: RoomKeySeen) -> Iterator[IndexFault]:
        for mark in key.keys:
            if mark.tag is None:
                continue
            known = self.index_of.get(mark.tag, self._before.get(mark.tag))
            if known is not None and known != mark.index:
                yield IndexFault(FindingKind.KEY_REUSED, key, mark.index, known)
            elif known is None and mark.index < self.highest and not _wraps(self.highest, mark.index):
                yield IndexFault(FindingKind.INDEX_REGRESSED, key, mark.index, self.highest)
            if known is None:
                self.index_of[mark.tag] = mark.index
            self.highest = mark.index if _wraps(self.highest, mark.index) else max(self.highest, mark.index)


def _wraps(highest: int, index: int) -> bool:
    """Indexes wrap at 256 since js-sdk 34.9, at 16 before."""
    return index == 0 and highest in (15, 255)


def _sender(distribution: KeyDistribution) -> Device:
    return distribution.sender.user_id, distribution.sender.device_id
