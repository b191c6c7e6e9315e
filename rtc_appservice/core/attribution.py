"""
Stage 4: which call and which stint each key belongs to.

Stints are looked up here, at projection, never at arrival: to-device messages overtake room events, and old
clients send the key before the membership.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from rtc_appservice.core import lengths
from rtc_appservice.core.envelope import ENVELOPE_SLACK, KEY_AFTER_STINT, is_near
from rtc_appservice.core.model import Settings
from rtc_appservice.core.observed import (
    MegolmEnvelope,
    Membership,
    Observation,
    OlmEnvelope,
    Rejected,
    RoomKey,
    ToDeviceKey,
)
from rtc_appservice.core.outside import Outside
from rtc_appservice.core.stints import CallSpan, DeviceStint
from rtc_appservice.core.traffic import CallTraffic, Delivery, RoomKeySeen
from rtc_appservice.core.words import Device, DeviceTrust, Evidence, RoomId, UserId

#: Old clients often send the key before the membership.
KEY_BEFORE_STINT = timedelta(seconds=10)
#: RTCEncryptionManager makes its first key once it sees its own membership, so its keys hardly precede it; and it is
#: the one that goes on sending after leaving. A key of a device that has left is the next stint's only this near to it:
#: key and membership of a joiner leave together (recorded 1 to 15 ms apart).
KEY_BEFORE_REJOIN = timedelta(milliseconds=250)
#: Keys leave soon after the join or leave that owes them; the slowest answer is the legacy manager's, 3 s and a retry.
OWED_WITHIN = timedelta(seconds=10)


class Attribution:
    """Gives each observation that may be a key to the call it belongs to."""

    def __init__(
        self,
        room_id: RoomId,
        spans: Sequence[CallSpan],
        calls: Sequence[CallTraffic],
        outside: Outside,
        sender_devices: Mapping[tuple[UserId, str], Device],
        settings: Settings,
    ) -> None:
        """Take the calls of a room, in order of start, what belongs to none, and which device has which Olm key."""
        self._room_id = room_id
        self._calls = calls
        self._outside = outside
        self._call_of = {id(span): call for span, call in zip(spans, calls, strict=True)}
        self._senders = sender_devices
        self._horizon = timedelta(seconds=settings.horizon_seconds)
        self._by_device: dict[Device, list[tuple[CallSpan, DeviceStint]]] = defaultdict(list)
        self._devices_of: dict[UserId, list[Device]] = defaultdict(list)
        for span in spans:
            for device, stints in span.devices().items():
                if device not in self._by_device:
                    self._devices_of[device[0]].append(device)
                self._by_device[device].extend((span, stint) for stint in stints)

    def take(self, observation: Observation) -> None:
        """Take a room's observations one by one, in order of time."""
        body = observation.body
        if isinstance(body, OlmEnvelope):
            self._read_olm(observation, body)
            return
        is_counted = isinstance(body, RoomKey | ToDeviceKey | Rejected) and self._count(observation, body)
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
            if not self._give(key, body.slot_id):
                self._outside.take(observation)
        elif not is_counted and isinstance(body, Rejected | Membership):
            self._outside.take(observation)
        elif isinstance(body, MegolmEnvelope) and body.sticky_seconds is None:
            self._read_megolm(observation, body)
        elif isinstance(body, ToDeviceKey):
            self._read_to_device_key(observation, body)
            if not is_counted:
                self._outside.take(observation)

    def _count(self, observation: Observation, body: RoomKey | ToDeviceKey | Rejected) -> bool:
        """Let the calls of the time count an observation; tell whether there was one."""
        at, is_counted = observation.event_at, False
        for call in self._calls:
            span = call.span
            ended_at = span.ended_at
            is_within = span.started_at - KEY_BEFORE_STINT <= at and (
                ended_at is None or at <= ended_at + self._horizon
            )
            if is_within and (not isinstance(body, ToDeviceKey) or body.slot_id == span.slot_id):
                call.count(observation)
                is_counted = True
        return is_counted

    def _give(self, key: RoomKeySeen, slot_id: str) -> bool:
        """
        Place a room key by the first rule that fits: live stint, stint about to begin, ended stint, stray.

        Tell whether there was a call to place it in.
        """
        own = [pair for pair in self._by_device.get(key.sender, ()) if pair[1].slot_id == slot_id]
        ended = [
            (stint.left_at, stint)
            for _, stint in own
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
            self._call_of[id(found[0])].add_key(key)
            return True
        in_slot = [call for call in self._calls if call.span.slot_id == slot_id]
        going_on = next((call for call in in_slot if call.span.is_live(key.at)), None)
        if ended:
            key.stint = max(ended, key=lambda entry: entry[0])[1]
            key.after_leave = True
            over = [(c.span.ended_at, c) for c in in_slot if c.span.ended_at is not None and c.span.ended_at <= key.at]
            (going_on or max(over, key=lambda entry: entry[0])[1]).add_key(key)
        elif going_on is not None:
            going_on.add_key(key)
        else:
            coming = next((call for call in in_slot if call.span.started_at > key.at), None)
            if coming is None or coming.span.started_at - key.at > KEY_BEFORE_STINT:
                return False
            coming.add_key(key)
        return True

    def _read_megolm(self, observation: Observation, body: MegolmEnvelope) -> None:
        """Take an unreadable event as an inferred room key if a call device sent it and its length is a key event's."""
        at = observation.event_at
        own = [
            (device, pair)
            for device in self._devices_of.get(body.sender, ())
            if body.device_id in (None, device[1])
            for pair in self._by_device[device]
            if is_near(pair[1].joined_at, pair[1].left_at, at, KEY_AFTER_STINT)
        ]
        if not own:
            return
        device, (span, stint) = max(own, key=lambda found: (found[1][1].is_live(at), found[1][1].joined_at))
        predictions = lengths.room_key_lengths(self._room_id, device[1], with_history=stint.may_be_old)
        if not any(body.length in fits for fits in predictions.values()):
            return  # whatever it is, it is no key event
        self._call_of[id(span)].add_unreadable(observation)
        key = RoomKeySeen(
            observation=observation,
            at=at,
            sender=device,
            keys=(),
            evidence=Evidence.INFERRED,
            stint=None,
            after_leave=False,
        )
        self._give(key, stint.slot_id)

    def _read_olm(self, observation: Observation, body: OlmEnvelope) -> None:
        at = observation.event_at
        device = self._senders.get((body.sender, body.sender_key_id))
        if device is None or device == (body.recipient, body.recipient_device):
            return
        all_ours = self._by_device.get(device, ())
        for span, theirs in _receiving(self._by_device.get((body.recipient, body.recipient_device), ()), at):
            own = [pair[1] for pair in all_ours if pair[1].slot_id == theirs.slot_id]
            own = [stint for stint in own if is_near(stint.joined_at, stint.left_at, at, KEY_AFTER_STINT)]
            if not own:
                continue
            ours = _sending(own, at)
            predictions = lengths.to_device_lengths(self._room_id, device[0], device[1], body.recipient, body.olm_type)
            variant, distance = lengths.classify_to_device(predictions, body.body_length)
            call = self._call_of[id(span)]
            fits_moment = call.times.moments(at - OWED_WITHIN, at + ENVELOPE_SLACK) > 0
            if variant is None:
                if fits_moment and not lengths.is_megolm_share(predictions, body.body_length):
                    call.add_unclassified(observation)
                return
            after_leave = ours.left_at is not None and at >= ours.left_at
            call.add_delivery(
                Delivery(observation, at, ours, theirs, Evidence.INFERRED, after_leave, variant, distance, fits_moment)
            )
            return

    def _read_to_device_key(self, observation: Observation, body: ToDeviceKey) -> None:
        at = observation.event_at
        device_id = body.sender_device_id or body.claimed_device_id
        if device_id is None or body.device_matches is False or body.trust is DeviceTrust.INVALID:
            return  # whatever it handed over, it was not this device's key
        own = self._by_device.get((body.sender, device_id), ())
        for span, theirs in _receiving(self._by_device.get((body.recipient, body.recipient_device), ()), at):
            ours = [p[1] for p in own if p[1].slot_id == theirs.slot_id]
            ours = [stint for stint in ours if is_near(stint.joined_at, stint.left_at, at, KEY_AFTER_STINT)]
            if ours:
                stint = _sending(ours, at)
                after_leave = stint.left_at is not None and at >= stint.left_at
                self._call_of[id(span)].add_delivery(
                    Delivery(observation, at, stint, theirs, Evidence.DIRECT, after_leave, keys=body.keys)
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
