"""
Stages 4 and 5: one call, from its traffic to its report.

What can change no more is worked out once and kept; what is still open is worked out anew each time.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rtc_appservice.core import findings, verdict
from rtc_appservice.core.accounts import Accounts, Judged
from rtc_appservice.core.anomalies import Indexes, Storms
from rtc_appservice.core.distributions import Distributions
from rtc_appservice.core.fallback import Context, Occurrence, find_fallbacks
from rtc_appservice.core.generation import infer_generation
from rtc_appservice.core.model import (
    CallReport,
    CallSession,
    DeliveryCounts,
    DistributionCounts,
    Finding,
    ObligationCounts,
    Participant,
    RoomHistory,
    Settings,
    Stint,
    StintSpan,
)
from rtc_appservice.core.obligations import Sight
from rtc_appservice.core.room_facts import RoomFacts
from rtc_appservice.core.rotations import Rotations
from rtc_appservice.core.stints import CallSpan
from rtc_appservice.core.traffic import CallTraffic
from rtc_appservice.core.words import CallId, Device, FallbackCause, Outcome


@dataclass(slots=True, frozen=True)
class View:
    """What a call is looked at with: the room as of a watermark."""

    history: RoomHistory  #: without need for its observations
    room: RoomFacts
    settings: Settings
    #: Devices seen to distribute by to-device before, with the latest time.
    to_device_seen: Mapping[Device, datetime]
    #: The traffic up to this time is final.
    final_until: datetime


@dataclass(slots=True, frozen=True)
class Analysis:
    """What is decided of a call before it is put in words."""

    beginning_seen: bool
    encrypted_room: bool | None
    fallbacks: Sequence[Occurrence]
    sight: Sight
    settled: bool


class Call:
    """A call as it goes on."""

    def __init__(self, history: RoomHistory, span: CallSpan, settings: Settings) -> None:
        """Begin with the call's first membership."""
        parts = (history.homeserver, history.room_id, span.slot_id, span.opened_by.identity)
        self.call_id = CallId(hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest())
        self.traffic = CallTraffic(span)
        self._settings = settings
        self._distributions = Distributions(self.traffic, self.call_id)
        self._storms = Storms(self.traffic)
        self._indexes = Indexes(self.traffic)
        self._accounts = Accounts(self.traffic)
        self._rotations = Rotations(self.traffic, timedelta(seconds=settings.horizon_seconds))
        self._told: tuple[Hashable, CallSession] | None = None

    def to_device_seen(self) -> dict[Device, datetime]:
        """Give the devices seen to distribute by to-device, each with the latest time."""
        return {device: found[-1].at for device, found in sorted(self.traffic.deliveries_of.items()) if found}

    def analyse(self, view: View) -> Analysis:
        """Decide the causes of fallbacks, and what obligations are judged with."""
        span, room, history = self.traffic.span, view.room, view.history
        settle_after = timedelta(seconds=view.settings.horizon_seconds + view.settings.late_seconds)
        beginning_seen = room.beginning_seen(span)
        encrypted = room.encrypted(span)
        context = Context(beginning_seen, history.envelopes, view.to_device_seen, settle_after, view.final_until)
        fallbacks = find_fallbacks(self.traffic, context)
        sight = Sight(
            homeserver=history.homeserver,
            envelopes=history.envelopes,
            gaps=room.gaps,
            keys_managed=encrypted is not False or bool(self.traffic.room_keys or self.traffic.deliveries),
            witnesses=history.witnesses,
            loss_free=history.loss_free,
            room_only=_stints(fallbacks, FallbackCause.ROOM_ONLY_CLIENT),
            cannot_send=_stints(fallbacks, FallbackCause.HOST_CANNOT_SEND, FallbackCause.GAVE_UP),
            watermark_at=history.watermark_at,
            settings=view.settings,
        )
        settled = span.ended_at is not None and history.watermark_at >= span.ended_at + settle_after
        return Analysis(beginning_seen, encrypted, fallbacks, sight, settled)

    def session(self, view: View) -> CallSession:
        """Give the call in words as of a watermark."""
        found = self.analyse(view)
        visibility = view.room.visibility(self.traffic.span)
        rests_on = self._rests_on(view, found, visibility)
        if found.settled and self._told is not None and self._told[0] == rests_on:
            return self._told[1]
        session = self._session(view, found, visibility)
        self._told = (rests_on, session) if found.settled else None
        return session

    def _session(self, view: View, found: Analysis, visibility: str | None) -> CallSession:
        traffic, history, watermark_at = self.traffic, view.history, view.history.watermark_at
        self._storms.settle(self._distributions.settle(view.final_until))
        self._indexes.settle(view.final_until)
        open_distributions = self._distributions.open()
        judged = self._accounts.judge(found.sight, view.final_until)
        participants = self._participants(found.fallbacks)
        case = findings.Case(
            call_id=self.call_id,
            call=traffic,
            fallbacks=found.fallbacks,
            owed=judged.notable,
            storms=self._storms.all(open_distributions),
            index_faults=self._indexes.all(),
            not_rotated=self._rotations.missing(watermark_at, view.final_until),
            encrypted_room=found.encrypted_room,
            history_visibility=visibility,
            watermark_at=watermark_at,
            settled=found.settled,
            settings=view.settings,
            witnesses=history.witnesses,
        )
        return CallSession(
            report=self._report(history, found, judged, participants, findings.find(case)),
            distributions=(*self._distributions.final, *open_distributions),
            stints=self._stint_spans(history),
            to_device_seen=tuple((user, device, at) for (user, device), at in self.to_device_seen().items()),
        )

    def _report(
        self,
        history: RoomHistory,
        found: Analysis,
        judged: Judged,
        participants: tuple[Participant, ...],
        all_findings: tuple[Finding, ...],
    ) -> CallReport:
        traffic, span = self.traffic, self.traffic.span
        is_witnessed = any(stint.device in history.witnesses for stint in span.stints if not stint.sealed)
        coverage = verdict.coverage_of(traffic, envelopes=history.envelopes, witness=is_witnessed)
        most = verdict.max_participants(span)
        decided, evidence = verdict.decide(
            traffic,
            beginning_seen=found.beginning_seen,
            coverage=coverage,
            participants=most,
            outcomes=judged.outcomes,
            keys_off=judged.keys_off,
            fallbacks=found.fallbacks,
        )
        return CallReport(
            call_id=self.call_id,
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
                room_event=len(traffic.room_keys), to_device=len(traffic.bundles), resends=len(traffic.resends)
            ),
            deliveries=DeliveryCounts(
                to_device=len(traffic.deliveries),
                after_leave=len(traffic.after_leave),
                unclassified=len(traffic.unclassified),
                low_confidence=len(traffic.low_confidence),
            ),
            obligations=ObligationCounts(**{outcome.value: judged.outcomes[outcome] for outcome in Outcome}),
            fallbacks=tuple(occurrence.fallback for occurrence in found.fallbacks),
            findings=all_findings,
            settled=found.settled,
        )

    def _participants(self, fallbacks: Sequence[Occurrence]) -> tuple[Participant, ...]:
        participants = []
        room_only = {found.device for found in fallbacks if found.fallback.cause is FallbackCause.ROOM_ONLY_CLIENT}
        for (user_id, device_id), stints in self.traffic.span.devices().items():
            device = (user_id, device_id)
            generation, confidence, marks = infer_generation(device, stints, self.traffic, room_only)
            participants.append(
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
        return tuple(participants)

    def _stint_spans(self, history: RoomHistory) -> tuple[StintSpan, ...]:
        span = self.traffic.span
        return tuple(
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

    def _rests_on(self, view: View, found: Analysis, visibility: str | None) -> Hashable:
        """Give what can still change a settled call: late stints apart, which begin it anew."""
        traffic, span = self.traffic, self.traffic.span
        return (
            len(traffic.room_keys),
            len(traffic.deliveries),
            len(traffic.unclassified),
            len(traffic.unreadable),
            sum(map(len, traffic.counted.values())),
            tuple((stint.left_at, stint.end_reason, len(stint.memberships)) for stint in span.stints),
            span.ended_at,
            tuple(occurrence.fallback for occurrence in found.fallbacks),
            (found.beginning_seen, found.encrypted_room, visibility),
            (view.room.gaps, view.history.envelopes, view.history.witnesses, view.history.loss_free),
        )


def _stints(fallbacks: Sequence[Occurrence], *causes: FallbackCause) -> frozenset[int]:
    return frozenset(id(found.stint) for found in fallbacks if found.fallback.cause in causes)
