"""
Stage 5: a device's behaviour in, its client generation out, with the marks that tell.

Each mark leaves some generations possible; what all marks leave is the answer: one generation, the coarse
letter where those left share it, else `unknown`. Generations (matrix-js-sdk releases): R0 30.1-34.5,
R1 34.6-37.3 (and later ones with the to-device option unset, up to 39.0), S1 37.4-37.10, S2 37.11,
S3 37.12-39.0, D1 39.1-41.0, D2 41.1 on.
"""

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from datetime import timedelta

from rtc_appservice.core.observed import Membership
from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.traffic import CallTraffic, RoomKeySeen
from rtc_appservice.core.words import Device

_ALL = frozenset({"R0", "R1", "S1", "S2", "S3", "D1", "D2"})
_SMART = frozenset({"S1", "S2", "S3"})
_TO_DEVICE = _SMART | {"D1", "D2"}

#: mark -> the generations that can leave it.
MARKS: dict[str, frozenset[str]] = {
    "state_key_v1": frozenset({"R0", "R1", "S1", "S2", "S3"}),  # `_@user_DEVICE`: before 38.0
    "state_key_v2": frozenset({"R1", "S3", "D1", "D2"}),  # `_@user_DEVICE_m.call`: 38.0 on
    "no_expires": frozenset({"R0"}),  # written since 36.0
    "membership_id": frozenset({"D1", "D2"}),  # since 40.0
    "multi_sfu": frozenset({"S3", "D1", "D2"}),  # since 39.0
    "sticky_js_39": frozenset({"S3", "D1"}),
    "sticky_js_41": frozenset({"D1", "D2"}),
    "sticky_js_43": frozenset({"D2"}),
    "no_sent_ts": frozenset({"R0"}),  # room keys carry it since 34.6
    "several_keys": frozenset({"R0"}),
    "sent_ts": _ALL - {"R0"},
    "unpadded_key": frozenset({"R0", "R1", "S1", "D1"}),  # legacy manager; D1 uses it with the option unset
    "padded_key": frozenset({"S2", "S3"}),  # RTCEncryptionManager, in a room key: gone from 39.1 on
    "to_device": _TO_DEVICE,
    "to_device_37_4": frozenset({"S1"}),
    "to_device_37_11": frozenset({"S2", "S3", "D1"}),
    "to_device_40": frozenset({"D1", "D2"}),
    "switched": _SMART,
    "room_only": frozenset({"R0", "R1", "D1"}),
    "after_leave": _TO_DEVICE - {"S1"},  # keeps sending after leaving: RTCEncryptionManager
    "ignores_room_keys": frozenset({"D1", "D2"}),
}
#: A smart client answers a room key within some 0.3 s; after this it does not react at all.
NO_REACTION = timedelta(seconds=5)


def infer_generation(
    device: Device, stints: Sequence[DeviceStint], call: CallTraffic, room_only: Container[Device]
) -> tuple[str, float, tuple[str, ...]]:
    """Give (generation, confidence, marks) of one device in one call."""
    marks = tuple(dict.fromkeys(_marks(device, stints, call, room_only)))
    left = _ALL
    for mark in marks:
        left &= MARKS[mark]
    letters = {name[0] for name in left}
    if not marks or len(letters) != 1:
        return "unknown", 0.0, marks
    if len(left) == 1:
        return next(iter(left)), 0.9, marks
    return letters.pop(), 0.8, marks


def _marks(
    device: Device, stints: Sequence[DeviceStint], call: CallTraffic, room_only: Container[Device]
) -> Iterator[str]:
    for stint in stints:
        for body in stint.memberships:
            yield from _membership_marks(body)
    keys, deliveries = call.keys_of.get(device), call.deliveries_of.get(device)
    after_leave = call.keys_after_leave_of.get(device)
    yield from call.key_marks.get(device, ())
    yield from call.delivery_marks.get(device, ())
    if after_leave or call.after_leave_of.get(device):
        yield "after_leave"
    if deliveries and keys and len(keys) > len(after_leave or ()):
        yield "switched"
    if device in room_only:
        yield "room_only"
    if deliveries and not keys and _ignores(stints, call):
        yield "ignores_room_keys"


def is_to_device_only(stints: Sequence[DeviceStint]) -> bool:
    """Tell whether the memberships alone show a client of js-sdk 39.1 or later, which reacts to no room key."""
    left = _ALL
    for stint in stints:
        for body in stint.memberships:
            for mark in _membership_marks(body):
                left &= MARKS[mark]
    return bool(left) and left <= {"D1", "D2"}


def _membership_marks(body: Membership) -> Iterator[str]:
    if body.form == "session_v1":
        yield "state_key_v1"
    elif body.form == "session_v2":
        yield "state_key_v2"
    if body.form in ("session_v1", "session_v2"):
        if body.expires_seconds is None:
            yield "no_expires"
        if body.membership_id is not None:
            yield "membership_id"
    if body.focus_selection == "multi_sfu":
        yield "multi_sfu"
    if body.dialect is not None and f"sticky_{body.dialect}" in MARKS:
        yield f"sticky_{body.dialect}"


def _ignores(stints: Sequence[DeviceStint], call: CallTraffic) -> bool:
    """A foreign room key came while it was live, and it stayed on without sending one itself."""
    return any(first_stayed_after(stint, call.room_keys) is not None for stint in stints)


def first_stayed_after(stint: DeviceStint, keys: Sequence[RoomKeySeen]) -> RoomKeySeen | None:
    """Give the first of some room keys in order at which a stint was live, and was still when it had had to react."""
    position = bisect_left(keys, stint.joined_at, key=lambda key: key.at)
    key = keys[position] if position < len(keys) else None
    return key if key is not None and stint.is_live(key.at + NO_REACTION) else None
