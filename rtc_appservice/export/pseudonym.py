"""
Stage 6: identifiers as they may leave the deployment.

A pseudonym is a keyed hash: without the deployment secret it cannot be computed from a known
identifier, nor an identifier be found by trying. Each kind of identifier has a space of its own, so
equal strings of two kinds do not show as equal. Changing the secret changes every pseudonym.

Where pseudonyms rotate, those of rooms, users and devices hold for one period only, so that nobody can be
followed through PostHog for longer. The period is that of the call's start, and a call has one start: all its
events, and every resend of them, show the same pseudonyms. A call's own pseudonym links nothing but its events
and never rotates.
"""

import hmac
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID, uuid5

#: Hex digits kept: 80 bits, so a billion identifiers still collide with a chance below one in a million.
DIGITS = 20

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Pseudonyms:
    """Turns identifiers into pseudonyms, and natural keys into stable event uuids, under one deployment secret."""

    def __init__(self, secret: bytes, period: str = "") -> None:
        """Take the deployment secret, and the period that pseudonyms of rooms, users and devices hold for."""
        self._secret = secret
        self._period = period
        self._namespace = UUID(bytes=self._digest("uuid_namespace", "")[:16], version=5)

    def room(self, room_id: str) -> str:
        """Give the pseudonym of a room."""
        return self._short("room", self._period, room_id)

    def user(self, user_id: str) -> str:
        """Give the pseudonym of a user."""
        return self._short("user", self._period, user_id)

    def device(self, user_id: str, device_id: str) -> str:
        """Give the pseudonym of a device, which is a device of one user."""
        return self._short("device", self._period, user_id, device_id)

    def call(self, call_id: str) -> str:
        """Give the pseudonym of a call."""
        return self._short("call", call_id)

    def auditor(self, homeserver: str) -> str:
        """Give the pseudonym under which the auditor of a homeserver speaks of itself."""
        return self._short("auditor", homeserver)

    def uuid(self, event: str, *natural_key: str) -> UUID:
        """Give the uuid of one PostHog event: the same event of the same thing has the same uuid, always."""
        return uuid5(self._namespace, "\0".join((event, *natural_key)))

    def share(self, call_id: str) -> float:
        """Give a number from 0 up to, but not including, 1 that is a call's own: what sampling decides by."""
        return int.from_bytes(self._digest("share", call_id)[:6]) / 2**48

    def _short(self, space: str, *parts: str) -> str:
        return self._digest(space, *parts).hex()[:DIGITS]

    def _digest(self, space: str, *parts: str) -> bytes:
        message = "\0".join(("rtc_appservice.pseudonym", space, *parts))
        return hmac.new(self._secret, message.encode(), sha256).digest()


def period(at: datetime, rotation_days: int | None) -> str:
    """Give the name of the period a time lies in: the day it begins, counted from 1970; empty without rotation."""
    if rotation_days is None:
        return ""
    length = timedelta(days=rotation_days)
    return (_EPOCH + (at - _EPOCH) // length * length).date().isoformat()
