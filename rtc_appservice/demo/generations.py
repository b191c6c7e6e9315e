"""
What call clients of each generation do with their media keys: stimuli in, actions out. Pure.

The rules are those of matrix-js-sdk as its releases were seen to behave. A behaviour knows the index and the
age of its key, never the key: that is the player's.

- `RoomOnly` (js-sdk 36.2): every key is a room event. The key goes out with the own join, mostly before the
  membership; somebody else's join makes it send the same key again, at most once in 3 s; a leave makes a new
  key 3 s later. It stops when it leaves.
- `ToDevice` (37.11 and later): keys go to the devices in the memberships. A joiner gets the current key while
  that is younger than 10 s, else everybody gets a new one; a leave makes a new key at once. It goes on doing so
  after it has left, as long as the program lives. With `switches` (37.13 as Element Call configured it), the
  first room key of anybody else moves it to room events until it joins anew.
"""

from typing import Protocol

from msgspec import Struct

from rtc_appservice.core.words import Device, KeyTransport

#: js-sdk's `updateEncryptionKeyThrottle`: least time between two sendings of the legacy manager.
THROTTLE_SECONDS = 3.0
#: js-sdk's `makeKeyDelay`: from a leave to the legacy manager's new key.
MAKE_KEY_SECONDS = 3.0
#: js-sdk's `keyRotationGracePeriodMs`: an older key is not handed to a joiner.
ROTATION_GRACE_SECONDS = 10.0


class Distribute(Struct, frozen=True, kw_only=True):
    """Hand out the key at `index`; `followed` names whose room key moved this client to room events."""

    key_transport: KeyTransport
    index: int
    recipients: tuple[Device, ...] = ()  #: to-device only
    followed: Device | None = None


class Wake(Struct, frozen=True, kw_only=True):
    """Call `woken` at this time."""

    at: float


Action = Distribute | Wake


class Behaviour(Protocol):
    """A client's key management. Times are seconds of one monotonic clock."""

    def about_to_join(self, now: float) -> list[Action]:
        """Give what is done before the own membership is sent."""

    def joined(self, device: Device, now: float) -> list[Action]:
        """Give what is done when a device, maybe the own, appears in the call."""

    def left(self, device: Device, now: float) -> list[Action]:
        """Give what is done when a device, maybe the own, has left the call."""

    def room_key_seen(self, sender: Device, now: float) -> list[Action]:
        """Give what is done when somebody else's room key arrives."""

    def woken(self, now: float) -> list[Action]:
        """Give what is done at a time asked for by `Wake`."""


class RoomOnly:
    """The legacy manager with the room transport."""

    def __init__(self, me: Device) -> None:
        """Begin outside the call."""
        self._me = me
        self._present = False
        self._index = 0
        self._sent_at = float("-inf")
        self._resend_at: float | None = None
        self._rotate_at: float | None = None

    def about_to_join(self, now: float) -> list[Action]:
        """Send the first key: it does not wait for the membership."""
        self._present = True
        return [self._send(now)]

    def joined(self, device: Device, now: float) -> list[Action]:
        """Send the same key again, but not within 3 s of the last time."""
        if not self._present or device == self._me or self._resend_at is not None:
            return []
        if now >= self._sent_at + THROTTLE_SECONDS:
            return [self._send(now)]
        self._resend_at = self._sent_at + THROTTLE_SECONDS
        return [Wake(at=self._resend_at)]

    def left(self, device: Device, now: float) -> list[Action]:
        """Make a new key in 3 s, or stop if it was the own leave."""
        if device == self._me:
            self._present = False
        if not self._present or self._rotate_at is not None:
            return []
        self._rotate_at = now + MAKE_KEY_SECONDS
        return [Wake(at=self._rotate_at)]

    def room_key_seen(self, sender: Device, now: float) -> list[Action]:
        """Do nothing: this is what it expects."""
        return []

    def woken(self, now: float) -> list[Action]:
        """Do what is due."""
        rotate = self._rotate_at is not None and now >= self._rotate_at
        resend = self._resend_at is not None and now >= self._resend_at
        if rotate:
            self._index += 1
            self._rotate_at = None
        if resend:
            self._resend_at = None
        return [self._send(now)] if self._present and (rotate or resend) else []

    def _send(self, now: float) -> Action:
        self._sent_at = now
        return Distribute(key_transport=KeyTransport.ROOM_EVENT, index=self._index)


class ToDevice:
    """The newer manager with the to-device transport, with or without the way to room events."""

    def __init__(self, me: Device, *, switches: bool) -> None:
        """Begin outside the call."""
        self._me = me
        self._switches = switches
        self._others: set[Device] = set()
        self._managing = False  # from the first sight of the own membership on
        self._index = 0
        self._made_at = 0.0
        self._key_transport = KeyTransport.TO_DEVICE

    def about_to_join(self, now: float) -> list[Action]:
        """Do nothing: the first key comes with the own membership."""
        return []

    def joined(self, device: Device, now: float) -> list[Action]:
        """Make the first key, or hand the key to the joiner, or a new one to all."""
        if device == self._me:
            self._managing = True
            self._index, self._made_at = 0, now
            self._key_transport = KeyTransport.TO_DEVICE
            return self._distribute(self._others)
        self._others.add(device)
        if not self._managing:
            return []
        return self._distribute({device}) if self._is_young(now) else self._rotate(now)

    def left(self, device: Device, now: float) -> list[Action]:
        """Make a new key for those who stay, also after the own leave."""
        self._others.discard(device)
        return self._rotate(now) if self._managing else []

    def room_key_seen(self, sender: Device, now: float) -> list[Action]:
        """Move to room events, once, with the key already handed out if it is young."""
        if not self._switches or not self._managing or self._key_transport is KeyTransport.ROOM_EVENT:
            return []
        self._key_transport = KeyTransport.ROOM_EVENT
        if not self._is_young(now):
            self._index, self._made_at = self._index + 1, now
        return [Distribute(key_transport=self._key_transport, index=self._index, followed=sender)]

    def woken(self, now: float) -> list[Action]:
        """Do nothing: it never waits."""
        return []

    def _is_young(self, now: float) -> bool:
        return now - self._made_at < ROTATION_GRACE_SECONDS

    def _rotate(self, now: float) -> list[Action]:
        self._index, self._made_at = self._index + 1, now
        return self._distribute(self._others)

    def _distribute(self, recipients: set[Device]) -> list[Action]:
        if self._key_transport is KeyTransport.ROOM_EVENT:
            return [Distribute(key_transport=self._key_transport, index=self._index)]
        if not recipients:
            return []
        return [Distribute(key_transport=self._key_transport, index=self._index, recipients=tuple(sorted(recipients)))]
