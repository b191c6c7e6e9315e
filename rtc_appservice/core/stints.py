"""
Stage 4: membership observations in, participant stints and call spans out.

A stint is one device's continuous membership; a call span is the maximal time with at least one live
membership in a slot. Both follow from the observations alone, in the order (event time, event id).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rtc_appservice.core.observed import MegolmEnvelope, Membership, Observation, Rejected, RoomState
from rtc_appservice.core.words import DeviceId, EndReason, UserId

#: js-sdk since 36.0: a membership without `expires` lasts four hours.
DEFAULT_EXPIRY = timedelta(hours=4)
#: A client's `created_ts` further ahead than this of the event that carries it is not believed.
MAX_CLOCK_AHEAD = timedelta(days=1)
#: Slot assumed for memberships that cannot be read: shipped clients use no other for room calls.
ROOM_CALL_SLOT = "m.call#ROOM"


@dataclass(slots=True)
class DeviceStint:
    """One device's continuous membership while it is worked out; sealed where the membership could not be read."""

    user_id: UserId
    device_id: DeviceId  #: empty if sealed
    slot_id: str
    joined_at: datetime
    expires_at: datetime
    opened_by: Observation
    memberships: list[Membership] = field(default_factory=list)
    left_at: datetime | None = None
    end_reason: EndReason | None = None
    refreshed_at: list[datetime] = field(default_factory=list)  #: the updates: js-sdk sends keys again then

    @property
    def sealed(self) -> bool:
        """Tell whether the membership could not be read: who is in the call stays unknown."""
        return not self.device_id

    @property
    def device(self) -> tuple[UserId, DeviceId]:
        """The claimed device."""
        return self.user_id, self.device_id

    @property
    def may_be_old(self) -> bool:
        """Tell whether a membership lacks `expires`, which js-sdk writes since 36.0."""
        return any(membership.expires_seconds is None for membership in self.memberships)

    def is_live(self, at: datetime) -> bool:
        """Tell whether the stint covers a moment (its end excluded)."""
        return self.joined_at <= at and (self.left_at is None or at < self.left_at)

    def overlaps(self, other: "DeviceStint") -> bool:
        """Tell whether two stints are alive together for some time."""
        return (self.left_at is None or other.joined_at < self.left_at) and (
            other.left_at is None or self.joined_at < other.left_at
        )


@dataclass(slots=True)
class CallSpan:
    """A maximal span with live memberships in a slot."""

    slot_id: str
    started_at: datetime
    ended_at: datetime | None
    opened_by: Observation
    stints: list[DeviceStint]

    def is_live(self, at: datetime) -> bool:
        """Tell whether the call goes on at a moment (its end excluded)."""
        return self.started_at <= at and (self.ended_at is None or at < self.ended_at)

    @property
    def sealed(self) -> bool:
        """Tell whether a membership of it could not be read."""
        return any(stint.sealed for stint in self.stints)

    def devices(self) -> dict[tuple[UserId, DeviceId], list[DeviceStint]]:
        """Give the readable stints by device, in order of first joining."""
        found: dict[tuple[UserId, DeviceId], list[DeviceStint]] = {}
        for stint in self.stints:
            if not stint.sealed:
                found.setdefault(stint.device, []).append(stint)
        return found


class SpanTimes:
    """When the stints of a call began, ended and were refreshed, sorted, to be asked at any moment."""

    def __init__(self, stints: Iterable[DeviceStint]) -> None:
        """Take the stints of a call, sealed ones too."""
        stints = list(stints)
        self._joined = sorted(stint.joined_at for stint in stints)
        self._left = sorted(stint.left_at for stint in stints if stint.left_at is not None)
        refreshed = (at for stint in stints for at in stint.refreshed_at)
        self._moments = sorted((*self._joined, *self._left, *refreshed))

    def live(self, at: datetime) -> int:
        """Count the stints live at a moment."""
        return bisect_right(self._joined, at) - bisect_right(self._left, at)

    def moments(self, since: datetime, until: datetime) -> int:
        """Count the joins, leaves and refreshes within a time, both ends included."""
        return bisect_right(self._moments, until) - bisect_left(self._moments, since)


def in_order(observations: Iterable[Observation]) -> list[Observation]:
    """Keep the first received of duplicates and sort by (event time, identity): the order all else relies on."""
    unique: dict[str, Observation] = {}
    for observation in observations:
        known = unique.get(observation.identity)
        if known is None or observation.received_at < known.received_at:
            unique[observation.identity] = observation
    return sorted(unique.values(), key=lambda observation: (observation.event_at, observation.identity))


def build_stints(observations: Sequence[Observation], watermark_at: datetime) -> list[DeviceStint]:
    """Work out the stints from a room's ordered observations; open ones past their expiry at the watermark end."""
    stints: list[DeviceStint] = []
    open_at: dict[tuple[str, str], DeviceStint] = {}
    for observation, at in _effective(observations):
        body = observation.body
        if isinstance(body, Membership):
            place = _place(body)
            _expire(open_at, place, at)
            current = open_at.get(place)
            if observation.late and current is not None and current.joined_at > observation.event_at:
                continue  # what stands there now came after it
            if not body.live or body.ignored is not None:
                if current is not None:
                    reason = EndReason.REPLACED if body.live else EndReason.LEFT
                    _end(open_at, place, at, reason if body.sender == current.user_id else EndReason.KICKED)
                elif not body.live and body.form == "sticky":
                    _end_sealed(open_at, body.sender, at)
            elif current is not None and _is_update(current, body):
                current.expires_at = _expiry(body, at)
                current.memberships.append(body)
                current.refreshed_at.append(at)
            elif body.slot_id is not None and body.device_id is not None:
                if current is not None:
                    _end(open_at, place, at, EndReason.REPLACED)
                stint = DeviceStint(
                    body.sender, body.device_id, body.slot_id, at, _expiry(body, at), observation, memberships=[body]
                )
                stints.append(stint)
                open_at[place] = stint
        elif isinstance(body, Rejected) and body.key is not None:
            # No client counts it, yet it replaced what stood at its key.
            _expire(open_at, ("state", body.key), at)
            _end(open_at, ("state", body.key), at, EndReason.REPLACED)
        elif isinstance(body, RoomState) and body.event_type == "m.room.member":
            for place, stint in list(open_at.items()):
                if stint.user_id == body.state_key:
                    _expire(open_at, place, at)
                    _end(open_at, place, at, EndReason.LEFT if body.sender == body.state_key else EndReason.KICKED)
        elif isinstance(body, MegolmEnvelope) and body.sticky_seconds is not None:
            place = ("sealed", body.sender)
            _expire(open_at, place, at)
            until = at + timedelta(seconds=body.sticky_seconds)
            if place in open_at:
                open_at[place].expires_at = until
            else:
                open_at[place] = DeviceStint(body.sender, DeviceId(""), ROOM_CALL_SLOT, at, until, observation)
                stints.append(open_at[place])
    for place in list(open_at):
        _expire(open_at, place, watermark_at)
    return stints


def build_spans(stints: Iterable[DeviceStint]) -> list[CallSpan]:
    """Join stints of a slot into call spans, in order of start. Stints that touch belong to one call."""
    spans: list[CallSpan] = []
    last_of_slot: dict[str, CallSpan] = {}
    for stint in sorted(stints, key=lambda s: (s.joined_at, s.opened_by.identity)):
        span = last_of_slot.get(stint.slot_id)
        if span is None or (span.ended_at is not None and stint.joined_at > span.ended_at):
            span = CallSpan(stint.slot_id, stint.joined_at, stint.left_at, stint.opened_by, [])
            last_of_slot[stint.slot_id] = span
            spans.append(span)
        span.stints.append(stint)
        if span.ended_at is not None:
            span.ended_at = None if stint.left_at is None else max(span.ended_at, stint.left_at)
    return spans


def _effective(observations: Sequence[Observation]) -> Iterator[tuple[Observation, datetime]]:
    """
    Give each observation with the time it counts from.

    One that came late never opens, merges or splits a call: a late join is passed over, a late end counts from when
    it was received.
    """
    moved = []
    for observation in observations:
        body = observation.body
        if not observation.late:
            moved.append((observation, observation.event_at))
        elif not (isinstance(body, Membership) and body.live) and not isinstance(body, MegolmEnvelope):
            moved.append((observation, observation.received_at))
    yield from sorted(moved, key=lambda pair: (pair[1], pair[0].identity))


def _place(body: Membership) -> tuple[str, str]:
    """Where a membership stands: a state key, whoever sent it; or a sender's sticky key."""
    return ("sticky", f"{body.sender} {body.key}") if body.form == "sticky" else ("state", body.key)


def _is_update(current: DeviceStint, body: Membership) -> bool:
    """A refresh keeps the stint: sticky ones always, state ones with `created_ts` or a greater `expires`."""
    if (current.user_id, current.device_id, current.slot_id) != (body.sender, body.device_id, body.slot_id):
        return False
    before = current.memberships[-1].expires_seconds or DEFAULT_EXPIRY.total_seconds()
    after = body.expires_seconds or DEFAULT_EXPIRY.total_seconds()
    return body.form == "sticky" or body.created_at is not None or after > before


def _expiry(body: Membership, at: datetime) -> datetime:
    """js-sdk: `(created_ts ?? origin_server_ts) + (expires ?? 4 h)`; a sticky event lives as long as it sticks."""
    lasts = DEFAULT_EXPIRY if body.expires_seconds is None else timedelta(seconds=min(body.expires_seconds, 1e9))
    begins = at if body.form == "sticky" else min(body.created_at or at, at + MAX_CLOCK_AHEAD)
    return begins + lasts


def _expire(open_at: dict[tuple[str, str], DeviceStint], place: tuple[str, str], now: datetime) -> None:
    stint = open_at.get(place)
    if stint is not None and stint.expires_at <= now:
        _end(open_at, place, max(stint.expires_at, stint.joined_at), EndReason.EXPIRED)


def _end(open_at: dict[tuple[str, str], DeviceStint], place: tuple[str, str], at: datetime, reason: EndReason) -> None:
    stint = open_at.pop(place, None)
    if stint is not None:
        stint.left_at = at
        stint.end_reason = reason


def _end_sealed(open_at: dict[tuple[str, str], DeviceStint], sender: UserId, at: datetime) -> None:
    """A clear leave whose join could not be read ends the sealed stint of its sender."""
    _end(open_at, ("sealed", sender), at, EndReason.LEFT)
