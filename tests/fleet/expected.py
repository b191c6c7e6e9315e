"""
What a report should say of a played call, worked out from the simulator's log and the rules of the design alone.

Where the log knows more than any observer can (a message that was lost, a process that crashed), what is expected is
still what happened; the test names the reason for each difference.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from .generations import GENERATIONS, Device
from .truth import RoomKeySent, Stint, ToDeviceSent, Truth

GRACE_MS = 5_000
HORIZON_MS = 60_000
EARLY_MS = 5_000  #: to-device overtakes memberships
NO_REACTION_MS = 5_000
DISTRIBUTION_MS = 1_000
SILENT_OBLIGATIONS = 6


@dataclass(frozen=True)
class ExpectedFallback:
    """A device's first room key in a stint, with its cause."""

    device: Device
    at: int
    cause: str
    caused_by: Device | None
    room_keys: int
    trigger: str | None = None  #: the room key event that made it switch


@dataclass(frozen=True)
class Owed:
    """A key owed: the expected outcome, and whether the key left late, seen or unseen."""

    sender: Stint
    recipient: Stint
    at: int
    moment: str
    outcome: str
    late: bool


@dataclass
class Call:
    """One call of the log: a maximal span with members."""

    truth: Truth
    stints: list[Stint]
    started_at: int
    ended_at: int | None
    room_keys: list[RoomKeySent] = field(default_factory=list)
    sent: list[ToDeviceSent] = field(default_factory=list)  #: seen by the appservice or not

    @property
    def deliveries(self) -> list[ToDeviceSent]:
        """Give the to-device keys the appservice got."""
        return [message for message in self.sent if message.received_at is not None]

    def after_leave(self) -> int:
        """Count the deliveries of devices that had no live stint when they came."""
        return sum(not self._was_in(message.sender, message.received_at or 0) for message in self.deliveries)

    def _was_in(self, device: Device, at: int) -> bool:
        own = [stint for stint in self.truth.stints if stint.device == device]
        return any(_live(stint, at) for stint in own) or all(stint.joined_at > at for stint in own)

    def distributions(self) -> int:
        """Count the acts of handing out by to-device: what one device sends within a second is one."""
        acts = 0
        first: dict[Device, int] = {}
        for message in sorted(self.deliveries, key=lambda m: m.received_at or 0):
            at = message.received_at or 0
            if message.sender not in first or at - first[message.sender] > DISTRIBUTION_MS:
                first[message.sender] = at
                acts += 1
        return acts

    def fallbacks(self) -> list[ExpectedFallback]:
        """Give the first room key of each stint, with its cause."""
        grouped: dict[tuple[Device, int], list[RoomKeySent]] = defaultdict(list)
        for key in self.room_keys:
            grouped[(key.device, id(key.stint))].append(key)
        return [self._fallback(keys) for keys in grouped.values()]

    def _fallback(self, keys: list[RoomKeySent]) -> ExpectedFallback:
        first = keys[0]
        cause = self.cause(first)
        if cause != "followed":
            return ExpectedFallback(first.device, first.at, cause, None, len(keys))
        switch = next(switch for switch in self.truth.switches if switch.stint is first.stint)
        heard = self._heard(first)
        if switch.trigger is None and heard is not None:
            return ExpectedFallback(first.device, first.at, cause, heard.device, len(keys), heard.event_id)
        return ExpectedFallback(first.device, first.at, cause, switch.trigger_device, len(keys), switch.trigger)

    def cause(self, first: RoomKeySent) -> str:
        """Give the cause of a stint's first room key, by what the client is and did."""
        stint = first.stint
        if stint is None:
            return "stray"
        if not any(stint is own for own in self.stints) or first.after_leave or _ended(stint, first.at):
            return "after_leave"
        if not GENERATIONS[stint.label].to_device:
            return "room_only_client"
        switch = next(switch for switch in self.truth.switches if switch.stint is stint)
        if switch.trigger is not None or self._heard(first) is not None:
            return "followed"  # also where its host refused: it would have left to-device anyway
        before = (message.sender == first.device and message.at < first.at for message in self.truth.call_keys)
        return "gave_up" if any(before) else "host_cannot_send"

    def _heard(self, first: RoomKeySent) -> RoomKeySent | None:
        """Give the first room key of another that came between a stint's beginning and its own first room key."""
        since = first.at if first.stint is None else first.stint.joined_at
        return next((k for k in self.room_keys if k.device != first.device and since <= k.at < first.at), None)

    def obligations(self) -> list[Owed]:
        """Give every key owed, with its outcome."""
        by_pair: dict[tuple[int, int], list[ToDeviceSent]] = defaultdict(list)
        for message in self.sent:
            recipient = self.recipient_of(message)
            if recipient is not None and not _ended(message.stint, message.received_at or message.at):
                by_pair[(id(message.stint), id(recipient))].append(message)
        keys: dict[int, list[RoomKeySent]] = defaultdict(list)
        for key in self.room_keys:
            if key.stint is not None and not _ended(key.stint, key.at):
                keys[id(key.stint)].append(key)
        cause = {id(key[0].stint): self.cause(key[0]) for key in keys.values()}
        owed = []
        for moment, at, sender, recipient in self._owed():
            pair = by_pair.get((id(sender), id(recipient)), [])
            own = keys.get(id(sender), [])
            outcome, late = self._outcome(moment, at, sender, recipient, pair, own, cause.get(id(sender), ""))
            owed.append(Owed(sender, recipient, at, moment, outcome, late))
        return owed

    def recipient_of(self, message: ToDeviceSent) -> Stint | None:
        """Give the recipient's stint: live when the message came, or nearly."""
        at = message.received_at or message.at
        own = [stint for stint in self.stints if stint.device == message.recipient]
        near = [s for s in own if s.joined_at - EARLY_MS <= at and (s.left_at is None or at <= s.left_at + EARLY_MS)]
        return next((stint for stint in near if _live(stint, at)), near[0] if near else None)

    def _owed(self) -> Iterator[tuple[str, int, Stint, Stint]]:
        moments = [(stint.joined_at, True, stint) for stint in self.stints]
        moments += [(stint.left_at, False, stint) for stint in self.stints if stint.left_at is not None]
        present: list[Stint] = []
        for at, joins, stint in sorted(moments, key=lambda moment: moment[:2]):
            if joins:
                for other in present:
                    yield "join", at, other, stint
                    yield "join", at, stint, other
                present.append(stint)
            else:
                present = [other for other in present if other is not stint]
                for sender in present:
                    for recipient in present:
                        if sender is not recipient:
                            yield "leave", at, sender, recipient

    def _outcome(
        self,
        moment: str,
        at: int,
        sender: Stint,
        recipient: Stint,
        pair: list[ToDeviceSent],
        keys: list[RoomKeySent],
        cause: str,
    ) -> tuple[str, bool]:
        since = at - EARLY_MS if moment == "join" else at
        seen = [m.received_at for m in pair if m.received_at is not None and since <= m.received_at <= at + HORIZON_MS]
        sent = [m.at for m in pair if since <= m.at <= at + HORIZON_MS]
        late = bool(sent) and min(sent) > at + GRACE_MS
        if seen:
            return ("delivered" if min(seen) <= at + GRACE_MS else "late"), late
        blocked = cause in ("host_cannot_send", "gave_up")
        if not GENERATIONS[sender.label].to_device or (keys and keys[0].at < at and not blocked):
            return "room_event", late
        if blocked and any(since <= key.at <= at + HORIZON_MS for key in keys):
            return "recovered_by_room_event", late
        if not self.truth.encrypted and not self.room_keys and not self.deliveries:
            return "excused", late
        if _ended(sender, at + GRACE_MS) or _ended(recipient, at + GRACE_MS):
            return "excused", late
        if self.truth.ended_at < at + HORIZON_MS:
            return "pending", late
        return ("unconfirmed" if recipient.device[0].endswith(":" + self.truth.server) else "unobservable"), late

    def max_participants(self) -> int:
        """Give how many were in the call at once."""
        return max(sum(_live(stint, at) for stint in self.stints) for at in (s.joined_at for s in self.stints))

    def verdict(self, unconfirmed: int) -> str:
        """Give the verdict from what the appservice could see."""
        if self.max_participants() < 2:
            return "solo"
        room = any(key.stint is not None and any(key.stint is own for own in self.stints) for key in self.room_keys)
        if room:
            return "mixed" if self.deliveries else "room_event"
        if self.deliveries:
            return "to_device"
        return "no_keys" if unconfirmed >= SILENT_OBLIGATIONS else "unknown"

    def splits(self) -> set[tuple[Device, Device]]:
        """Give who is in room mode while who reads to-device only, both in the call long enough to matter."""
        found = set()
        for key in self.room_keys:
            if key.stint is None or _ended(key.stint, key.at):
                continue
            for other in self.stints:
                generation = GENERATIONS[other.label]
                deaf = generation.to_device and not generation.smart
                stays = _live(other, key.at) and _live(other, key.at + NO_REACTION_MS)
                if deaf and stays and other.device != key.device:
                    found.add((key.device, other.device))
        return found

    def not_rotated(self) -> set[tuple[Device, int]]:
        """Give who in room mode stayed for the horizon after a leave, not alone, and made no new key."""
        found = set()
        for left in self.stints:
            if left.left_at is None:
                continue
            until = left.left_at + HORIZON_MS
            for stint in self.stints:
                keys = [key for key in self.room_keys if key.stint is stint]
                stays = stint is not left and _live(stint, left.left_at) and _live(stint, until)
                alone = not any(o is not stint and o is not left and _live(o, left.left_at) for o in self.stints)
                if not stays or alone or not any(key.at < left.left_at for key in keys):
                    continue
                old = {key_id for key in keys if key.at < left.left_at for _, key_id in key.keys}
                new = [key for key in keys if left.left_at <= key.at <= until and {k for _, k in key.keys} - old]
                if not new:
                    found.add((stint.device, left.left_at))
        return found

    def room_keys_of(self) -> Counter[Device]:
        """Count the room keys by sender."""
        return Counter(key.device for key in self.room_keys)


def calls_of(truth: Truth) -> list[Call]:
    """Give the calls of a log, each with its keys."""
    calls: list[Call] = []
    for stint in sorted(truth.stints, key=lambda stint: stint.joined_at):
        last = calls[-1] if calls else None
        if last is None or (last.ended_at is not None and stint.joined_at > last.ended_at):
            calls.append(Call(truth, [stint], stint.joined_at, stint.left_at))
            continue
        last.stints.append(stint)
        if last.ended_at is not None:
            last.ended_at = None if stint.left_at is None else max(last.ended_at, stint.left_at)
    for key in sorted(truth.room_keys, key=lambda key: key.at):
        call = _call_of(calls, key)
        if call is not None:
            call.room_keys.append(key)
    for message in truth.call_keys:
        fits = [call for call in calls if call.recipient_of(message) is not None]
        if fits:
            at = message.received_at or message.at
            live = [call for call in fits if any(_live(stint, at) for stint in call.stints)]
            (live or fits)[0].sent.append(message)
    return calls


def _call_of(calls: list[Call], key: RoomKeySent) -> Call | None:
    """A member's key belongs to its stint's call; one sent after leaving, or by a stranger, to the call going on."""
    if key.stint is not None and not key.after_leave:
        return next(call for call in calls if any(key.stint is stint for stint in call.stints))
    live = [c for c in calls if c.started_at <= key.at and (c.ended_at is None or key.at < c.ended_at)]
    ended = [call for call in calls if call.ended_at is not None and call.ended_at <= key.at]
    if live or key.stint is None:
        return live[0] if live else None
    return max(ended, key=lambda call: call.ended_at or 0)


def _live(stint: Stint, at: int) -> bool:
    return stint.joined_at <= at and (stint.left_at is None or at < stint.left_at)


def _ended(stint: Stint, at: int) -> bool:
    return stint.left_at is not None and stint.left_at <= at
