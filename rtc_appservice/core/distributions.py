"""Stage 4: the keys of a call in, distributions out: one act of one device handing out a key by one key transport."""

import hashlib
from collections.abc import Sequence

from rtc_appservice.core.attribution import ONE_DISTRIBUTION, CallTraffic, Delivery, Device, RoomKeySeen
from rtc_appservice.core.model import CallId, DeviceRef, KeyDistribution, KeyTransport


def build_distributions(call: CallTraffic, call_id: CallId) -> tuple[KeyDistribution, ...]:
    """Give the distributions of a call in order of time; envelopes of one sender within 1 s are one."""
    found = [_room_distribution(key, call, call_id) for key in call.room_keys]
    groups: list[list[Delivery]] = []
    open_of: dict[Device, list[Delivery]] = {}
    for delivery in sorted(call.deliveries, key=lambda d: (d.at, d.observation.identity)):
        device = delivery.stint.device
        group = open_of.get(device)
        if group is None or delivery.at - group[0].at > ONE_DISTRIBUTION:
            group = open_of[device] = []
            groups.append(group)
        group.append(delivery)
    found += [_to_device_distribution(group, call_id) for group in groups]
    return tuple(sorted(found, key=lambda distribution: (distribution.at, distribution.distribution_id)))


def _room_distribution(key: RoomKeySeen, call: CallTraffic, call_id: CallId) -> KeyDistribution:
    itself = key.stint is not None and key.stint.is_live(key.at)
    return KeyDistribution(
        distribution_id=_distribution_id(call_id, key.observation.identity),
        sender=DeviceRef(user_id=key.sender[0], device_id=key.sender[1]),
        key_transport=KeyTransport.ROOM_EVENT,
        at=key.at,
        index=key.keys[-1].index if key.keys else None,
        evidence=key.evidence,
        resend=key.resend,
        after_leave=key.after_leave,
        recipients=call.times.live(key.at) - itself,
        observations=(key.observation.identity,),
    )


def _to_device_distribution(group: Sequence[Delivery], call_id: CallId) -> KeyDistribution:
    first = group[0]
    user_id, device_id = first.stint.device
    return KeyDistribution(
        distribution_id=_distribution_id(call_id, first.observation.identity),
        sender=DeviceRef(user_id=user_id, device_id=device_id),
        key_transport=KeyTransport.TO_DEVICE,
        at=first.at,
        index=first.keys[0].index if first.keys else None,
        evidence=first.evidence,
        resend=False,
        after_leave=first.after_leave,
        recipients=len({delivery.recipient.device for delivery in group}),
        observations=tuple(delivery.observation.identity for delivery in group),
    )


def _distribution_id(call_id: CallId, identity: str) -> str:
    return hashlib.blake2b(f"{call_id}\0{identity}".encode(), digest_size=16).hexdigest()
