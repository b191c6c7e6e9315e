"""
Stages 4 and 5: a room's observations in, its call sessions out.

The same observations give the same sessions for any order of arrival and any duplicates; time comes in as the
watermark. What is stored of this is a cache.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core import findings, obligations, verdict
from rtc_appservice.core.attribution import CallTraffic, Delivery, Device, attribute
from rtc_appservice.core.distributions import build_distributions
from rtc_appservice.core.fallback import Context, Occurrence, find_fallbacks
from rtc_appservice.core.generation import infer_generation
from rtc_appservice.core.model import (
    CallId,
    CallReport,
    CallSession,
    DeliveryCounts,
    DeviceId,
    DistributionCounts,
    FallbackCause,
    KeyTransport,
    ObligationCounts,
    Observation,
    Outcome,
    Participant,
    RoomHistory,
    Settings,
    Stint,
    StintSpan,
    ToDeviceKey,
    UserId,
)
from rtc_appservice.core.room_facts import RoomFacts
from rtc_appservice.core.stints import CallSpan, build_spans, build_stints, in_order

#: Outcomes that become findings.
_NOTABLE = frozenset({Outcome.MISSING, Outcome.RECOVERED_BY_ROOM_EVENT, Outcome.LATE})


@dataclass(slots=True, frozen=True)
class Analysis:
    """A call with all that was worked out of it, before it is put in words."""

    call_id: CallId
    call: CallTraffic
    beginning_seen: bool
    encrypted_room: bool | None
    history_visibility: str | None
    fallbacks: Sequence[Occurrence]
    owed: Sequence[obligations.ObligationGroup]
    settled: bool


def project_room(history: RoomHistory, settings: Settings | None = None) -> list[CallSession]:
    """Project all call sessions of a room, in order of start."""
    settings = settings or Settings()
    observations = in_order(history.observations)
    return [_put_in_words(found, history, observations, settings) for found in analyse(history, observations, settings)]


def analyse(history: RoomHistory, observations: Sequence[Observation], settings: Settings) -> Iterator[Analysis]:
    """Work out the calls of a room from its ordered observations, in order of start."""
    spans = build_spans(build_stints(observations, history.watermark_at))
    room = RoomFacts(history, observations)
    to_device_seen = dict(history.to_device_history)
    settle_after = timedelta(seconds=settings.horizon_seconds + settings.late_seconds)
    for call in attribute(history.room_id, observations, spans):
        span = call.span
        beginning_seen = room.beginning_seen(span.started_at)
        encrypted = room.encrypted(span)
        fallbacks = find_fallbacks(call, Context(beginning_seen, history.envelopes, to_device_seen, settle_after))
        sight = obligations.Sight(
            homeserver=history.homeserver,
            envelopes=history.envelopes,
            gaps=room.gaps,
            keys_managed=encrypted is not False or bool(call.room_keys or call.deliveries),
            witnesses=history.witnesses,
            loss_free=history.loss_free,
            room_only=_stints(fallbacks, FallbackCause.ROOM_ONLY_CLIENT),
            cannot_send=_stints(fallbacks, FallbackCause.HOST_CANNOT_SEND, FallbackCause.GAVE_UP),
            watermark_at=history.watermark_at,
            settings=settings,
        )
        yield Analysis(
            call_id=_call_id(history, span),
            call=call,
            beginning_seen=beginning_seen,
            encrypted_room=encrypted,
            history_visibility=room.visibility(span),
            fallbacks=fallbacks,
            owed=tuple(obligations.obligations(call, sight)),
            settled=span.ended_at is not None and history.watermark_at >= span.ended_at + settle_after,
        )
        for user_id, device_id, at in _to_device_seen(call.deliveries):
            to_device_seen[(user_id, device_id)] = max(at, to_device_seen.get((user_id, device_id), at))


def _put_in_words(
    found: Analysis, history: RoomHistory, observations: Sequence[Observation], settings: Settings
) -> CallSession:
    call, span = found.call, found.call.span
    counts: Counter[Outcome] = Counter()
    keys_off = 0
    for owed in found.owed:
        counts[owed.outcome] += len(owed.ids)
        keys_off += len(owed.ids) if owed.excuse == obligations.KEYS_OFF else 0
    participants = _participants(call, found.fallbacks)
    coverage = verdict.coverage_of(call, envelopes=history.envelopes, witness=_has(span, history.witnesses))
    most = verdict.max_participants(span)
    decided, evidence = verdict.decide(
        call,
        beginning_seen=found.beginning_seen,
        coverage=coverage,
        participants=most,
        outcomes=counts,
        keys_off=keys_off,
        fallbacks=found.fallbacks,
    )
    distributions = build_distributions(call, found.call_id)
    case = findings.Case(
        call_id=found.call_id,
        call=call,
        fallbacks=found.fallbacks,
        owed=[owed for owed in found.owed if owed.outcome in _NOTABLE],
        distributions=distributions,
        rotations=_rotations(call, readable=not call.unreadable),
        observations=_within(span, observations, settings),
        encrypted_room=found.encrypted_room,
        history_visibility=found.history_visibility,
        watermark_at=history.watermark_at,
        settled=found.settled,
        settings=settings,
        witnesses=history.witnesses,
    )
    report = CallReport(
        call_id=found.call_id,
        homeserver=history.homeserver,
        room_id=history.room_id,
        slot_id=span.slot_id,
        started_at=span.started_at,
        ended_at=span.ended_at,
        beginning_seen=found.beginning_seen,
        encrypted_room=found.encrypted_room,
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
            low_confidence=sum(not delivery.fits_moment for delivery in call.deliveries),
        ),
        obligations=ObligationCounts(**{outcome.value: counts[outcome] for outcome in Outcome}),
        fallbacks=tuple(occurrence.fallback for occurrence in found.fallbacks),
        findings=findings.find(case),
        settled=found.settled,
    )
    stints = tuple(
        StintSpan(
            room_id=history.room_id,
            slot_id=span.slot_id,
            user_id=user_id,
            device_id=device_id,
            joined_at=stint.joined_at,
            left_at=stint.left_at,
        )
        for (user_id, device_id), own in span.devices().items()
        for stint in own
    )
    return CallSession(
        report=report, distributions=distributions, stints=stints, to_device_seen=_to_device_seen(call.deliveries)
    )


def _call_id(history: RoomHistory, span: CallSpan) -> CallId:
    parts = (history.homeserver, history.room_id, span.slot_id, span.opened_by.identity)
    return CallId(hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest())


def _within(span: CallSpan, observations: Sequence[Observation], settings: Settings) -> list[Observation]:
    until = None if span.ended_at is None else span.ended_at + timedelta(seconds=settings.horizon_seconds)
    since = span.started_at - timedelta(seconds=10)
    return [
        o
        for o in observations
        if since <= o.event_at
        and (until is None or o.event_at <= until)
        and not (isinstance(o.body, ToDeviceKey) and o.body.slot_id != span.slot_id)
    ]


def _has(span: CallSpan, devices: frozenset[Device]) -> bool:
    return any(stint.device in devices for stint in span.stints if not stint.sealed)


def _stints(fallbacks: Sequence[Occurrence], *causes: FallbackCause) -> frozenset[int]:
    return frozenset(id(found.stint) for found in fallbacks if found.fallback.cause in causes)


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


def _rotations(call: CallTraffic, *, readable: bool) -> list[findings.Rotation]:
    """For each leave and each sender in room mode that stays: when its next new key came."""
    found = []
    new_keys: dict[int, list[datetime]] = {}
    for key in call.room_keys:
        if key.stint is not None and not key.resend:
            new_keys.setdefault(id(key.stint), []).append(key.at)
    for left in call.span.stints:
        if left.left_at is None or left.sealed:
            continue
        staying = [stint for stint in call.span.stints if not stint.sealed and stint.is_live(left.left_at)]
        for stint in staying:
            own = new_keys.get(id(stint))
            if own is None or own[0] >= left.left_at:
                continue  # not in room mode: its silence in the timeline means nothing
            if len(staying) == 1:
                continue  # nobody is left to hand a key to
            position = bisect_left(own, left.left_at)
            gone_soon = stint.left_at is not None and stint.left_at <= left.left_at + timedelta(seconds=60)
            found.append(
                findings.Rotation(
                    device=stint.device,
                    left_at=left.left_at,
                    because_of=left.opened_by.identity,
                    rotated_at=own[position] if position < len(own) else None,
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
