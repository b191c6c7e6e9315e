"""The words of the field: the kinds of ids, and every word that a report, a label or a property may hold."""

from enum import StrEnum
from typing import NewType

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
