"""
Stage 2: what was seen: observations, envelopes that wait for a room, and gaps.

All are immutable msgspec structs, so the same definition serves Python, the jsonb columns and the JSON report. Times
are aware UTC datetimes ending `_at`, durations are float seconds ending `_seconds`; milliseconds exist in `wire.py`
only. No struct has a field that could hold a media key: what is kept of one is a `KeyMark`.
"""

from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.words import DeviceId, DeviceTrust, EventId, GapReason, RoomId, ServerName, UserId


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
