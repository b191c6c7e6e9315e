"""
MatrixRTC clients: when each sends which key to whom. Two key managers, and smart switching.

Both keep the call's members as their process sees them, later than the homeserver does. Times are milliseconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .generations import Device, Generation
from .truth import MediaKey, Stint

THROTTLE_MS = 3_000  #: legacy: between two sends
MAKE_KEY_MS = 3_000  #: legacy: from a leave to the new key, later leaves are covered by it
LEGACY_USE_KEY_MS = 5_000  #: legacy: from a new key to its use; until then a re-send repeats the old one
USE_KEY_MS = 1_000  #: modern: a changed key occupies the one rollout at a time so long


class World(Protocol):
    """What a client needs of the world: time, randomness, and a homeserver."""

    @property
    def now(self) -> int:
        """Give the time in milliseconds."""

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a while."""

    def new_key(self, *, padded: bool) -> MediaKey:
        """Give a random media key."""

    def sealing_ms(self) -> int:
        """Give how long encrypting and the request to the homeserver take."""

    def send_room_key(self, client: "Client", keys: list[tuple[int, MediaKey]]) -> None:
        """Put a room key event on its way."""

    def send_to_device(self, client: "Client", index: int, key: MediaKey, recipients: list[Device]) -> None:
        """Put a to-device key for each recipient on its way."""

    def note_switch(self, client: "Client", trigger: str | None, trigger_device: Device | None) -> None:
        """Take down that a client left to-device, and why (None: its host cannot send)."""


@dataclass
class Client(ABC):
    """A device's process and its part in the call; subclasses are the key managers."""

    world: World
    device: Device
    generation: Generation
    host_fails_at: int | None = None  #: from then on its host refuses to send to-device messages
    members: dict[Device, int] = field(default_factory=dict)  #: the others, with the time of their membership
    alive: bool = False
    joined: bool = False
    by_room: bool = False
    stint: Stint | None = None  #: the current one, or the last
    life: int = 0  #: counts joins and ends of the process: what was planned before does not happen after

    def join(self, stint: Stint) -> None:
        """Join the call: a fresh transport each time."""
        self.alive = self.joined = True
        self.stint = stint
        self.life += 1
        self.by_room = not self.generation.to_device

    def leave(self, *, linger: bool) -> None:
        """Leave; the process ends with it unless it lingers."""
        self.joined = False
        if not linger:
            self.crash()

    def crash(self) -> None:
        """End the process."""
        self.alive = self.joined = False
        self.life += 1

    def see_membership(self, device: Device, since: int | None) -> None:
        """See a membership come (with its time) or go (None)."""
        if device != self.device:
            if since is None:
                self.members.pop(device, None)
            else:
                self.members[device] = since

    def see_room_key(self, sender: Device, event_id: str) -> None:
        """A smart client leaves to-device with the first room key of anybody else, member or not."""
        if self.joined and self.generation.smart and not self.by_room and sender != self.device:
            self.by_room = True
            self.world.note_switch(self, event_id, sender)
            self.transport_changed()

    @abstractmethod
    def transport_changed(self) -> None:
        """Hand the current key out again."""

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        life = self.life
        self.world.later(delay_ms, lambda: action() if self.life == life else None)


@dataclass
class LegacyClient(Client):
    """The manager of js-sdk up to 37.10: joins re-send, leaves rotate after 3 s, sends are 3 s apart."""

    keys: dict[int, MediaKey] = field(default_factory=dict)
    current: int = -1  #: a rejoin goes on counting
    sent_at: int | None = None
    resend_planned: bool = False
    rotation_planned: bool = False

    def join(self, stint: Stint) -> None:
        """Make a key and send it at once, even alone in the room."""
        super().join(stint)
        self.keys = {}
        self.resend_planned = self.rotation_planned = False
        self.current = self._make_key()
        self._resend()

    def leave(self, *, linger: bool) -> None:
        """Stop: whatever was planned is dropped."""
        super().leave(linger=linger)
        self.life += 1

    def see_membership(self, device: Device, since: int | None) -> None:
        """Re-send for a joiner or an updated membership, rotate for a leaver."""
        known = device in self.members
        super().see_membership(device, since)
        if not self.joined or device == self.device:
            return
        if since is not None:
            self._resend()
        elif known and not self.rotation_planned:
            self.rotation_planned = True
            self._later(MAKE_KEY_MS, self._rotate)

    def transport_changed(self) -> None:
        """Re-send the same key, throttled like any other re-send."""
        self._resend()

    def _make_key(self) -> int:
        index = (self.current + 1) % self.generation.indexes
        self.keys[index] = self.world.new_key(padded=self.generation.padded)
        return index

    def _rotate(self) -> None:
        self.rotation_planned = False
        index = self._make_key()
        self._send(index)
        self._later(LEGACY_USE_KEY_MS, lambda: setattr(self, "current", index))

    def _resend(self) -> None:
        if self.sent_at is None or self.sent_at + THROTTLE_MS <= self.world.now:
            self._send(self.current)
        elif not self.resend_planned:
            self.resend_planned = True
            self._later(self.sent_at + THROTTLE_MS - self.world.now, lambda: self._send(self.current))

    def _send(self, index: int) -> None:
        self.resend_planned = False
        self.sent_at = self.world.now
        if self.by_room:
            indexes = sorted(self.keys) if self.generation.key_history else [index]
            self.world.send_room_key(self, [(i, self.keys[i]) for i in indexes])
        else:
            self.world.send_to_device(self, index, self.keys[index], list(self.members))


@dataclass
class ModernClient(Client):
    """`RTCEncryptionManager`: leaves rotate at once, joins share a young key and rotate an old one, one at a time."""

    key: MediaKey | None = None
    index: int = 0
    made_at: int = 0
    shared: dict[Device, int] = field(default_factory=dict)
    busy: bool = False
    again: bool = False
    restart: bool = False
    must_rotate: bool = False

    def join(self, stint: Stint) -> None:
        """Begin afresh at index 0; the key goes out with the first membership update."""
        super().join(stint)
        self.key = None
        self.shared = {}
        self.busy = self.again = self.restart = self.must_rotate = False

    def see_membership(self, device: Device, since: int | None) -> None:
        """Make sure that everybody has the key: as long as the process lives, call left or not."""
        super().see_membership(device, since)
        if not self.alive or (not self.joined and self.key is None):
            return
        if device == self.device and since is None:
            self.must_rotate = True
        self._ensure()

    def transport_changed(self) -> None:
        """Hand out again to all: the same key if it is young, else a new one."""
        if self.busy:
            self.restart = self.again = True
        else:
            self.shared = {}
            self._ensure()

    def _ensure(self) -> None:
        if self.busy:
            self.again = True
            return
        if self.key is None:
            self._make_key(0)
        targets = dict(self.members)
        shared = {device: since for device, since in self.shared.items() if targets.get(device, since) == since}
        joiners = [device for device in targets if device not in shared]
        grace = self.generation.grace_ms
        if self.must_rotate or any(device not in targets for device in shared):
            changed = True
        elif joiners:
            changed = grace is not None and self.world.now - self.made_at >= grace
        else:
            return
        if changed:
            self._make_key((self.index + 1) % self.generation.indexes)
        self.must_rotate = False
        self.busy = True
        self.shared = {} if changed else shared
        self._hand_out({device: targets[device] for device in (targets if changed else joiners)}, changed=changed)

    def _make_key(self, index: int) -> None:
        self.key = self.world.new_key(padded=True)
        self.index = index
        self.made_at = self.world.now

    def _hand_out(self, targets: dict[Device, int], *, changed: bool) -> None:
        assert self.key is not None
        if not self.by_room and targets and self.host_fails_at is not None and self.world.now >= self.host_fails_at:
            self.by_room = self.restart = self.again = True
            self.world.note_switch(self, None, None)
        if self.by_room:
            self.world.send_room_key(self, [(self.index, self.key)])  # nobody there to hear it, even
        else:
            self.world.send_to_device(self, self.index, self.key, list(targets))
        self.shared |= targets
        self._later(self.world.sealing_ms() + (USE_KEY_MS if changed else 0), self._handed_out)

    def _handed_out(self) -> None:
        self.busy = False
        if self.restart:
            self.restart = False
            self.shared = {}
        if self.again:
            self.again = False
            self._ensure()
