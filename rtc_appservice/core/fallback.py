"""
Stage 5: fallback occurrences and what caused them.

To-device is the primary key transport, so a device's first room key in a call is a fallback occurrence; later
ones add to its count. Causes are tried in a fixed order and the first that fits is taken.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from rtc_appservice.core.model import DeviceRef, Fallback
from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.traffic import CallTraffic, Decided, KeyGroup, RoomKeySeen
from rtc_appservice.core.words import BLOCKING_CAUSES, Device, Evidence, FallbackCause

#: "With its own join": recorded room-only clients send at most 0.6 s from it, even alone; a legacy manager that began
#: with to-device and switched is held back by its 3 s throttle.
WITH_JOIN = timedelta(seconds=2)
#: A client listens for room keys from its join on, a moment before its membership is on the wire.
LISTENS_BEFORE_JOIN = timedelta(milliseconds=400)
#: A device may have been seen to distribute by to-device this long ago.
HISTORY = timedelta(days=30)

_CONFIDENCE = {
    FallbackCause.STRAY: 0.9,
    FallbackCause.AFTER_LEAVE: 0.95,
    FallbackCause.FOLLOWED: 0.95,
    FallbackCause.GAVE_UP: 0.8,
    FallbackCause.HOST_CANNOT_SEND: 0.9,
    FallbackCause.ROOM_ONLY_CLIENT: 0.95,
    FallbackCause.UNKNOWN: 0.3,
}
#: An inferred room key has the length of one, which ordinary messages can share.
_INFERRED_FACTOR = 0.8


@dataclass(slots=True, frozen=True)
class Occurrence:
    """A fallback with the room keys it rests on."""

    fallback: Fallback
    device: Device
    stint: DeviceStint | None
    group: KeyGroup

    @property
    def blocks(self) -> bool:
        """Tell whether it stands in the way of switching the backup off."""
        return self.fallback.cause in BLOCKING_CAUSES


@dataclass(slots=True, frozen=True)
class Context:
    """What causes are decided with, beside the call's own traffic."""

    beginning_seen: bool
    envelopes: bool
    to_device_history: Mapping[Device, datetime]
    #: A cause is decided with what was known this long after the first room key, and stays: it has been told by then.
    decided_after: timedelta
    #: The traffic up to this time is final.
    final_until: datetime


def find_fallbacks(call: CallTraffic, context: Context) -> list[Occurrence]:
    """Give the fallback occurrences of a call, one per device stint, in order of time."""
    return [_occurrence(call, context, group) for group in call.groups()]


def _occurrence(call: CallTraffic, context: Context, group: KeyGroup) -> Occurrence:
    first = group.keys[0]
    decided = _decide(call, context, group)
    cause, foreign = decided.cause, decided.foreign
    evidence = group.grades()[-1]
    confidence = _CONFIDENCE[cause] * (_INFERRED_FACTOR if evidence is Evidence.INFERRED else 1.0)
    caused_by = None
    if cause is FallbackCause.FOLLOWED and foreign is not None:
        caused_by = DeviceRef(user_id=foreign.sender[0], device_id=foreign.sender[1])
    user_id, device_id = first.sender
    fallback = Fallback(
        user_id=user_id,
        device_id=device_id,
        cause=cause,
        caused_by=caused_by,
        at=first.at,
        room_keys=len(group.keys),
        evidence=evidence,
        confidence=round(confidence, 2),
        candidates=decided.candidates,
        key_was_private=_was_private(call, group.keys),
    )
    return Occurrence(fallback, first.sender, first.stint, group)


def _decide(call: CallTraffic, context: Context, group: KeyGroup) -> Decided:
    """Decide the cause, or take it as decided where all that enters it is final."""
    first = group.keys[0]
    by = (context.beginning_seen, context.envelopes, context.to_device_history.get(first.sender), context.decided_after)
    if group.decided is not None and group.decided.by == by:
        return group.decided
    foreign = _heard_before(call, first)
    decided = Decided(*_cause(call, context, group.keys, foreign), foreign, by)
    is_final = first.at + context.decided_after <= context.final_until
    group.decided = decided if is_final else None
    return decided


def _cause(
    call: CallTraffic, context: Context, keys: Sequence[RoomKeySeen], foreign: RoomKeySeen | None
) -> tuple[FallbackCause, tuple[FallbackCause, ...]]:
    first = keys[0]
    stint = first.stint
    if stint is None:
        if context.beginning_seen:
            return FallbackCause.STRAY, ()
        return FallbackCause.UNKNOWN, (FallbackCause.STRAY, FallbackCause.AFTER_LEAVE)
    if first.after_leave:
        return FallbackCause.AFTER_LEAVE, ()
    until = first.at + context.decided_after
    keys = keys[: bisect_right(keys, until, key=lambda key: key.at)]
    padded = _is_padded(keys)
    sends_to_device = any(d.at <= until for d in call.deliveries_of.get(first.sender, [])[:1])
    if foreign is not None:
        # A room-only client sends with its own join, even alone: one that did not began with to-device.
        was_silent = first.at > stint.joined_at + WITH_JOIN
        if sends_to_device or padded or was_silent:
            return FallbackCause.FOLLOWED, ()
    elif context.beginning_seen:
        if _distributed_before(call, context, first):
            return FallbackCause.GAVE_UP, ()
        if padded:
            return FallbackCause.HOST_CANNOT_SEND, ()
    with_join = abs(first.at - stint.joined_at) <= WITH_JOIN
    looks_room_only = not padded and with_join and not sends_to_device
    if foreign is not None and looks_room_only and not context.envelopes and not _is_old_form(keys):
        # Keys were already flowing when it joined: a smart client would have switched just as fast.
        return FallbackCause.UNKNOWN, (FallbackCause.FOLLOWED, FallbackCause.ROOM_ONLY_CLIENT)
    if looks_room_only and (context.beginning_seen or _is_old_form(keys)):
        return FallbackCause.ROOM_ONLY_CLIENT, ()
    if foreign is None and not context.beginning_seen:
        left = [FallbackCause.FOLLOWED, FallbackCause.GAVE_UP, FallbackCause.HOST_CANNOT_SEND]
        return FallbackCause.UNKNOWN, tuple(left if padded else [*left[:2], FallbackCause.ROOM_ONLY_CLIENT])
    return FallbackCause.UNKNOWN, (FallbackCause.FOLLOWED, FallbackCause.ROOM_ONLY_CLIENT)


def _heard_before(call: CallTraffic, first: RoomKeySeen) -> RoomKeySeen | None:
    """Give the first room key of another device that this one can have heard: its transports listen from join on."""
    since = first.at if first.stint is None else first.stint.joined_at - LISTENS_BEFORE_JOIN
    order = (first.at, first.observation.identity)
    position = bisect_left(call.room_keys, since, key=lambda key: key.at)
    for key in islice(call.room_keys, position, None):
        if (key.at, key.observation.identity) >= order:
            break
        if key.sender != first.sender:
            return key
    return None


def _is_padded(keys: Sequence[RoomKeySeen]) -> bool:
    """The newer manager (js-sdk 37.11 on) pads its base64, the legacy one does not."""
    return any(mark.padded for key in keys for mark in key.keys)


def _is_old_form(keys: Sequence[RoomKeySeen]) -> bool:
    """Before js-sdk 34.6 there was no `sent_ts`, and `keys` held the whole history: no smart client ever wrote so."""
    return any(len(key.keys) > 1 or key.has_sent_ts is False for key in keys)


def _distributed_before(call: CallTraffic, context: Context, first: RoomKeySeen) -> bool:
    if any(delivery.at < first.at for delivery in call.deliveries_of.get(first.sender, [])[:1]):
        return True
    seen = context.to_device_history.get(first.sender)
    return seen is not None and call.span.started_at - HISTORY <= seen < call.span.started_at


def _was_private(call: CallTraffic, keys: Sequence[RoomKeySeen]) -> bool | None:
    """Tell whether one of these keys had been read from a to-device message before, by the comparison tags."""
    sealed = {
        mark.tag
        for delivery in call.read_from.get(keys[0].sender, ())
        for mark in delivery.keys
        if mark.tag is not None
    }
    if not sealed:
        return None
    tags = {mark.tag for key in keys for mark in key.keys if mark.tag is not None}
    return bool(sealed & tags) if tags else None
