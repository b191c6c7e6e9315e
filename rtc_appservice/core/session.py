"""
Stages 4 and 5: a room's observations in, its call sessions out.

The same observations give the same sessions for any order of arrival and any duplicates; time comes in as the
watermark. What is stored of this is a cache.

Looking again costs what is new, not what is old: observations older than `SETTLES_AFTER` behind the watermark are
taken once. The younger ones, whose call or stint may still show, are taken on trial each time. Whatever turns out to
change the past, an observation that comes that late or a stint that ends back then, makes the room begin anew.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from rtc_appservice.core.attribution import KEY_BEFORE_STINT, Attribution
from rtc_appservice.core.call import Call, View
from rtc_appservice.core.model import Projected, RoomHistory, Settings
from rtc_appservice.core.observed import MegolmEnvelope, Membership, Observation, OlmEnvelope, Rejected, RoomState
from rtc_appservice.core.outside import Outside
from rtc_appservice.core.room_facts import RoomFacts
from rtc_appservice.core.room_findings import find_outside, within_limit
from rtc_appservice.core.senders import SenderKeys
from rtc_appservice.core.stints import CallSpan, DeviceStint, SpanTimes, build_spans, build_stints, in_order
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import Device, UserId

#: A key may precede its membership by 10 s; what comes out of order by less than the rest of this costs nothing.
SETTLES_AFTER = KEY_BEFORE_STINT + timedelta(seconds=5)
_LONG_AGO = datetime.fromisoformat("0001-01-02T00:00:00+00:00")


@dataclass(slots=True, frozen=True)
class Look:
    """A room as of a watermark."""

    calls: Sequence[tuple[Call, View]]  #: in order of start
    room: RoomFacts


class RoomProjection:
    """A room that is projected again and again as observations come."""

    _taken: int  #: so many of the ordered observations are taken for good
    _final_until: datetime  #: up to which they are

    def __init__(self, settings: Settings | None = None) -> None:
        """Begin with an empty room."""
        self._settings = settings or Settings()
        self._known: dict[str, Observation] = {}
        self._forget()

    def __len__(self) -> int:
        """Count the observations taken."""
        return len(self._ordered)

    @property
    def began_at(self) -> datetime | None:
        """Give the event time of the first observation, None if there is none."""
        return self._ordered[0].event_at if self._ordered else None

    @property
    def last_event_at(self) -> datetime | None:
        """Give the event time of the last observation, None if there is none."""
        return self._ordered[-1].event_at if self._ordered else None

    def known_since(self, at: datetime) -> list[Observation]:
        """Give the observations taken from an event time on, in order."""
        return self._ordered[bisect_left(self._ordered, at, key=lambda observation: observation.event_at) :]

    def feed(self, observations: Iterable[Observation]) -> None:
        """Take observations, in any order; of duplicates the one received first counts."""
        fresh: dict[str, Observation] = {}
        replaced = False
        for observation in observations:
            identity = observation.identity
            known = fresh.get(identity) or self._known.get(identity)
            if known is None or observation.received_at < known.received_at:
                fresh[identity] = observation
                replaced = replaced or identity in self._known
        self._known.update(fresh)
        if replaced:
            self._forget()
        for observation in in_order((self._known if replaced else fresh).values()):
            if observation.event_at <= self._final_until:
                self.begin_anew()
            body = observation.body
            _add(self._ordered, observation)
            if isinstance(body, OlmEnvelope):
                self._senders.take(body, observation.event_at)
            elif isinstance(body, RoomState) and body.event_type != "m.room.member":
                _add(self._room_state, observation)
            elif isinstance(body, Membership | MegolmEnvelope | Rejected | RoomState):
                _add(self._of_stints, observation)

    def project(self, history: RoomHistory) -> Projected:
        """Take a history's observations and give the room's call sessions and findings as of its watermark."""
        self.feed(history.observations)
        with self.looked_at(history) as look:
            calls = [call.session(view) for call, view in look.calls]
            outside = find_outside(self._outside, look.room, history, self._settings)
        return within_limit(calls, outside, history, self._settings)

    @contextmanager
    def looked_at(self, history: RoomHistory) -> Iterator[Look]:
        """Give the calls with what to look at them with; open traffic is there meanwhile."""
        final_until = history.watermark_at - SETTLES_AFTER
        spans = build_spans(build_stints(self._of_stints, history.watermark_at))
        if final_until < self._final_until or not self._keep(spans):
            self.begin_anew()
            self._keep(spans)
        senders = self._sender_devices(final_until)
        calls = [self._call_of(span, history) for span in self._spans]
        traffic = [call.traffic for call in calls]
        for each in traffic:
            each.times = SpanTimes(each.span.stints)
        attribution = Attribution(history.room_id, self._spans, traffic, self._outside, senders, self._settings)
        settled = bisect_right(self._ordered, final_until, key=lambda observation: observation.event_at)
        for observation in self._ordered[self._taken : settled]:
            attribution.take(observation)
        self._taken = settled
        self._final_until = max(self._final_until, final_until)
        on_trial: list[CallTraffic | Outside] = [*traffic, self._outside]
        for target in on_trial:
            target.begin_trial()
        try:
            for observation in self._ordered[settled:]:
                attribution.take(observation)
            room = RoomFacts(history, self._room_state)
            seen = dict(history.to_device_history)
            with_views = []
            for call in calls:
                before = _latest(seen, history.to_device_history_of.get(call.call_id, {}))
                with_views.append((call, View(history, room, self._settings, before, final_until)))
                seen = _latest(seen, call.to_device_seen())
            yield Look(with_views, room)
        finally:
            for target in on_trial:
                target.end_trial()

    def _forget(self) -> None:
        self._ordered: list[Observation] = []
        self._of_stints: list[Observation] = []
        self._room_state: list[Observation] = []
        self._senders = SenderKeys()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all but the observations: the next look takes them from the first one on."""
        self._taken = 0
        self._final_until = _LONG_AGO
        self._stints: dict[str, DeviceStint] = {}
        self._spans: list[CallSpan] = []
        self._calls: dict[str, Call] = {}
        self._outside = Outside()
        self._devices: dict[tuple[UserId, str], Device] = {}
        self._senders.forget_counts()

    def _sender_devices(self, final_until: datetime) -> dict[tuple[UserId, str], Device]:
        devices = self._senders.devices(self._spans, final_until)
        if any(devices.get(key) != device for key, device in self._devices.items()):
            spans = self._spans
            self.begin_anew()
            self._keep(spans)
            devices = self._senders.devices(self._spans, final_until)
        self._devices = devices
        return devices

    def _call_of(self, span: CallSpan, history: RoomHistory) -> Call:
        identity = span.opened_by.identity
        if identity not in self._calls:
            self._calls[identity] = Call(history, span, self._settings)
        return self._calls[identity]

    def _keep(self, spans: list[CallSpan]) -> bool:
        """Take stints and spans as they are now into those known; or tell that they change what is final."""
        if self._changes_the_past(spans):
            return False
        known_spans = {span.opened_by.identity: span for span in self._spans}
        self._spans = []
        for span in spans:
            span.stints = [self._kept(stint) for stint in span.stints]
            known = known_spans.get(span.opened_by.identity, span)
            known.stints, known.ended_at = span.stints, span.ended_at
            self._spans.append(known)
        return True

    def _kept(self, stint: DeviceStint) -> DeviceStint:
        """Give the known object for a stint, which traffic refers to, with what is new taken over."""
        known = self._stints.setdefault(stint.opened_by.identity, stint)
        for part in fields(stint):
            setattr(known, part.name, getattr(stint, part.name))
        return known

    def _changes_the_past(self, spans: list[CallSpan]) -> bool:
        new = {stint.opened_by.identity: stint for span in spans for stint in span.stints}
        if any(self._has_new_past(self._stints.get(identity), stint) for identity, stint in new.items()):
            return True
        ends = {span.opened_by.identity: span.ended_at for span in spans}
        return not self._stints.keys() <= new.keys() or any(
            span.opened_by.identity not in ends or self._is_new_past(span.ended_at, ends[span.opened_by.identity])
            for span in self._spans
        )

    def _has_new_past(self, known: DeviceStint | None, stint: DeviceStint) -> bool:
        if known is None:
            return stint.joined_at <= self._final_until + KEY_BEFORE_STINT
        refreshed = stint.refreshed_at[len(known.refreshed_at) :]
        return (
            stint.refreshed_at[: len(known.refreshed_at)] != known.refreshed_at
            or any(at <= self._final_until + KEY_BEFORE_STINT for at in refreshed)
            or self._is_new_past(known.left_at, stint.left_at)
            or known.may_be_old != stint.may_be_old
        )

    def _is_new_past(self, before: datetime | None, now: datetime | None) -> bool:
        return before != now and any(at is not None and at <= self._final_until for at in (before, now))


def _latest(one: Mapping[Device, datetime], other: Mapping[Device, datetime]) -> dict[Device, datetime]:
    return {**one, **{device: max(at, one.get(device, at)) for device, at in other.items()}}


def _order(observation: Observation) -> tuple[datetime, str]:
    return observation.event_at, observation.identity


def _add(ordered: list[Observation], observation: Observation) -> None:
    if not ordered or _order(ordered[-1]) < _order(observation):
        ordered.append(observation)
    else:
        insort(ordered, observation, key=_order)
