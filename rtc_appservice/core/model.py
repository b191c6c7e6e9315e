"""
Stages 4 and 5: what is made of observations: call sessions, findings, and the report.

The field names are the names in the JSON report. Immutable structs like those of `observed`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct, field

from rtc_appservice.core.observed import Gap, Observation
from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode
from rtc_appservice.core.words import (
    CallId,
    Coverage,
    Device,
    DeviceId,
    EndReason,
    EventId,
    Evidence,
    FallbackCause,
    FindingKind,
    KeyTransport,
    MembershipMode,
    Platform,
    RoomId,
    ServerName,
    Severity,
    UserId,
    Verdict,
)


class DeviceRef(Struct, frozen=True, kw_only=True):
    """A device of a user."""

    user_id: UserId
    device_id: DeviceId


class Stint(Struct, frozen=True, kw_only=True):
    """One device's continuous membership."""

    joined_at: datetime
    left_at: datetime | None
    end_reason: EndReason | None


class Participant(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device that took part in a call."""

    user_id: UserId
    device_id: DeviceId
    stints: tuple[Stint, ...]
    generation: str  #: `R0` … `D2`, a coarse letter, or `unknown`
    generation_confidence: float
    generation_marks: tuple[str, ...]
    #: Joined when a report is read, where a homeserver was asked; never part of what is projected or stored.
    platform: Platform | None = None


class DistributionCounts(Struct, frozen=True, kw_only=True):
    """Distributions by key transport, resends included; `resends` says how many."""

    room_event: int = 0
    to_device: int = 0
    resends: int = 0


class DeliveryCounts(Struct, frozen=True, kw_only=True):
    """To-device deliveries found; `to_device` includes those `after_leave`."""

    to_device: int = 0
    after_leave: int = 0
    #: Messages at a moment that owed a key whose length fits none.
    unclassified: int = 0
    #: Deliveries whose length fits though no key was owed at the moment; part of `to_device`.
    low_confidence: int = 0


class ObligationCounts(Struct, frozen=True, kw_only=True):
    """Obligations by outcome; they add up to the obligations."""

    delivered: int = 0
    late: int = 0
    room_event: int = 0
    recovered_by_room_event: int = 0
    missing: int = 0
    excused: int = 0
    unconfirmed: int = 0
    unobservable: int = 0
    pending: int = 0


class Fallback(Struct, frozen=True, kw_only=True):
    """A device's first room key event in a call, with its cause; `room_keys` counts the later ones too."""

    user_id: UserId
    device_id: DeviceId
    cause: FallbackCause
    caused_by: DeviceRef | None
    at: datetime
    room_keys: int
    evidence: Evidence
    confidence: float
    candidates: tuple[FallbackCause, ...] = ()
    #: The very bytes had been sent over Olm before (comparison tags agree); None if not comparable.
    key_was_private: bool | None = None


class Finding(Struct, frozen=True, kw_only=True):
    """What detection yields. `finding_id` derives from (kind, call, subject, obligation): a replay yields the same."""

    finding_id: str  #: UUIDv5
    kind: FindingKind
    severity: Severity
    at: datetime
    evidence: Evidence
    subject: DeviceRef | None = None
    settled: bool = False  #: nothing still due can change it; only settled findings are exported and counted
    details: Mapping[str, Any] = field(default_factory=dict)
    observations: tuple[str, ...] = ()  #: identities of the observations it rests on


class RoomFinding(Finding, frozen=True, kw_only=True):
    """A finding that belongs to a room and to no call."""

    homeserver: ServerName
    room_id: RoomId


class CallReport(Struct, frozen=True, kw_only=True):
    """One call as `report` and `audit` print it (contract: additions are allowed, renames are not)."""

    call_id: CallId
    homeserver: ServerName
    room_id: RoomId
    slot_id: str
    started_at: datetime
    ended_at: datetime | None
    beginning_seen: bool
    encrypted_room: bool | None
    membership_mode: MembershipMode
    coverage: tuple[Coverage, ...]
    verdict: Verdict
    evidence: Evidence
    max_participants: int
    participants: tuple[Participant, ...]
    distributions: DistributionCounts
    deliveries: DeliveryCounts
    obligations: ObligationCounts
    fallbacks: tuple[Fallback, ...]
    findings: tuple[Finding, ...]
    #: Ended, and nothing still due can change it.
    settled: bool = False


class KeyDistribution(Struct, frozen=True, kw_only=True):
    """One act of one device handing out a media key by one key transport."""

    distribution_id: str
    sender: DeviceRef
    key_transport: KeyTransport
    at: datetime
    index: int | None
    evidence: Evidence
    resend: bool
    after_leave: bool
    recipients: int  #: to-device: deliveries seen; room event: other participants present
    observations: tuple[str, ...]


class UndecryptableKey(Struct, frozen=True, kw_only=True):
    """What may have been a media key in a call, and could not be opened by the service's device when it came."""

    identity: str  #: of the observation
    sender: DeviceRef
    key_transport: KeyTransport
    at: datetime
    evidence: Evidence  #: `decrypted` or `direct` once it was read
    reason: UndecryptableReason
    withheld_code: WithheldCode | None
    opened_at: datetime | None  #: None: never


class StintSpan(Struct, frozen=True, kw_only=True):
    """A stint with its slot: what placing an envelope needs to know."""

    room_id: RoomId
    slot_id: str
    user_id: UserId
    device_id: DeviceId
    joined_at: datetime
    left_at: datetime | None


class CallSession(Struct, frozen=True, kw_only=True):
    """A projected call: its report, and what export and the placing of envelopes need beside it."""

    report: CallReport
    distributions: tuple[KeyDistribution, ...]
    stints: tuple[StintSpan, ...]
    #: Devices seen to distribute by to-device, with the first time: the history `gave_up` asks for.
    to_device_seen: tuple[tuple[UserId, DeviceId, datetime], ...]
    #: Joined from the store when the call settles; never part of what is projected.
    undecryptable: tuple[UndecryptableKey, ...] = ()


class Projected(Struct, frozen=True, kw_only=True):
    """A room as projected."""

    calls: tuple[CallSession, ...]  #: in order of start
    findings: tuple[Finding, ...]  #: of the room, apart from those of its calls


class LedgerEntry(Struct, frozen=True, kw_only=True):
    """One room key event that stands in room history."""

    event_id: EventId
    at: datetime
    sender: UserId
    device_id: DeviceId
    keys: int
    redacted_at: datetime | None


class RoomHistory(Struct, frozen=True, kw_only=True):
    """All that projecting one room needs. Observations may come in any order and more than once."""

    homeserver: ServerName
    room_id: RoomId
    observations: tuple[Observation, ...]
    #: Time the homeserver's stream has reached; deadlines are judged by it.
    watermark_at: datetime
    #: The registration's scope (live) or the recording itself showed other users' to-device traffic.
    envelopes: bool
    gaps: tuple[Gap, ...] = ()
    #: When the service began to watch the room.
    watched_since: datetime | None = None
    #: Devices of ours that are members of calls in this room: what is sent to them by to-device is read.
    witnesses: frozenset[Device] = frozenset()
    #: They were read by `/sync`, which loses nothing; transactions do.
    loss_free: bool = False
    #: Devices seen to distribute by to-device before, with the latest time (30 days back).
    to_device_history: Mapping[tuple[UserId, DeviceId], datetime] = field(default_factory=dict)
    #: The same for single calls, where it was asked as of the start of each.
    to_device_history_of: Mapping[CallId, Mapping[Device, datetime]] = field(default_factory=dict)


class Settings(Struct, frozen=True, kw_only=True):
    """What an operator may tune in detection."""

    grace_seconds: float = 5.0
    horizon_seconds: float = 60.0
    #: Findings settle this long after they are due.
    late_seconds: float = 60.0
    #: Share of calls that must be all to-device before the backup may go; 381 clean calls reach 0.99.
    readiness_target: float = 0.99


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether the room-event backup can be switched off, with reasons in words."""

    verdict: str  #: `ready`, `not_ready`, `insufficient_data`
    share: float | None
    lower_bound: float | None
    upper_bound: float | None
    blockers: tuple[Mapping[str, Any], ...]
    reasons: tuple[str, ...]


class Totals(Struct, frozen=True, kw_only=True):
    """Totals over the calls of a report."""

    calls: int
    by_verdict: Mapping[str, int]
    room_keys_in_history: int
    by_evidence: Mapping[str, int] = field(default_factory=dict)


class Report(Struct, frozen=True, kw_only=True):
    """The whole report."""

    schema_version: int
    generated_at: datetime
    calls: tuple[CallReport, ...]
    totals: Totals
    readiness: Readiness
    gaps: tuple[Gap, ...]
    #: Of rooms, outside calls; and what stands for the rest of a day with too many.
    findings: tuple[RoomFinding, ...] = ()
