"""Stage 1: what the homeserver says of the devices and identities of those who send to our device."""

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

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


class Identities:
    """Asks the homeserver, and remembers for a while."""

    def __init__(self, api: DeviceApi) -> None:
        """Begin with nobody known."""
        self._api = api
        #: When each was asked about, and what was learnt of them, if anything ever was.
        self._known: dict[UserId, tuple[datetime, Identity | None]] = {}

    async def learn(self, users: Collection[UserId], now: datetime) -> Mapping[UserId, Identity]:
        """Give the identities of users, as far as they are known; raises on nothing."""
        stale = [user for user in users if user not in self._known or self._known[user][0] < now - FRESH]
        if stale:
            try:
                answer = await asyncio.wait_for(self._api.query_keys(stale), PATIENCE_SECONDS)
                self._known.update({user: (now, identity_of(user, answer)) for user in stale})
            except RequestFailed:
                known = {user: self._known[user][1] if user in self._known else None for user in stale}
                self._known.update({user: (now - FRESH + UNANSWERED, identity) for user, identity in known.items()})
            while len(self._known) > _MOST:
                del self._known[next(iter(self._known))]
        found = {user: self._known[user][1] for user in users if user in self._known}
        return {user: identity for user, identity in found.items() if identity is not None}
