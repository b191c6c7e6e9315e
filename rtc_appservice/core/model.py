"""
The values every stage speaks: observations in, call sessions and findings out.

All are immutable msgspec structs, so the same definition serves Python, the jsonb columns and the
JSON report. Times are aware UTC datetimes ending `_at`, durations are float seconds ending
`_seconds`; milliseconds exist in `wire.py` only. No struct here has a field that could hold a media
key: what is kept of one is a `KeyMark`.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NewType

from msgspec import Struct, field

from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode

ServerName = NewType("ServerName", str)
RoomId = NewType("RoomId", str)
UserId = NewType("UserId", str)
DeviceId = NewType("DeviceId", str)
EventId = NewType("EventId", str)
CallId = NewType("CallId", str)

#: One device of one user, as claimed by the sender of an event: (user id, device id).
Device = tuple[UserId, DeviceId]


class Evidence(StrEnum):
    """How a fact is known, strongest first (a verdict has the grade of its weakest necessary fact)."""

    DIRECT = "direct"  #: read in clear
    DECRYPTED = "decrypted"  #: read after decryption by a device of ours
    INFERRED = "inferred"  #: deduced from metadata or from absence
    REPORTED = "reported"  #: a client said so


class KeyTransport(StrEnum):
    """The way a media key travels (not MatrixRTC's `transport`, which is the SFU)."""

    ROOM_EVENT = "room_event"
    TO_DEVICE = "to_device"


class EndReason(StrEnum):
    """Why a participant stint ended."""

    LEFT = "left"  #: an empty membership; a delayed leave looks the same
    EXPIRED = "expired"
    KICKED = "kicked"  #: the user left the room, or was removed from it
    REPLACED = "replaced"  #: another membership took the place of this one
    UNKNOWN = "unknown"


class MembershipMode(StrEnum):
    """Element Call's own terms for how a call is joined."""

    LEGACY = "legacy"
    COMPATIBILITY = "compatibility"
    MATRIX_2_0 = "matrix_2_0"


class Coverage(StrEnum):
    """What could be seen of a call."""

    TIMELINE = "timeline"
    TIMELINE_PARTIAL = "timeline_partial"
    ENVELOPES = "envelopes"
    WITNESS = "witness"


class Verdict(StrEnum):
    """How the media keys of a call travelled."""

    TO_DEVICE = "to_device"
    ROOM_EVENT = "room_event"
    MIXED = "mixed"
    NO_KEYS = "no_keys"
    SOLO = "solo"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """How one obligation ended; every obligation ends in exactly one of these."""

    DELIVERED = "delivered"
    LATE = "late"
    ROOM_EVENT = "room_event"
    RECOVERED_BY_ROOM_EVENT = "recovered_by_room_event"
    MISSING = "missing"
    EXCUSED = "excused"
    UNCONFIRMED = "unconfirmed"
    UNOBSERVABLE = "unobservable"
    PENDING = "pending"


class FallbackCause(StrEnum):
    """Why a device sent its first room key of a call as a room event."""

    STRAY = "stray"
    AFTER_LEAVE = "after_leave"
    FOLLOWED = "followed"
    GAVE_UP = "gave_up"
    HOST_CANNOT_SEND = "host_cannot_send"
    ROOM_ONLY_CLIENT = "room_only_client"
    UNKNOWN = "unknown"


#: Causes that stand in the way of switching the room-event backup off.
BLOCKING_CAUSES = frozenset({FallbackCause.ROOM_ONLY_CLIENT, FallbackCause.HOST_CANNOT_SEND, FallbackCause.GAVE_UP})


class Severity(StrEnum):
    """How urgent a finding is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class FindingKind(StrEnum):
    """The closed list of findings."""

    FALLBACK = "fallback"
    KEY_NOT_RECEIVED = "key_not_received"
    KEY_LATE = "key_late"
    NOT_ROTATED = "not_rotated"
    SPLIT_CALL = "split_call"
    KEY_IN_CLEAR = "key_in_clear"
    KEY_REUSED = "key_reused"
    INDEX_REGRESSED = "index_regressed"
    STRAY_KEY = "stray_key"
    CLAIMED_DEVICE_MISMATCH = "claimed_device_mismatch"
    UNTRUSTED_SENDER_DEVICE = "untrusted_sender_device"
    ROTATION_STORM = "rotation_storm"
    KEY_READABLE_IN_HISTORY = "key_readable_in_history"
    FORGED_MEMBERSHIP = "forged_membership"
    MALFORMED = "malformed"
    FLOOD = "flood"


class Platform(StrEnum):
    """What a device runs on, told from the name its client gave it."""

    WEB = "web"
    DESKTOP = "desktop"
    ANDROID = "android"
    IOS = "ios"
    OTHER = "other"  #: it has a name, which tells none of these
    UNKNOWN = "unknown"  #: the homeserver gave no name


class DeviceTrust(StrEnum):
    """How far the device that sealed a message is known to be its user's."""

    CROSS_SIGNED = "cross_signed"  #: its user's cross-signing keys signed it, checked up to the master key
    SIGNED_UNCHECKED = "signed_unchecked"  #: it carries such a signature, and the keys to check it were not at hand
    UNSIGNED = "unsigned"  #: nobody signed it but itself: strict clients refuse its media keys
    INVALID = "invalid"  #: the device keys it sent along are not its own
    UNKNOWN = "unknown"  #: no device keys were at hand


class GapReason(StrEnum):
    """Why something may not have been seen."""

    SERVICE_DOWN = "service_down"
    DATABASE_DOWN = "database_down"
    TO_DEVICE_LOST = "to_device_lost"
    UNDECRYPTABLE = "undecryptable"
    ROOM_JOINED_LATE = "room_joined_late"
    BACKLOG = "backlog"


# --- observations -----------------------------------------------------------------------------


class KeyMark(Struct, frozen=True, kw_only=True):
    """What may be kept of a media key: never the key."""

    index: int
    length: int | None = None  #: bytes after base64 decoding; None if it was not base64
    padded: bool | None = None  #: `==` at the end: the newer js-sdk manager writes it, the legacy one does not
    tag: str | None = None  #: 16 hex digits, HMAC under the deployment secret over (room id, key bytes)


class Membership(Struct, frozen=True, kw_only=True, tag="membership", tag_field="kind"):
    """A call membership event: a join, an update, or a leave (`live` false)."""

    sender: UserId
    form: str  #: `session_v1`, `session_v2`, `owned` (state forms), `sticky`
    key: str  #: the state key, or the sticky key: the place whose value this event replaces
    live: bool
    slot_id: str | None = None  #: normalised, `m.call#ROOM` for the room call; None in a leave
    device_id: DeviceId | None = None  #: claimed in the content
    claimed_user_id: UserId | None = None  #: the user named by the state key, where it names another than the sender
    created_at: datetime | None = None  #: `created_ts`, if given
    expires_seconds: float | None = None  #: cumulative from `created_at`, or the stickiness of a sticky event
    dialect: str | None = None  #: sticky dialect: `js_39`, `js_41`, `js_43`, `msc4143`
    membership_id: str | None = None  #: `membershipID` / `member.id`
    focus_selection: str | None = None  #: `oldest_membership`, `multi_sfu`
    intent: str | None = None  #: `audio`, `video`, `other`
    ignored: str | None = None  #: the js-sdk rule by which clients do not count this membership


class RoomKey(Struct, frozen=True, kw_only=True, tag="room_key", tag_field="kind"):
    """A key event in the timeline, clear or decrypted, without its keys."""

    sender: UserId
    device_id: DeviceId  #: claimed
    slot_id: str
    keys: tuple[KeyMark, ...]
    event_type: str
    encrypted: bool = False
    claimed_sent_at: datetime | None = None
    #: The device whose Olm key handed out the Megolm session, where its device keys prove it.
    sender_device_id: DeviceId | None = None
    trust: DeviceTrust | None = None
    device_matches: bool | None = None  #: the claimed device is that one


class OlmEnvelope(Struct, frozen=True, kw_only=True, tag="olm_envelope", tag_field="kind"):
    """Metadata of one Olm-encrypted to-device message; content stays sealed."""

    sender: UserId
    recipient: UserId
    recipient_device: DeviceId
    olm_type: int  #: 0 opens a session, 1 continues one
    body_length: int  #: base64 characters
    sender_key_id: str  #: keyed hash of the sending device's public Curve25519 key: tells devices of one user apart


class MegolmEnvelope(Struct, frozen=True, kw_only=True, tag="megolm_envelope", tag_field="kind"):
    """Metadata of an unreadable `m.room.encrypted` room event."""

    sender: UserId
    length: int  #: base64 characters of the ciphertext
    device_id: DeviceId | None = None  #: claimed, deprecated on the wire
    session_key_id: str | None = None  #: keyed hash of the Megolm session id
    sticky_seconds: float | None = None  #: set if marked sticky: a membership may be inside


class ToDeviceKey(Struct, frozen=True, kw_only=True, tag="to_device_key", tag_field="kind"):
    """A key to-device message read by a device of ours (`encrypted`), or sent without Olm."""

    sender: UserId
    recipient: UserId
    recipient_device: DeviceId
    claimed_device_id: DeviceId | None
    slot_id: str
    keys: tuple[KeyMark, ...]
    event_type: str
    encrypted: bool
    sender_key_id: str | None = None
    trust: DeviceTrust | None = None
    device_matches: bool | None = None  #: claimed device is the one whose Olm key encrypted it
    claimed_sent_at: datetime | None = None
    #: The device whose Olm key encrypted it, where its device keys prove it.
    sender_device_id: DeviceId | None = None


class Withheld(Struct, frozen=True, kw_only=True, tag="withheld", tag_field="kind"):
    """`m.room_key.withheld` addressed to our device."""

    sender: UserId
    code: str
    session_key_id: str | None = None


class Redaction(Struct, frozen=True, kw_only=True, tag="redaction", tag_field="kind"):
    """A redaction; projected only where it hits a key event."""

    sender: UserId
    redacts: EventId


class RoomState(Struct, frozen=True, kw_only=True, tag="room_state", tag_field="kind"):
    """State of a room that detection rests on."""

    sender: UserId
    event_type: str  #: `m.room.create`, `m.room.encryption`, `m.room.history_visibility`, `m.room.member`
    state_key: str
    value: str  #: algorithm, visibility or membership; empty for `m.room.create`


class Rejected(Struct, frozen=True, kw_only=True, tag="rejected", tag_field="kind"):
    """An RTC event that could not be taken, with the reason and the field. Never with the value."""

    sender: UserId | None
    event_type: str
    reason: str  #: `malformed`, `implausible_time`, `not_supported_yet`, `pre_matrixrtc`
    field: str | None = None  #: dotted path of the field at fault
    #: The state or sticky key of a membership no client counts: it still replaces what stood there.
    key: str | None = None


Body = Membership | RoomKey | OlmEnvelope | MegolmEnvelope | ToDeviceKey | Withheld | Redaction | RoomState | Rejected


class Observation(Struct, frozen=True, kw_only=True):
    """One immutable fact learned; everything else is a projection of these."""

    homeserver: ServerName
    room_id: RoomId
    #: The event id, or a keyed hash for to-device: duplicates are decided on (homeserver, identity).
    identity: str
    #: min(origin_server_ts, received_at); to-device has only `received_at`.
    event_at: datetime
    received_at: datetime
    body: Body
    #: The watermark had passed `event_at` by more than 60 s on arrival: never opens, merges or splits a session.
    late: bool = False


class HeldEnvelope(Struct, frozen=True, kw_only=True):
    """An Olm envelope that waits to be placed in a room, or dropped (at most 120 s)."""

    homeserver: ServerName
    identity: str
    received_at: datetime
    body: OlmEnvelope


class Gap(Struct, frozen=True, kw_only=True):
    """Something we know we did not see. `room_id` None: the whole homeserver."""

    gap_id: str
    homeserver: ServerName
    reason: GapReason
    started_at: datetime | None
    ended_at: datetime | None
    room_id: RoomId | None = None


# --- call sessions: the report contract (field names are the JSON names) ------------------------


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
