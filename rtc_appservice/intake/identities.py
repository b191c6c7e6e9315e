"""Stage 1: what the homeserver says of the devices and identities of those who send to our device."""

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson
from msgspec import Struct

from rtc_appservice.core.words import UserId
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed
from rtc_appservice.intake.device_keys import Identity, identity_of

#: A device that is signed now and was not before is told apart after this long.
FRESH = timedelta(minutes=10)
#: A transaction waits no longer than this: what is not known then is `signed_unchecked`, or `unknown`.
PATIENCE_SECONDS = 5.0
#: Who could not be asked about is asked about again after this: each message of theirs would make another wait.
UNANSWERED = timedelta(minutes=1)
_MOST = 10_000
#: Of a user, so many devices are kept, each if it takes no more bytes than this; genuine ones (Synapse 1.163) take 800.
MOST_DEVICES = 200
DEVICE_BYTES = 4_000
#: All that is kept, in bytes. Other servers say what they like of their users.
KEPT_BYTES = 16_000_000


class _Known(Struct, frozen=True):
    """What was learnt of a user: as JSON, which takes a third of the memory that what is parsed from it does."""

    asked_at: datetime
    is_answered: bool = False
    self_signing_key: str | None = None
    devices: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        return sum(map(len, self.devices))

    def identity(self) -> Identity:
        return Identity(self.self_signing_key, tuple(orjson.loads(keys) for keys in self.devices))


class Identities:
    """Asks the homeserver, and remembers for a while."""

    def __init__(self, api: DeviceApi) -> None:
        """Begin with nobody known."""
        self._api = api
        #: What was learnt of each, if anything ever was; who was asked about last comes last.
        self._known: dict[UserId, _Known] = {}
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """How many bytes of device keys are kept."""
        return self._bytes

    async def learn(self, users: Collection[UserId], now: datetime) -> Mapping[UserId, Identity]:
        """Give the identities of users, as far as they are known; raises on nothing."""
        stale = [user for user in users if user not in self._known or self._known[user].asked_at < now - FRESH]
        found = {user: self._known[user] for user in users if user in self._known}
        if stale:
            try:
                answer = await asyncio.wait_for(self._api.query_keys(stale), PATIENCE_SECONDS)
                learnt = {user: _known(user, answer, now) for user in stale}
            except RequestFailed:
                again_at = now - FRESH + UNANSWERED
                learnt = {user: _as_of(again_at, found.get(user)) for user in stale}
            found |= learnt
            self._keep(learnt)
        return {user: known.identity() for user, known in found.items() if known.is_answered}

    def _keep(self, learnt: Mapping[UserId, _Known]) -> None:
        for user, known in learnt.items():
            self._drop(user)
            self._known[user] = known
            self._bytes += known.size
        while len(self._known) > _MOST or self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._known)))

    def _drop(self, user: UserId) -> None:
        known = self._known.pop(user, None)
        self._bytes -= 0 if known is None else known.size


def _as_of(asked_at: datetime, known: _Known | None) -> _Known:
    if known is None:
        return _Known(asked_at)
    return _Known(asked_at, known.is_answered, known.self_signing_key, known.devices)


def _known(user_id: UserId, answer: Mapping[str, Any], now: datetime) -> _Known:
    """Take of an answer what tells who sealed a message: of each device what is signed, and the user's signatures."""
    identity = identity_of(user_id, answer)
    devices: list[bytes] = []
    for keys in identity.devices:
        signatures = keys.get("signatures")
        own = signatures.get(user_id) if isinstance(signatures, dict) else None
        lean = {name: value for name, value in keys.items() if name not in ("unsigned", "signatures")}
        try:
            devices.append(orjson.dumps({**lean, "signatures": {user_id: own}}))
        except TypeError:  # numbers, texts and depths that Matrix does not have
            continue
    small = [keys for keys in devices if len(keys) <= DEVICE_BYTES]
    return _Known(now, True, identity.self_signing_key, tuple(small[:MOST_DEVICES]))
