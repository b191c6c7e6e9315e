"""Stage 4: rooms in which a call goes on, kept in memory between two looks, so that a look costs what is new."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from msgspec.structs import replace

from rtc_appservice.core.model import Projected, RoomHistory, Settings
from rtc_appservice.core.observed import Observation, Redaction
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.words import CallId, Device

#: Kept over all rooms. In memory, an Olm envelope takes about 1 kB, a room key 1.7 kB (`tracemalloc`, long calls).
MOST_OBSERVATIONS = 100_000


@dataclass(slots=True, frozen=True)
class Basis:
    """What a room is looked at with: where anything but the watermark changes, it is projected from the start."""

    from_at: datetime  #: its observations begin here, apart from the state of the room
    settings: Settings
    history: RoomHistory  #: without its observations


@dataclass(slots=True)
class LiveRoom:
    """A room as it was projected last."""

    basis: Basis
    projection: RoomProjection
    redactions: dict[str, Observation] = field(default_factory=dict)  #: by identity
    #: Which devices had distributed by to-device before each call.
    to_device_history_of: Mapping[CallId, Mapping[Device, datetime]] = field(default_factory=dict)
    version: int = 0  #: of the projection as committed

    def goes_on(self, basis: Basis, version: int, news_at: datetime | None) -> bool:
        """Tell whether nobody projected the room in between, and nothing is as it never is when a call goes on."""
        before, now, began_at = self.basis.history, basis.history, self.projection.began_at
        return (
            self.version == version
            and (self.basis.from_at, self.basis.settings) == (basis.from_at, basis.settings)
            and before.watermark_at <= now.watermark_at
            and replace(before, watermark_at=now.watermark_at) == now
            and (news_at is None or (began_at is not None and news_at > max(began_at, basis.from_at)))
        )

    def holds(self, news: Sequence[Observation], since: datetime) -> bool:
        """Tell whether all that it took of the time from `since` on is still there and the same, given what is now."""
        now = {observation.identity: observation for observation in news}
        return all(now.get(known.identity) == known for known in self.projection.known_since(since))

    def take(self, news: Sequence[Observation]) -> None:
        """Take observations, known ones too."""
        self.projection.feed(news)
        self.redactions |= {found.identity: found for found in news if isinstance(found.body, Redaction)}

    def look(self) -> Projected:
        """Give the calls and the findings of the room as of the watermark."""
        return self.projection.project(replace(self.basis.history, to_device_history_of=self.to_device_history_of))


class LiveRooms:
    """The rooms of one projector in which a call goes on."""

    def __init__(self, most_observations: int = MOST_OBSERVATIONS) -> None:
        """Begin with none."""
        self._most_observations = most_observations
        self._rooms: OrderedDict[int, LiveRoom] = OrderedDict()
        self._observations = 0

    def take(self, room_key: int) -> LiveRoom | None:
        """Take a room out: what becomes of it until it is kept again is lost with it."""
        room = self._rooms.pop(room_key, None)
        if room is not None:
            self._observations -= len(room.projection)
        return room

    def keep(self, room_key: int, room: LiveRoom) -> None:
        """
        Keep a room as projected and committed; those looked at longest ago make way for it.

        It is kept however large it is: projecting it from the start takes no less memory.
        """
        self.take(room_key)
        self._rooms[room_key] = room
        self._observations += len(room.projection)
        while self._observations > self._most_observations and len(self._rooms) > 1:
            self.take(next(iter(self._rooms)))

    def clear(self) -> None:
        """Keep none."""
        self._rooms.clear()
        self._observations = 0
