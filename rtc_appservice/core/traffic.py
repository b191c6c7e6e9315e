"""
Stage 4: the keys of one call, indexed as they are added, so that no rule has to go through all of them.

Everything is a list that only grows, in order of time. What is too young to be final is added on trial and taken back.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TypeVar

from rtc_appservice.core.observed import KeyMark, Observation, Rejected, RoomKey, ToDeviceKey
from rtc_appservice.core.stints import CallSpan, DeviceStint, SpanTimes
from rtc_appservice.core.words import Device, DeviceId, DeviceTrust, Evidence, FallbackCause

T = TypeVar("T")

#: Messages of one distribution leave together.
ONE_DISTRIBUTION = timedelta(seconds=1)


@dataclass(slots=True)
class RoomKeySeen:
    """A room key with its place: the stint it belongs to, None if stray."""

    observation: Observation
    at: datetime
    sender: Device
    keys: tuple[KeyMark, ...]  #: empty where the event stayed sealed
    evidence: Evidence
    stint: DeviceStint | None
    after_leave: bool
    has_sent_ts: bool | None = None
    resend: bool = False


@dataclass(slots=True)
class Delivery:
    """A to-device message that handed a key to one device of the call."""

    observation: Observation
    at: datetime
    stint: DeviceStint  #: the sender's
    recipient: DeviceStint
    evidence: Evidence
    after_leave: bool
    variant: str | None = None  #: content variant its length tells
    distance: int = 0  #: base64 characters from the predicted length
    fits_moment: bool = True  #: somebody had joined or left just before: a key was owed
    keys: tuple[KeyMark, ...] = ()


@dataclass(slots=True)
class KeyGroup:
    """The room keys of one stint of a device, or its stray ones."""

    keys: list[RoomKeySeen] = field(default_factory=list)
    graded: dict[Evidence, list[RoomKeySeen]] = field(default_factory=lambda: defaultdict(list))
    #: The cause, once nothing can change it, with what it was decided by.
    decided: "Decided | None" = None

    def grades(self) -> list[Evidence]:
        """Give the grades of evidence of its keys, strongest first."""
        return [grade for grade in Evidence if self.graded.get(grade)]


@dataclass(slots=True, frozen=True)
class Decided:
    """What made a device use a room key."""

    cause: FallbackCause
    candidates: tuple[FallbackCause, ...]
    foreign: RoomKeySeen | None  #: the first one of another device it can have heard before
    by: object = None


#: What is counted: `clear`, `history` or `malformed` by sender, day and key transport; `untrusted` by sender and trust;
#: `mismatch` by sender and claimed device.
Counted = tuple[str, Device, date | None, str | None]


class CallTraffic:
    """A call span with the keys that belong to it, in order of time."""

    def __init__(self, span: CallSpan) -> None:
        """Begin without keys."""
        self.span = span
        self.times = SpanTimes(span.stints)
        self.room_keys: list[RoomKeySeen] = []
        self.deliveries: list[Delivery] = []
        self.unclassified: list[Observation] = []
        #: Unreadable events of live call members that cannot be told from a key event.
        self.unreadable: list[Observation] = []
        self.resends: list[RoomKeySeen] = []
        self.after_leave: list[Delivery] = []
        self.low_confidence: list[Delivery] = []
        self.keys_of: dict[Device, list[RoomKeySeen]] = defaultdict(list)
        self.keys_after_leave_of: dict[Device, list[RoomKeySeen]] = defaultdict(list)
        self.deliveries_of: dict[Device, list[Delivery]] = defaultdict(list)
        #: Deliveries whose keys were read.
        self.read_from: dict[Device, list[Delivery]] = defaultdict(list)
        self.after_leave_of: dict[Device, list[Delivery]] = defaultdict(list)
        self.deliveries_by_grade: dict[Evidence, list[Delivery]] = defaultdict(list)
        #: Deliveries of one sender that left together.
        self.bundles: list[list[Delivery]] = []
        self._bundles_of: dict[Device, list[list[Delivery]]] = defaultdict(list)
        #: By device and Python id of its stint.
        self._groups: dict[tuple[Device, int | None], KeyGroup] = defaultdict(KeyGroup)
        #: Sent in call, by device.
        self.room_mode: dict[Device, list[RoomKeySeen]] = defaultdict(list)
        #: By Python id of a stint: times of new keys; keys and deliveries that can meet what it owes.
        self.new_keys: dict[int, list[datetime]] = defaultdict(list)
        self.keys_in_stint: dict[int, list[RoomKeySeen]] = defaultdict(list)
        self.deliveries_between: dict[int, dict[int, list[Delivery]]] = defaultdict(lambda: defaultdict(list))
        #: What the keys and the deliveries of a device tell of its generation, each mark once.
        self.key_marks: dict[Device, list[str]] = defaultdict(list)
        self.delivery_marks: dict[Device, list[str]] = defaultdict(list)
        self.counted: dict[Counted, list[Observation]] = defaultdict(list)
        self.decrypted: dict[Counted, list[Observation]] = defaultdict(list)
        self._seen: dict[int, set[tuple[int, str | None]]] = defaultdict(set)
        self._trial: list[list[object]] | None = None
        self._trial_seen: list[tuple[int, tuple[int, str | None]]] = []

    def groups(self) -> Iterator[KeyGroup]:
        """Give the room keys by device stint, in order of their first ones."""
        found = [group for group in self._groups.values() if group.keys]
        yield from sorted(found, key=lambda group: (group.keys[0].at, group.keys[0].observation.identity))

    def add_key(self, key: RoomKeySeen) -> None:
        """Add a room key; they come in order of time."""
        key.resend = self._is_resend(key)
        self._append(self.room_keys, key)
        self._append(self.keys_of[key.sender], key)
        group = self._groups[(key.sender, None if key.stint is None else id(key.stint))]
        self._append(group.keys, key)
        self._append(group.graded[key.evidence], key)
        if key.resend:
            self._append(self.resends, key)
        if key.after_leave:
            self._append(self.keys_after_leave_of[key.sender], key)
        if key.stint is not None:
            if not key.resend:
                self._append(self.new_keys[id(key.stint)], key.at)
            if not key.after_leave:
                self._append(self.room_mode[key.sender], key)
                self._append(self.keys_in_stint[id(key.stint)], key)
        if isinstance(key.observation.body, RoomKey):
            in_history: Counted = ("history", key.sender, key.at.date(), "room_event")
            self._append(self.counted[in_history], key.observation)
            if key.observation.body.encrypted:
                self._append(self.decrypted[in_history], key.observation)
            else:
                self._append(self.counted[("clear", *in_history[1:])], key.observation)
        if key.keys:
            marks = ["padded_key" if any(mark.padded for mark in key.keys) else "unpadded_key"]
            if len(key.keys) > 1:
                marks.append("several_keys")
            if key.has_sent_ts is not None:
                marks.append("sent_ts" if key.has_sent_ts else "no_sent_ts")
            self._mark(self.key_marks[key.sender], marks)

    def add_delivery(self, delivery: Delivery) -> None:
        """Add a delivery; they come in order of time."""
        device = delivery.stint.device
        self._append(self.deliveries, delivery)
        self._append(self.deliveries_of[device], delivery)
        self._append(self.deliveries_by_grade[delivery.evidence], delivery)
        if delivery.keys:
            self._append(self.read_from[device], delivery)
        if delivery.after_leave:
            self._append(self.after_leave, delivery)
            self._append(self.after_leave_of[device], delivery)
        else:
            self._append(self.deliveries_between[id(delivery.stint)][id(delivery.recipient)], delivery)
        if not delivery.fits_moment:
            self._append(self.low_confidence, delivery)
        bundles = self._bundles_of[device]
        if bundles and delivery.at - bundles[-1][0].at <= ONE_DISTRIBUTION:
            self._append(bundles[-1], delivery)
        else:
            bundle: list[Delivery] = []
            self._append(bundles, bundle)
            self._append(self.bundles, bundle)
            self._append(bundle, delivery)
        variant = [] if delivery.variant is None else [delivery.variant.removesuffix("+signed").removesuffix("_user")]
        self._mark(self.delivery_marks[device], ["to_device", *variant])

    def add_unclassified(self, observation: Observation) -> None:
        """Add a message at a moment that owed a key whose length fits none."""
        self._append(self.unclassified, observation)

    def add_unreadable(self, observation: Observation) -> None:
        """Add an event that cannot be told from a key event."""
        self._append(self.unreadable, observation)

    def count(self, observation: Observation) -> None:
        """Count what is told once per sender: to-device keys in clear, devices not to trust, malformed events."""
        body, day = observation.body, observation.event_at.date()
        if isinstance(body, RoomKey | ToDeviceKey) and body.encrypted:
            claimed = body.device_id if isinstance(body, RoomKey) else body.claimed_device_id
            device = (body.sender, body.sender_device_id or claimed or DeviceId(""))
            if body.trust in (DeviceTrust.UNSIGNED, DeviceTrust.INVALID):
                self._append(self.counted[("untrusted", device, None, body.trust)], observation)
            if body.device_matches is False:
                self._append(self.counted[("mismatch", device, None, claimed)], observation)
        elif isinstance(body, ToDeviceKey):
            claimed = body.claimed_device_id or DeviceId("")
            self._append(self.counted[("clear", (body.sender, claimed), day, "to_device")], observation)
        elif isinstance(body, Rejected) and body.reason == "malformed" and body.sender is not None:
            self._append(self.counted[("malformed", (body.sender, DeviceId("")), day, "")], observation)

    def begin_trial(self) -> None:
        """Take whatever is added from now on back at the end of the trial."""
        self._trial = []

    def end_trial(self) -> None:
        """Take back what was added on trial."""
        for target in reversed(self._trial or ()):
            target.pop()
        for stint, mark in self._trial_seen:
            self._seen[stint].discard(mark)
        self._trial = None
        self._trial_seen.clear()

    def _append(self, target: list[T], item: T) -> None:
        target.append(item)
        if self._trial is not None:
            self._trial.append(target)  # type: ignore[arg-type]

    def _mark(self, marks: list[str], found: list[str]) -> None:
        for mark in found:
            if mark not in marks:
                self._append(marks, mark)

    def _is_resend(self, key: RoomKeySeen) -> bool:
        """A room key that repeats index and tag of an earlier one of its stint is a resend."""
        stint = id(key.stint)
        seen = self._seen[stint]
        new = dict.fromkeys((mark.index, mark.tag) for mark in key.keys if (mark.index, mark.tag) not in seen)
        for mark in new:
            seen.add(mark)
            if self._trial is not None:
                self._trial_seen.append((stint, mark))
        return bool(key.keys) and not new
