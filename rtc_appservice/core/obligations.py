"""
Stage 5: who owed whom a media key by to-device, and what became of it.

Owed when R joins (by every S present), when S joins (to every R present), and when somebody leaves (a new
key, by every S that stays to every R that stays). Every obligation ends in exactly one outcome.

A leave in a call of k makes k(k-1) obligations, so those of one sender that end alike are kept as one group: the
work at each moment grows with k and the deliveries near it, not with k squared.
"""

from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core.model import Settings
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.traffic import CallTraffic, Delivery, RoomKeySeen
from rtc_appservice.core.words import Device, Evidence, Outcome, ServerName

#: A delivery may overtake the membership that made it due.
EARLY = timedelta(seconds=5)
#: Excuse: a device of ours watches, and sends no keys.
WITNESS = "witness"
#: Excuse: Element Call manages keys only in encrypted rooms, and none were seen.
KEYS_OFF = "key_management_off"


@dataclass(slots=True, frozen=True)
class Moment:
    """What made keys owed: a join or a leave."""

    kind: str  #: `join` or `leave`
    at: datetime
    because_of: str  #: identity of the event that opened the stint which joined or left


#: A moment with (those owed a key, those who owe it).
Change = tuple[Moment, list[tuple[Sequence[DeviceStint], Sequence[DeviceStint]]]]


@dataclass(slots=True, frozen=True)
class ObligationGroup:
    """The obligations of one sender at one moment that ended alike."""

    moment: Moment
    sender: DeviceStint
    among: Sequence[DeviceStint]
    ids: frozenset[int]  #: Python ids of those among them to whom the key was owed
    outcome: Outcome
    excuse: str | None = None
    met_at: datetime | None = None
    evidence: Evidence = Evidence.INFERRED

    def recipients(self) -> list[DeviceStint]:
        """Give the stints the key was owed to."""
        return [stint for stint in self.among if id(stint) in self.ids]


@dataclass(slots=True, frozen=True)
class Sight:
    """What could have shown a to-device key, and how keys are handled in the call."""

    homeserver: ServerName
    envelopes: bool
    gaps: tuple[Gap, ...]  #: times in which something was not seen
    keys_managed: bool
    witnesses: frozenset[Device]  #: our own devices: what is sent to them is read
    loss_free: bool  #: and none of it can have been lost on the way
    room_only: frozenset[int]  #: Python ids of stints that owe by room event from the start
    cannot_send: frozenset[int]  #: … of those that could not send by to-device, or gave it up
    watermark_at: datetime
    settings: Settings


def _deliveries(
    call: CallTraffic, sender: DeviceStint, recipients: frozenset[int], since: datetime
) -> Iterator[Delivery]:
    """Yield the first delivery since a time for each of the recipients that had one."""
    of_sender = call.deliveries_between.get(id(sender))
    if not of_sender:
        return
    for recipient in of_sender.keys() & recipients:
        found = of_sender[recipient]
        position = bisect_left(found, since, key=lambda delivery: delivery.at)
        if position < len(found):
            yield found[position]


def _room_key(call: CallTraffic, sender: DeviceStint, since: datetime | None = None) -> RoomKeySeen | None:
    """Give the sender's first room key, or its first since a time."""
    found = call.keys_in_stint.get(id(sender), [])
    position = 0 if since is None else bisect_left(found, since, key=lambda key: key.at)
    return found[position] if position < len(found) else None


class _Owed:
    """Those who may be owed a key at a moment, with what is the same for every sender."""

    def __init__(self, sight: Sight, moment: Moment, among: Sequence[DeviceStint]) -> None:
        domain = ":" + sight.homeserver
        self.moment = moment
        self.among = among
        self.grace = moment.at + timedelta(seconds=sight.settings.grace_seconds)
        self.horizon = moment.at + timedelta(seconds=sight.settings.horizon_seconds)
        self.since = moment.at - EARLY if moment.kind == "join" else moment.at
        self.ids = frozenset(id(stint) for stint in among)
        self.in_gap = any(
            (gap.started_at is None or gap.started_at <= self.horizon)
            and (gap.ended_at is None or gap.ended_at >= moment.at)
            for gap in sight.gaps
        )
        self.gone = frozenset(id(stint) for stint in among if _gone_by(stint, self.grace))
        self.remote = frozenset(id(stint) for stint in among if not stint.user_id.endswith(domain))
        self.read = frozenset(id(stint) for stint in among if stint.device in sight.witnesses)
        self.witnesses = self.read if sight.loss_free else frozenset()
        self.staying_witnesses = self.witnesses - {id(stint) for stint in among if _gone_by(stint, self.horizon)}


def obligations(call: CallTraffic, sight: Sight) -> Iterator[ObligationGroup]:
    """Yield every obligation of a call, grouped, with its outcome at the watermark, in order of time."""
    for change in moments(call.span.stints):
        yield from at_moment(call, sight, change)


def at_moment(
    call: CallTraffic, sight: Sight, change: Change, only: Container[int] | None = None
) -> Iterator[ObligationGroup]:
    """Yield the obligations of one moment, of all who owe a key then or only of some stints (Python ids)."""
    moment, owed = change
    for among, senders in owed:
        owing = senders if only is None else [sender for sender in senders if id(sender) in only]
        if owing:
            owed_to = _Owed(sight, moment, among)
            for sender in owing:
                yield from _groups(call, sight, owed_to, sender)


def moments(stints: Sequence[DeviceStint], passed_over: int = 0) -> Iterator[Change]:
    """Yield each moment, but for the first ones, with (those owed a key, those who owe it), all alive at the time."""
    readable = [stint for stint in stints if not stint.sealed]
    changes = [(stint.joined_at, 1, stint.opened_by.identity, stint) for stint in readable]
    changes += [(stint.left_at, 0, stint.opened_by.identity, stint) for stint in readable if stint.left_at is not None]
    live: dict[int, DeviceStint] = {}
    count = 0
    for at, is_join, identity, stint in sorted(changes, key=lambda change: change[:3]):
        if not is_join:
            if live.pop(id(stint), None) is None:
                continue
        elif stint.left_at is not None and stint.left_at <= at:
            continue  # it ended as it began
        count += 1
        if count > passed_over:
            present = tuple(live.values())
            if is_join:
                yield Moment("join", at, identity), [((stint,), present), (present, (stint,))]
            else:
                yield Moment("leave", at, identity), [(present, present)]
        if is_join:
            live[id(stint)] = stint


def _groups(call: CallTraffic, sight: Sight, owed: _Owed, sender: DeviceStint) -> Iterator[ObligationGroup]:
    left = owed.ids - {id(sender)}
    if not left:
        return

    def group(
        ids: frozenset[int],
        outcome: Outcome,
        excuse: str | None = None,
        met_at: datetime | None = None,
        evidence: Evidence = Evidence.INFERRED,
    ) -> ObligationGroup:
        nonlocal left
        left -= ids
        return ObligationGroup(owed.moment, sender, owed.among, ids, outcome, excuse, met_at, evidence)

    for delivery in _deliveries(call, sender, left, owed.since):
        if delivery.at <= owed.horizon:
            met = Outcome.DELIVERED if delivery.at <= owed.grace else Outcome.LATE
            yield group(frozenset((id(delivery.recipient),)), met, met_at=delivery.at, evidence=delivery.evidence)
    if not left:
        return
    if sender.device in sight.witnesses:
        yield group(left, Outcome.EXCUSED, WITNESS, evidence=Evidence.DIRECT)
        return
    first = _room_key(call, sender)
    in_room_mode = first is not None and first.at < owed.moment.at and id(sender) not in sight.cannot_send
    if id(sender) in sight.room_only or in_room_mode:
        yield group(left, Outcome.ROOM_EVENT, evidence=Evidence.INFERRED if first is None else first.evidence)
        return
    covering = _room_key(call, sender, owed.since)
    if covering is not None and covering.at <= owed.horizon:
        recovered = left if id(sender) in sight.cannot_send else left & owed.witnesses
        if recovered:
            outcome = Outcome.RECOVERED_BY_ROOM_EVENT
            yield group(recovered, outcome, met_at=covering.at, evidence=covering.evidence)
    if left and not sight.keys_managed:
        yield group(left, Outcome.EXCUSED, KEYS_OFF)
    gone = left if _gone_by(sender, owed.grace) else left & owed.gone
    if gone:
        yield group(gone, Outcome.EXCUSED, "gone_before_grace", evidence=Evidence.DIRECT)
    if left and sight.watermark_at < owed.horizon:
        yield group(left, Outcome.PENDING)
    missing = frozenset() if owed.in_gap or _gone_by(sender, owed.horizon) else left & owed.staying_witnesses
    if missing:
        yield group(missing, Outcome.MISSING, evidence=Evidence.DIRECT)
    unseen = left if owed.in_gap else left & owed.remote if sight.envelopes else left - owed.read
    if unseen:
        yield group(unseen, Outcome.UNOBSERVABLE)
    if left:
        yield group(left, Outcome.UNCONFIRMED)


def _gone_by(stint: DeviceStint, at: datetime) -> bool:
    return stint.left_at is not None and stint.left_at <= at
