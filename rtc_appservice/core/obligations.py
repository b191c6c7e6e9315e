"""
Stage 5: who owed whom a media key by to-device, and what became of it.

Owed when R joins (by every S present), when S joins (to every R present), and when somebody leaves (a new
key, by every S that stays to every R that stays). Every obligation ends in exactly one outcome.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core.attribution import CallTraffic, Delivery, RoomKeySeen
from rtc_appservice.core.model import DeviceId, EventId, Evidence, Outcome, ServerName, Settings, UserId
from rtc_appservice.core.stints import DeviceStint

#: A delivery may overtake the membership that made it due.
EARLY = timedelta(seconds=5)
#: Excuse: Element Call manages keys only in encrypted rooms, and none were seen.
KEYS_OFF = "key_management_off"


@dataclass(slots=True, frozen=True)
class Obligation:
    """One key owed by one stint to another, with its outcome."""

    sender: DeviceStint
    recipient: DeviceStint
    owed_at: datetime
    moment: str  #: `join` or `leave`
    because_of: EventId | str  #: identity of the stint that joined or left
    outcome: Outcome
    excuse: str | None = None
    met_at: datetime | None = None
    evidence: Evidence = Evidence.INFERRED


@dataclass(slots=True, frozen=True)
class Sight:
    """What could have shown a to-device key, and how keys are handled in the call."""

    homeserver: ServerName
    envelopes: bool
    keys_managed: bool
    witnesses: frozenset[tuple[UserId, DeviceId]]  #: our own devices that read loss-free


class _Pairs:
    """Deliveries and room keys of a call, ready to be asked by stint."""

    def __init__(self, call: CallTraffic) -> None:
        self._deliveries: dict[tuple[int, int], list[Delivery]] = defaultdict(list)
        for delivery in call.deliveries:
            if not delivery.after_leave:
                self._deliveries[(id(delivery.stint), id(delivery.recipient))].append(delivery)
        for found in self._deliveries.values():
            found.sort(key=lambda delivery: (delivery.at, delivery.observation.identity))
        self._room_keys: dict[int, list[RoomKeySeen]] = defaultdict(list)
        for key in call.room_keys:
            if key.stint is not None and not key.after_leave:
                self._room_keys[id(key.stint)].append(key)

    def first_delivery(self, sender: DeviceStint, recipient: DeviceStint, since: datetime) -> Delivery | None:
        found = self._deliveries.get((id(sender), id(recipient)), [])
        position = bisect_left(found, since, key=lambda delivery: delivery.at)
        return found[position] if position < len(found) else None

    def first_room_key(self, sender: DeviceStint, since: datetime | None = None) -> RoomKeySeen | None:
        found = self._room_keys.get(id(sender), [])
        position = 0 if since is None else bisect_left(found, since, key=lambda key: key.at)
        return found[position] if position < len(found) else None


def obligations(
    call: CallTraffic,
    sight: Sight,
    room_only: frozenset[tuple[UserId, DeviceId]],
    cannot_send: frozenset[tuple[UserId, DeviceId]],
    watermark_at: datetime,
    settings: Settings,
) -> Iterator[Obligation]:
    """
    Yield every obligation of a call with its outcome at the watermark.

    `room_only` devices owe by room event from the start; those in `cannot_send` could not, or gave up.
    """
    pairs = _Pairs(call)
    grace = timedelta(seconds=settings.grace_seconds)
    horizon = timedelta(seconds=settings.horizon_seconds)
    for moment, owed_at, because_of, sender, recipient in _owed(call.span.stints):
        outcome, excuse, met_at, evidence = _outcome(
            pairs, sight, room_only, cannot_send, watermark_at, grace, horizon, moment, owed_at, sender, recipient
        )
        yield Obligation(sender, recipient, owed_at, moment, because_of, outcome, excuse, met_at, evidence)


def _owed(stints: list[DeviceStint]) -> Iterator[tuple[str, datetime, str, DeviceStint, DeviceStint]]:
    """Yield (moment, time, cause, sender, recipient), both alive at the time, in order of time."""
    readable = [stint for stint in stints if not stint.sealed]
    moments = [(stint.joined_at, 1, stint.opened_by.identity, stint) for stint in readable]
    moments += [(stint.left_at, 0, stint.opened_by.identity, stint) for stint in readable if stint.left_at is not None]
    live: dict[int, DeviceStint] = {}
    for at, is_join, identity, stint in sorted(moments, key=lambda moment: moment[:3]):
        if not is_join:
            live.pop(id(stint), None)
            staying = list(live.values())
            for sender in staying:
                for recipient in staying:
                    if sender is not recipient:
                        yield "leave", at, identity, sender, recipient
            continue
        if stint.left_at is not None and stint.left_at <= at:
            continue  # it ended as it began
        for other in live.values():
            yield "join", at, identity, other, stint
            yield "join", at, identity, stint, other
        live[id(stint)] = stint


def _outcome(
    pairs: _Pairs,
    sight: Sight,
    room_only: frozenset[tuple[UserId, DeviceId]],
    cannot_send: frozenset[tuple[UserId, DeviceId]],
    watermark_at: datetime,
    grace: timedelta,
    horizon: timedelta,
    moment: str,
    owed_at: datetime,
    sender: DeviceStint,
    recipient: DeviceStint,
) -> tuple[Outcome, str | None, datetime | None, Evidence]:
    since = owed_at - EARLY if moment == "join" else owed_at
    delivery = pairs.first_delivery(sender, recipient, since)
    if delivery is not None and delivery.at <= owed_at + horizon:
        met = Outcome.DELIVERED if delivery.at <= owed_at + grace else Outcome.LATE
        return met, None, delivery.at, delivery.evidence
    device = sender.device
    first_room_key = pairs.first_room_key(sender)
    if device in room_only or (
        first_room_key is not None and first_room_key.at < owed_at and device not in cannot_send
    ):
        evidence = first_room_key.evidence if first_room_key is not None else Evidence.INFERRED
        return Outcome.ROOM_EVENT, None, None, evidence
    covering = pairs.first_room_key(sender, since)
    in_time = covering is not None and covering.at <= owed_at + horizon
    if covering is not None and in_time and (device in cannot_send or recipient.device in sight.witnesses):
        return Outcome.RECOVERED_BY_ROOM_EVENT, None, covering.at, covering.evidence
    if not sight.keys_managed:
        return Outcome.EXCUSED, KEYS_OFF, None, Evidence.INFERRED
    if _gone_by(sender, owed_at + grace) or _gone_by(recipient, owed_at + grace):
        return Outcome.EXCUSED, "gone_before_grace", None, Evidence.DIRECT
    if watermark_at < owed_at + horizon:
        return Outcome.PENDING, None, None, Evidence.INFERRED
    if recipient.device in sight.witnesses:
        gone = _gone_by(sender, owed_at + horizon) or _gone_by(recipient, owed_at + horizon)
        return (Outcome.UNCONFIRMED if gone else Outcome.MISSING), None, None, Evidence.DIRECT
    if not sight.envelopes or not recipient.user_id.endswith(":" + sight.homeserver):
        return Outcome.UNOBSERVABLE, None, None, Evidence.INFERRED
    return Outcome.UNCONFIRMED, None, None, Evidence.INFERRED


def _gone_by(stint: DeviceStint, at: datetime) -> bool:
    return stint.left_at is not None and stint.left_at <= at


def outcome_counts(found: Mapping[Outcome, int]) -> dict[str, int]:
    """Give the counts by outcome name, every outcome named."""
    return {outcome.value: found.get(outcome, 0) for outcome in Outcome}
