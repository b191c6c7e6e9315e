"""
Stage 4: which call and which stint each key belongs to.

Stints are looked up here, at projection, never at arrival: to-device messages overtake room events, and old
clients send the key before the membership.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TypeVar

from rtc_appservice.core import lengths
from rtc_appservice.core.envelope import ENVELOPE_SLACK, KEY_AFTER_STINT, is_near
from rtc_appservice.core.model import (
    DeviceId,
    DeviceTrust,
    Evidence,
    KeyMark,
    MegolmEnvelope,
    Observation,
    OlmEnvelope,
    RoomId,
    RoomKey,
    ToDeviceKey,
    UserId,
)
from rtc_appservice.core.stints import CallSpan, DeviceStint, SpanTimes

Device = tuple[UserId, DeviceId]
_T = TypeVar("_T")
_K = TypeVar("_K")

#: Old clients often send the key before the membership.
KEY_BEFORE_STINT = timedelta(seconds=10)
#: RTCEncryptionManager makes its first key once it sees its own membership, so its keys hardly precede it; and it is
#: the one that goes on sending after leaving. A key of a device that has left is the next stint's only this near to it:
#: key and membership of a joiner leave together (recorded 1 to 15 ms apart).
KEY_BEFORE_REJOIN = timedelta(milliseconds=250)
#: A joiner's first keys follow its join within this.
FIRST_KEY_AFTER_JOIN = timedelta(seconds=1)
#: Keys leave soon after the join or leave that owes them; the slowest answer is the legacy manager's, 3 s and a retry.
OWED_WITHIN = timedelta(seconds=10)
#: Messages of one distribution leave together.
ONE_DISTRIBUTION = timedelta(seconds=1)


@dataclass(slots=True)
class RoomKeySeen:
    """A room key with its place: the stint it belongs to, None if stray."""

    observation: Observation
    at: datetime
    sender: Device
    keys: tuple[KeyMark, ...]  #: empty where the event stayed sealed
    evidence: Evidence
    stint: DeviceStint | None
    after_leave: bool
    has_sent_ts: bool | None = None
    resend: bool = False


@dataclass(slots=True)
class Delivery:
    """A to-device message that handed a key to one device of the call."""

    observation: Observation
    at: datetime
    stint: DeviceStint  #: the sender's
    recipient: DeviceStint
    evidence: Evidence
    after_leave: bool
    variant: str | None = None  #: content variant its length tells
    distance: int = 0  #: base64 characters from the predicted length
    fits_moment: bool = True  #: somebody had joined or left just before: a key was owed
    keys: tuple[KeyMark, ...] = ()


@dataclass
class CallTraffic:
    """A call span with the keys that belong to it, in order of time."""

    span: CallSpan
    room_keys: list[RoomKeySeen] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    unclassified: list[Observation] = field(default_factory=list)
    #: Unreadable events of live call members that cannot be told from a key event.
    unreadable: list[Observation] = field(default_factory=list)

    @cached_property
    def times(self) -> SpanTimes:
        """Give the times of the span's stints."""
        return SpanTimes(self.span.stints)

    @cached_property
    def keys_of(self) -> dict[Device, list[RoomKeySeen]]:
        """Give the room keys by sending device; only to be asked once all keys are there."""
        return _grouped(self.room_keys, lambda key: key.sender)

    @cached_property
    def deliveries_of(self) -> dict[Device, list[Delivery]]:
        """Give the deliveries by sending device; only to be asked once all are there."""
        return _grouped(self.deliveries, lambda delivery: delivery.stint.device)


def attribute(room_id: RoomId, observations: Sequence[Observation], spans: Sequence[CallSpan]) -> list[CallTraffic]:
    """Give each call span its keys, from a room's ordered observations."""
    calls = {id(span): CallTraffic(span) for span in spans}
    senders = _SenderKeys(observations, spans)
    by_device: dict[Device, list[tuple[CallSpan, DeviceStint]]] = defaultdict(list)
    for span in spans:
        for device, stints in span.devices().items():
            by_device[device].extend((span, stint) for stint in stints)
    devices_of = _grouped(by_device, lambda device: device[0])
    for observation in observations:
        body = observation.body
        if isinstance(body, RoomKey):
            device = (body.sender, body.device_id)
            key = RoomKeySeen(
                observation=observation,
                at=observation.event_at,
                sender=device,
                keys=body.keys,
                evidence=Evidence.DECRYPTED if body.encrypted else Evidence.DIRECT,
                stint=None,
                after_leave=False,
                has_sent_ts=body.claimed_sent_at is not None,
            )
            _give(key, by_device.get(device, ()), body.slot_id, spans, calls)
        elif isinstance(body, MegolmEnvelope) and body.sticky_seconds is None:
            _read_megolm(room_id, observation, body, devices_of, by_device, spans, calls)
        elif isinstance(body, OlmEnvelope):
            _read_olm(room_id, observation, body, senders, by_device, calls)
        elif isinstance(body, ToDeviceKey):
            _read_to_device_key(observation, body, by_device, calls)
    for call in calls.values():
        call.room_keys.sort(key=lambda key: (key.at, key.observation.identity))
        _mark_resends(call.room_keys)
    return list(calls.values())


def _give(
    key: RoomKeySeen,
    stints: Sequence[tuple[CallSpan, DeviceStint]],
    slot_id: str,
    spans: Sequence[CallSpan],
    calls: dict[int, CallTraffic],
) -> None:
    """Place a room key by the first rule that fits: live stint, stint about to begin, ended stint, stray."""
    own = [(span, stint) for span, stint in stints if stint.slot_id == slot_id]
    ended = [
        (stint.left_at, span, stint)
        for span, stint in own
        if stint.left_at is not None and stint.left_at <= key.at <= stint.left_at + KEY_AFTER_STINT
    ]
    is_legacy = any(mark.padded is False for mark in key.keys)
    # RTCEncryptionManager begins anew with index 0 at each join: a higher one is of the stint that ended.
    goes_on = any(mark.padded and mark.index > 0 for mark in key.keys)
    lead = KEY_BEFORE_STINT if is_legacy or not ended else timedelta() if goes_on else KEY_BEFORE_REJOIN
    live = next((pair for pair in own if pair[1].is_live(key.at)), None)
    soon = next((pair for pair in own if key.at < pair[1].joined_at <= key.at + lead), None)
    found = live or soon
    if found is not None:
        key.stint = found[1]
        calls[id(found[0])].room_keys.append(key)
        return
    in_slot = [span for span in spans if span.slot_id == slot_id]
    going_on = next((span for span in in_slot if span.is_live(key.at)), None)
    if ended:
        key.stint = max(ended, key=lambda entry: entry[0])[2]
        over = [(span.ended_at, span) for span in in_slot if span.ended_at is not None and span.ended_at <= key.at]
        span = going_on or max(over, key=lambda entry: entry[0])[1]
        key.after_leave = True
        calls[id(going_on or span)].room_keys.append(key)
    elif going_on is not None:
        calls[id(going_on)].room_keys.append(key)
    else:
        coming = next((s for s in spans if s.slot_id == slot_id and s.started_at > key.at), None)
        if coming is not None and coming.started_at - key.at <= KEY_BEFORE_STINT:
            calls[id(coming)].room_keys.append(key)


def _read_megolm(
    room_id: RoomId,
    observation: Observation,
    body: MegolmEnvelope,
    devices_of: dict[UserId, list[Device]],
    by_device: dict[Device, list[tuple[CallSpan, DeviceStint]]],
    spans: Sequence[CallSpan],
    calls: dict[int, CallTraffic],
) -> None:
    """Take an unreadable event as an inferred room key if a call device sent it and its length is a key event's."""
    at = observation.event_at
    devices = devices_of.get(body.sender, ())
    own = [
        (device, pair)
        for device in devices
        if body.device_id in (None, device[1])
        for pair in by_device[device]
        if is_near(pair[1].joined_at, pair[1].left_at, at, KEY_AFTER_STINT)
    ]
    if not own:
        return
    device, (span, stint) = max(own, key=lambda found: (found[1][1].is_live(at), found[1][1].joined_at))
    # Memberships carry `expires` since js-sdk 36.0.
    may_be_old = any(membership.expires_seconds is None for membership in stint.memberships)
    predictions = lengths.room_key_lengths(room_id, device[1], with_history=may_be_old)
    if not any(body.length in fits for fits in predictions.values()):
        return  # whatever it is, it is no key event
    calls[id(span)].unreadable.append(observation)
    key = RoomKeySeen(
        observation=observation,
        at=at,
        sender=device,
        keys=(),
        evidence=Evidence.INFERRED,
        stint=None,
        after_leave=False,
    )
    _give(key, by_device[device], stint.slot_id, spans, calls)


def _read_olm(
    room_id: RoomId,
    observation: Observation,
    body: OlmEnvelope,
    senders: "_SenderKeys",
    by_device: dict[Device, list[tuple[CallSpan, DeviceStint]]],
    calls: dict[int, CallTraffic],
) -> None:
    at = observation.event_at
    for span, theirs in _receiving(by_device.get((body.recipient, body.recipient_device), ()), at):
        device = senders.device_of(body)
        own = [pair for pair in by_device.get(device, ()) if pair[1].slot_id == theirs.slot_id] if device else []
        own = [pair for pair in own if is_near(pair[1].joined_at, pair[1].left_at, at, KEY_AFTER_STINT)]
        if device is None or not own or device == (body.recipient, body.recipient_device):
            continue
        ours = _sending([pair[1] for pair in own], at)
        predictions = lengths.to_device_lengths(room_id, device[0], device[1], body.recipient, body.olm_type)
        variant, distance = lengths.classify_to_device(predictions, body.body_length)
        call = calls[id(span)]
        fits_moment = call.times.moments(at - OWED_WITHIN, at + ENVELOPE_SLACK) > 0
        if variant is None:
            if fits_moment and not lengths.is_megolm_share(predictions, body.body_length):
                call.unclassified.append(observation)
            return
        after_leave = ours.left_at is not None and at >= ours.left_at
        call.deliveries.append(
            Delivery(observation, at, ours, theirs, Evidence.INFERRED, after_leave, variant, distance, fits_moment)
        )
        return


def _receiving(stints: Sequence[tuple[CallSpan, DeviceStint]], at: datetime) -> list[tuple[CallSpan, DeviceStint]]:
    """Give the stints a message can have been for, the likeliest first: the live one, then the nearest."""
    near = [pair for pair in stints if is_near(pair[1].joined_at, pair[1].left_at, at, ENVELOPE_SLACK)]
    return sorted(near, key=lambda pair: (not pair[1].is_live(at), -pair[1].joined_at.timestamp()))


def _sending(stints: Sequence[DeviceStint], at: datetime) -> DeviceStint:
    """Choose among a sender's near stints: the live one, one about to begin, else the one that ended last."""
    live = [stint for stint in stints if stint.is_live(at)]
    ended = [stint for stint in stints if stint.joined_at <= at]
    soon = [s for s in stints if s.joined_at > at and (not ended or s.joined_at <= at + KEY_BEFORE_REJOIN)]
    return max(live or soon or ended, key=lambda stint: stint.joined_at)


def _read_to_device_key(
    observation: Observation,
    body: ToDeviceKey,
    by_device: dict[Device, list[tuple[CallSpan, DeviceStint]]],
    calls: dict[int, CallTraffic],
) -> None:
    at = observation.event_at
    device_id = body.sender_device_id or body.claimed_device_id
    if device_id is None or body.device_matches is False or body.trust is DeviceTrust.INVALID:
        return  # whatever it handed over, it was not this device's key
    own = by_device.get((body.sender, device_id), ())
    for span, theirs in _receiving(by_device.get((body.recipient, body.recipient_device), ()), at):
        ours = [p[1] for p in own if p[1].slot_id == theirs.slot_id]
        ours = [stint for stint in ours if is_near(stint.joined_at, stint.left_at, at, KEY_AFTER_STINT)]
        if ours:
            stint = _sending(ours, at)
            after_leave = stint.left_at is not None and at >= stint.left_at
            calls[id(span)].deliveries.append(
                Delivery(observation, at, stint, theirs, Evidence.DIRECT, after_leave, keys=body.keys)
            )
            return


def _grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    found: dict[_K, list[_T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _mark_resends(keys: list[RoomKeySeen]) -> None:
    """A room key that repeats index and tag of an earlier one of its stint is a resend."""
    seen: set[tuple[int, int, str | None]] = set()
    for key in keys:
        marks = {(id(key.stint), mark.index, mark.tag) for mark in key.keys}
        key.resend = bool(marks) and marks <= seen
        seen |= marks


class _SenderKeys:
    """Tells which device of a user sent an envelope: its Olm identity key is stable, devices of a user differ in it."""

    def __init__(self, observations: Sequence[Observation], spans: Sequence[CallSpan]) -> None:
        self._stints: dict[UserId, list[DeviceStint]] = defaultdict(list)
        for span in spans:
            for stint in span.stints:
                if not stint.sealed:
                    self._stints[stint.user_id].append(stint)
        self._by_key: dict[str, Device] = {}
        uses: dict[tuple[UserId, str], list[datetime]] = defaultdict(list)
        addressed: dict[tuple[UserId, str], set[DeviceId]] = defaultdict(set)
        for observation in observations:
            if isinstance(observation.body, OlmEnvelope):
                body = observation.body
                uses[(body.sender, body.sender_key_id)].append(observation.event_at)
                if body.sender == body.recipient:
                    addressed[(body.sender, body.sender_key_id)].add(body.recipient_device)
        for (user, key_id), times in uses.items():
            own = self._stints[user]
            devices = list(dict.fromkeys(stint.device_id for stint in own))
            left = [device for device in devices if device not in addressed[(user, key_id)]] or devices
            if left:
                self._by_key[key_id] = (user, max(left, key=lambda device: self._fit(own, device, times)))

    @staticmethod
    def _fit(stints: list[DeviceStint], device: DeviceId, times: list[datetime]) -> tuple[bool, int]:
        """A device sends first right at its own join, if others are there; else the one present more often."""
        own = [stint for stint in stints if stint.device_id == device]
        at_join = any(stint.joined_at <= times[0] <= stint.joined_at + FIRST_KEY_AFTER_JOIN for stint in own)
        return at_join, sum(any(is_near(s.joined_at, s.left_at, at, ENVELOPE_SLACK) for s in own) for at in times)

    def device_of(self, body: OlmEnvelope) -> Device | None:
        """Give the sending device if its user has a call device at all."""
        return self._by_key.get(body.sender_key_id)
