"""
Stages 4 and 5: a room's observations in, its call sessions out.

The same observations give the same sessions for any order of arrival and any duplicates; time comes in as the
watermark. What is stored of this is a cache.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from rtc_appservice.core import findings, obligations, verdict
from rtc_appservice.core.attribution import ONE_DISTRIBUTION, CallTraffic, Delivery, Device, RoomKeySeen, attribute
from rtc_appservice.core.fallback import Context, Occurrence, find_fallbacks
from rtc_appservice.core.generation import infer_generation
from rtc_appservice.core.model import (
    CallId,
    CallReport,
    CallSession,
    DeliveryCounts,
    DeviceId,
    DeviceRef,
    DistributionCounts,
    FallbackCause,
    KeyDistribution,
    KeyTransport,
    ObligationCounts,
    Observation,
    Outcome,
    Participant,
    RoomHistory,
    RoomState,
    Settings,
    Stint,
    StintSpan,
    UserId,
)
from rtc_appservice.core.stints import CallSpan, build_spans, build_stints, in_order

#: Watched this long without a gap, memberships of before have shown themselves or ended (`expires` is 4 h).
WATCHED_LONG_ENOUGH = timedelta(hours=4)
#: Outcomes that become findings.
_NOTABLE = frozenset({Outcome.MISSING, Outcome.RECOVERED_BY_ROOM_EVENT, Outcome.LATE})


def project_room(history: RoomHistory, settings: Settings | None = None) -> list[CallSession]:
    """Project all call sessions of a room, in order of start."""
    settings = settings or Settings()
    observations = in_order(history.observations)
    spans = build_spans(build_stints(observations, history.watermark_at))
    room = _RoomFacts(history, observations)
    to_device_seen = dict(history.to_device_history)
    sessions = []
    for call in attribute(history.room_id, observations, spans):
        session = _project_call(call, history, room, observations, to_device_seen, settings)
        for user_id, device_id, at in session.to_device_seen:
            to_device_seen[(user_id, device_id)] = max(at, to_device_seen.get((user_id, device_id), at))
        sessions.append(session)
    return sessions


def _project_call(
    call: CallTraffic,
    history: RoomHistory,
    room: "_RoomFacts",
    observations: Sequence[Observation],
    to_device_history: Mapping[Device, datetime],
    settings: Settings,
) -> CallSession:
    span = call.span
    call_id = _call_id(history, span)
    beginning_seen = room.beginning_seen(span.started_at)
    fallbacks = find_fallbacks(call, Context(beginning_seen, history.envelopes, to_device_history))
    within = _within(span, observations, settings)
    encrypted = room.encrypted(span)
    counts: Counter[Outcome] = Counter()
    keys_off = 0
    notable = []
    sight = obligations.Sight(
        homeserver=history.homeserver,
        envelopes=history.envelopes,
        keys_managed=encrypted is not False or bool(call.room_keys or call.deliveries),
        witnesses=frozenset(),
        room_only=_devices(fallbacks, FallbackCause.ROOM_ONLY_CLIENT),
        cannot_send=_devices(fallbacks, FallbackCause.HOST_CANNOT_SEND, FallbackCause.GAVE_UP),
        watermark_at=history.watermark_at,
        settings=settings,
    )
    for owed in obligations.obligations(call, sight):
        counts[owed.outcome] += len(owed.ids)
        keys_off += len(owed.ids) if owed.excuse == obligations.KEYS_OFF else 0
        if owed.outcome in _NOTABLE:
            notable.append(owed)
    settle_after = timedelta(seconds=settings.horizon_seconds + settings.late_seconds)
    settled = span.ended_at is not None and history.watermark_at >= span.ended_at + settle_after
    participants = _participants(call, fallbacks)
    coverage = verdict.coverage_of(call, envelopes=history.envelopes, witness=False)
    most = verdict.max_participants(span)
    decided, evidence = verdict.decide(
        call,
        beginning_seen=beginning_seen,
        coverage=coverage,
        participants=most,
        outcomes=counts,
        keys_off=keys_off,
        fallbacks=fallbacks,
    )
    found = findings.find(
        findings.Case(
            call_id=call_id,
            call=call,
            participants=participants,
            fallbacks=fallbacks,
            owed=notable,
            rotations=_rotations(call, readable=not call.unreadable),
            observations=within,
            encrypted_room=encrypted,
            history_visibility=room.visibility(span),
            watermark_at=history.watermark_at,
            settled=settled,
            settings=settings,
        )
    )
    distributions = _distributions(call, call_id)
    report = CallReport(
        call_id=call_id,
        homeserver=history.homeserver,
        room_id=history.room_id,
        slot_id=span.slot_id,
        started_at=span.started_at,
        ended_at=span.ended_at,
        beginning_seen=beginning_seen,
        encrypted_room=encrypted,
        membership_mode=verdict.membership_mode(span),
        coverage=coverage,
        verdict=decided,
        evidence=evidence,
        max_participants=most,
        participants=participants,
        distributions=DistributionCounts(
            room_event=sum(d.key_transport is KeyTransport.ROOM_EVENT for d in distributions),
            to_device=sum(d.key_transport is KeyTransport.TO_DEVICE for d in distributions),
            resends=sum(d.resend for d in distributions),
        ),
        deliveries=DeliveryCounts(
            to_device=len(call.deliveries),
            after_leave=sum(delivery.after_leave for delivery in call.deliveries),
            unclassified=len(call.unclassified),
        ),
        obligations=ObligationCounts(**{outcome.value: counts[outcome] for outcome in Outcome}),
        fallbacks=tuple(occurrence.fallback for occurrence in fallbacks),
        findings=found,
        settled=settled,
    )
    return CallSession(
        report=report,
        distributions=distributions,
        stints=tuple(
            StintSpan(
                room_id=history.room_id,
                slot_id=span.slot_id,
                user_id=user_id,
                device_id=device_id,
                joined_at=stint.joined_at,
                left_at=stint.left_at,
            )
            for (user_id, device_id), stints in span.devices().items()
            for stint in stints
        ),
        to_device_seen=_to_device_seen(call.deliveries),
    )


class _RoomFacts:
    """State of the room over time, as far as it was seen."""

    def __init__(self, history: RoomHistory, observations: Sequence[Observation]) -> None:
        self._history = history
        self._state = [(o.event_at, o.body) for o in observations if isinstance(o.body, RoomState)]
        created = [at for at, body in self._state if body.event_type == "m.room.create"]
        self._seen_since = min((at for at in (*created, history.snapshot_at) if at is not None), default=None)

    def beginning_seen(self, started_at: datetime) -> bool:
        """Watched since the room's creation, read as a snapshot, or watched for 4 h without a gap."""
        since = self._seen_since
        if since is None and self._history.watched_since is not None:
            since = self._history.watched_since + WATCHED_LONG_ENOUGH
        gaps = [gap for gap in self._history.gaps if gap.room_id in (None, self._history.room_id)]
        for gap in gaps:
            if gap.reason != "to_device_lost" and gap.ended_at is not None and gap.ended_at <= started_at:
                until = gap.ended_at + WATCHED_LONG_ENOUGH
                since = until if since is None else max(since, until)
        return since is not None and since <= started_at

    def encrypted(self, span: CallSpan) -> bool | None:
        """True once an encryption event was seen (it stays so); false only if the room was seen from its start."""
        until = span.ended_at
        for at, body in self._state:
            if body.event_type == "m.room.encryption" and (until is None or at <= until):
                return True
        return False if self._seen_since is not None and self._seen_since <= span.started_at else None

    def visibility(self, span: CallSpan) -> str | None:
        """Give the history visibility in force when the call began, if seen."""
        found = [
            body.value
            for at, body in self._state
            if body.event_type == "m.room.history_visibility" and at <= span.started_at
        ]
        return found[-1] if found else None


def _call_id(history: RoomHistory, span: CallSpan) -> CallId:
    parts = (history.homeserver, history.room_id, span.slot_id, span.opened_by.identity)
    return CallId(hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest())


def _within(span: CallSpan, observations: Sequence[Observation], settings: Settings) -> list[Observation]:
    until = None if span.ended_at is None else span.ended_at + timedelta(seconds=settings.horizon_seconds)
    since = span.started_at - timedelta(seconds=10)
    return [o for o in observations if since <= o.event_at and (until is None or o.event_at <= until)]


def _devices(fallbacks: Sequence[Occurrence], *causes: FallbackCause) -> frozenset[Device]:
    return frozenset(occurrence.device for occurrence in fallbacks if occurrence.fallback.cause in causes)


def _participants(call: CallTraffic, fallbacks: Sequence[Occurrence]) -> tuple[Participant, ...]:
    found = []
    for (user_id, device_id), stints in call.span.devices().items():
        generation, confidence, marks = infer_generation((user_id, device_id), stints, call, fallbacks)
        found.append(
            Participant(
                user_id=user_id,
                device_id=device_id,
                stints=tuple(
                    Stint(joined_at=stint.joined_at, left_at=stint.left_at, end_reason=stint.end_reason)
                    for stint in stints
                ),
                generation=generation,
                generation_confidence=confidence,
                generation_marks=marks,
            )
        )
    return tuple(found)


def _distributions(call: CallTraffic, call_id: CallId) -> tuple[KeyDistribution, ...]:
    found = [_room_distribution(key, call, call_id) for key in call.room_keys]
    groups: list[list[Delivery]] = []
    open_of: dict[Device, list[Delivery]] = {}
    for delivery in sorted(call.deliveries, key=lambda d: (d.at, d.observation.identity)):
        device = delivery.stint.device
        group = open_of.get(device)
        if group is None or delivery.at - group[0].at > ONE_DISTRIBUTION:
            group = open_of[device] = []
            groups.append(group)
        group.append(delivery)
    found += [_to_device_distribution(group, call_id) for group in groups]
    return tuple(sorted(found, key=lambda distribution: (distribution.at, distribution.distribution_id)))


def _room_distribution(key: RoomKeySeen, call: CallTraffic, call_id: CallId) -> KeyDistribution:
    present = sum(1 for stint in call.span.stints if stint is not key.stint and stint.is_live(key.at))
    return KeyDistribution(
        distribution_id=_distribution_id(call_id, key.observation.identity),
        sender=DeviceRef(user_id=key.sender[0], device_id=key.sender[1]),
        key_transport=KeyTransport.ROOM_EVENT,
        at=key.at,
        index=key.keys[-1].index if key.keys else None,
        evidence=key.evidence,
        resend=key.resend,
        after_leave=key.after_leave,
        recipients=present,
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


def _rotations(call: CallTraffic, *, readable: bool) -> list[findings.Rotation]:
    """For each leave and each sender in room mode that stays: when its next new key came."""
    found = []
    new_keys = [key for key in call.room_keys if key.stint is not None and not key.resend]
    for left in call.span.stints:
        if left.left_at is None or left.sealed:
            continue
        for stint in call.span.stints:
            own = [key for key in new_keys if key.stint is stint]
            stays = stint is not left and stint.is_live(left.left_at)
            if not stays or not any(key.at < left.left_at for key in own):
                continue  # not in room mode: its silence in the timeline means nothing
            alone = not any(o is not stint and not o.sealed and o.is_live(left.left_at) for o in call.span.stints)
            if alone:
                continue  # nobody is left to hand a key to
            after = [key.at for key in own if key.at >= left.left_at]
            gone_soon = stint.left_at is not None and stint.left_at <= left.left_at + timedelta(seconds=60)
            found.append(
                findings.Rotation(
                    device=stint.device,
                    left_at=left.left_at,
                    because_of=left.opened_by.identity,
                    rotated_at=min(after, default=None),
                    covered=readable and not gone_soon,
                )
            )
    return found


def _to_device_seen(deliveries: Sequence[Delivery]) -> tuple[tuple[UserId, DeviceId, datetime], ...]:
    """Give the devices seen to distribute by to-device, each with the latest time."""
    latest: dict[Device, datetime] = {}
    for delivery in deliveries:
        device = delivery.stint.device
        latest[device] = max(delivery.at, latest.get(device, delivery.at))
    return tuple((user_id, device_id, at) for (user_id, device_id), at in sorted(latest.items()))
