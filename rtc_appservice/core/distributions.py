"""Stage 4: the keys of a call in, distributions out: one act of one device handing out a key by one key transport."""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from rtc_appservice.core.model import DeviceRef, KeyDistribution
from rtc_appservice.core.traffic import ONE_DISTRIBUTION, CallTraffic, Delivery, RoomKeySeen
from rtc_appservice.core.words import CallId, KeyTransport


class Distributions:
    """The distributions of a call in order of time; those that are final are made once."""

    def __init__(self, call: CallTraffic, call_id: CallId) -> None:
        """Begin with none."""
        self._call = call
        self._call_id = call_id
        self._room_keys = 0
        self._bundles = 0
        self.final: list[KeyDistribution] = []

    def settle(self, final_until: datetime) -> list[KeyDistribution]:
        """Make those that can change no more, with the traffic final up to a time, and give the new ones."""
        until = final_until - ONE_DISTRIBUTION  # a bundle may still grow
        keys, bundles = self._call.room_keys, self._call.bundles
        first_key, first_bundle = self._room_keys, self._bundles
        while self._room_keys < len(keys) and keys[self._room_keys].at <= until:
            self._room_keys += 1
        while self._bundles < len(bundles) and bundles[self._bundles][0].at <= until:
            self._bundles += 1
        found = self._made(keys[first_key : self._room_keys], bundles[first_bundle : self._bundles])
        self.final += found
        return found

    def open(self) -> list[KeyDistribution]:
        """Give the others, all later than the final ones."""
        return self._made(self._call.room_keys[self._room_keys :], self._call.bundles[self._bundles :])

    def _made(self, keys: Sequence[RoomKeySeen], bundles: Sequence[Sequence[Delivery]]) -> list[KeyDistribution]:
        found = [_room_distribution(key, self._call, self._call_id) for key in keys]
        found += [_to_device_distribution(bundle, self._call_id) for bundle in bundles]
        return sorted(found, key=lambda distribution: (distribution.at, distribution.distribution_id))


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
