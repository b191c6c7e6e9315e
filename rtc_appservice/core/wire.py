"""
Stage 2: a homeserver's transaction in, observations and held envelopes out. Every wire form, and nothing else.

Bad wire data is data: what cannot be taken becomes a `rejected` observation that names the reason and the
field, never the value. Events of no interest are passed over at their `type`.
"""

from collections.abc import Container
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct, field

from rtc_appservice.core import fields, membership
from rtc_appservice.core.fields import Malformed, is_id
from rtc_appservice.core.keyed import Keyed
from rtc_appservice.core.lengths import room_key_lengths
from rtc_appservice.core.media_key import parse_room_key, with_sender
from rtc_appservice.core.observed import Body, HeldEnvelope, MegolmEnvelope, Observation, Redaction, Rejected, RoomState
from rtc_appservice.core.opened import Opened, Plaintext
from rtc_appservice.core.strip import KEY_EVENT_TYPES, strip_key_event
from rtc_appservice.core.to_device import ToDeviceReader
from rtc_appservice.core.words import DeviceId, EventId, RoomId, ServerName, UserId

#: A federated sender chooses its timestamp: outside these bounds it is not believed.
MAX_AGE = timedelta(days=7)
MAX_AHEAD = timedelta(minutes=10)
#: A key event's ciphertext for any ids: 250 bytes of plaintext at least, 2 kB with sixteen keys and ids of 255 bytes.
KEY_EVENT_LENGTHS = range(300, 3000)
#: Behind the watermark by more than this is `late`.
LATE_AFTER = timedelta(seconds=60)
_ROOM_STATE = {
    "m.room.create": None,
    "m.room.encryption": "algorithm",
    "m.room.history_visibility": "history_visibility",
}
_ONE_TIME_KEYS = ("org.matrix.msc3202.device_one_time_keys_count", "device_one_time_keys_count")


class Intake(Struct):
    """What one transaction holds of interest, and what its stream told."""

    observations: list[Observation] = field(default_factory=list)
    envelopes: list[HeldEnvelope] = field(default_factory=list)
    #: Greatest event time of local senders and to-device arrivals: moves the watermark.
    newest_at: datetime | None = None
    #: Users of whom to-device messages or one-time-key counts were shown.
    served_users: set[UserId] = field(default_factory=set)
    #: Rooms in which an RTC event was seen: watched from now on.
    rtc_rooms: set[RoomId] = field(default_factory=set)
    event_count: int = 0
    to_device_count: int = 0
    ephemeral_count: int = 0


class TransactionReader:
    """Reads the transactions of one homeserver; holds its name and the secret, nothing that changes."""

    def __init__(self, homeserver: ServerName, secret: bytes, *, comparison_tags: bool = True) -> None:
        """Take the homeserver's name and the deployment secret (keys identities and comparison tags)."""
        self._homeserver = homeserver
        self._domain = ":" + homeserver
        self._keyed = Keyed(secret, comparison_tags=comparison_tags)
        self._to_device = ToDeviceReader(homeserver, self._keyed)

    def read(
        self,
        body: dict[str, Any],
        *,
        received_at: datetime,
        watched: Container[RoomId],
        watermark_at: datetime | None = None,
        opened: Opened | None = None,
    ) -> Intake:
        """
        Turn a transaction body into an Intake; never raises on bad content.

        `watched` are the rooms in which RTC events were seen before: room members and unreadable events are of
        interest there only. `opened` is what devices of ours decrypted of it.
        """
        intake = Intake()
        opened = opened or Opened()
        events = body.get("events")
        if isinstance(events, list):
            intake.event_count = len(events)
            newest_ms = 0.0
            for event in events:
                if not isinstance(event, dict):
                    continue
                kind = event.get("type")
                sender = event.get("sender")
                if isinstance(sender, str) and sender.endswith(self._domain):
                    ts = event.get("origin_server_ts")
                    if type(ts) is int and ts > newest_ms:
                        newest_ms = ts
                plain = opened.event(event) if opened.events and kind == "m.room.encrypted" else None
                if plain is not None:
                    self._read_opened(event, plain, received_at, watermark_at, intake)
                elif (
                    isinstance(kind, str)
                    and kind in _RELEVANT
                    and (kind not in _WATCHED_ONLY or self._is_of_interest(event, watched, intake))
                ):
                    self._read_event(event, received_at, watermark_at, intake)
            newest = fields.from_ms(newest_ms) if newest_ms else None
            if newest is not None:
                intake.newest_at = min(newest, received_at)
        messages = self._to_device.read(body, received_at, opened)
        intake.observations += messages.observations
        intake.envelopes = messages.envelopes
        intake.served_users = messages.served_users
        intake.to_device_count = messages.count
        if messages.count:
            intake.newest_at = received_at
        for name in _ONE_TIME_KEYS:
            counts = body.get(name)
            if isinstance(counts, dict):
                intake.served_users.update(UserId(user) for user in counts if isinstance(user, str))
        ephemeral = body.get("ephemeral") or body.get("de.sorunome.msc2409.ephemeral")
        intake.ephemeral_count = len(ephemeral) if isinstance(ephemeral, list) else 0
        return intake

    # --- room events ---------------------------------------------------------------------------

    @staticmethod
    def _is_of_interest(event: dict[str, Any], watched: Container[RoomId], intake: Intake) -> bool:
        room_id = event.get("room_id")
        if isinstance(room_id, str) and (room_id in watched or room_id in intake.rtc_rooms):
            return True
        if event["type"] != "m.room.encrypted" or event.keys().isdisjoint(membership.STICKY_MARKS):
            return False
        return membership.sticky_seconds(event) is not None

    def _read_opened(
        self,
        event: dict[str, Any],
        plain: Plaintext,
        received_at: datetime,
        watermark_at: datetime | None,
        intake: Intake,
    ) -> None:
        """Read a decrypted event; all but media keys and memberships is nobody's business and dropped here."""
        if plain.type in KEY_EVENT_TYPES or plain.type in membership.STICKY_TYPES:
            # Only what the homeserver vouches for stays of the outer event; state is never sealed.
            inner = {name: event[name] for name in _OUTER if name in event}
            inner |= {"type": plain.type, "content": plain.content}
            self._read_event(inner, received_at, watermark_at, intake, plain)

    def _read_event(
        self,
        event: dict[str, Any],
        received_at: datetime,
        watermark_at: datetime | None,
        intake: Intake,
        plain: Plaintext | None = None,
    ) -> None:
        kind: str = event["type"]
        if kind in KEY_EVENT_TYPES:
            event = strip_key_event(event, self._keyed.tagger(event.get("room_id")))
        sender = event.get("sender")
        room_id = event.get("room_id")
        event_id = event.get("event_id")
        if not (is_id(sender) and is_id(room_id) and is_id(event_id)):
            return  # no homeserver sends such a thing; without an identity there is nothing to record it under
        event_at = received_at
        body: Body | None
        try:
            ts = fields.optional_number(event, "origin_server_ts", "event")
            origin_at = None if ts is None else fields.from_ms(ts)
            if origin_at is None:
                raise Malformed("origin_server_ts")
            if not received_at - MAX_AGE <= origin_at <= received_at + MAX_AHEAD:
                body = Rejected(
                    sender=UserId(sender), event_type=kind, reason="implausible_time", field="origin_server_ts"
                )
            else:
                event_at = min(origin_at, received_at)
                body = self._parse(kind, event)
        except Malformed as fault:
            key = event.get("state_key")
            body = Rejected(
                sender=UserId(sender),
                event_type=kind,
                reason="malformed",
                field=fault.field,
                key=key if kind in membership.STATE_TYPES and is_id(key) else None,
            )
        if plain is not None:
            body = with_sender(body, plain)
        if body is None:
            return
        if kind not in _ROOM_STATE:
            intake.rtc_rooms.add(RoomId(room_id))
        late = watermark_at is not None and watermark_at - event_at > LATE_AFTER
        intake.observations.append(
            Observation(
                homeserver=self._homeserver,
                room_id=RoomId(room_id),
                identity=event_id,
                event_at=event_at,
                received_at=received_at,
                body=body,
                late=late,
            )
        )

    def _parse(self, kind: str, event: dict[str, Any]) -> Body | None:
        sender = UserId(event["sender"])
        if kind == "m.room.redaction":
            return _parse_redaction(event, sender)
        content = fields.table(event, "content", "event")
        if kind in membership.STATE_TYPES:
            key = fields.text(event, "state_key", "event")
            if membership.is_pre_matrixrtc(content):
                return Rejected(sender=sender, event_type=kind, reason="pre_matrixrtc", key=key)
            return membership.parse_state(content, sender, key)
        if kind in membership.STICKY_TYPES:
            return membership.parse_sticky(content, sender, membership.sticky_seconds(event))
        if kind in KEY_EVENT_TYPES:
            return parse_room_key(kind, content, sender)
        if kind == "m.room.encrypted":
            return self._parse_encrypted(event, content, sender)
        return _parse_room_state(kind, event, content, sender)

    def _parse_encrypted(self, event: dict[str, Any], content: dict[str, Any], sender: UserId) -> Body | None:
        ciphertext = content.get("ciphertext")
        if not isinstance(ciphertext, str):
            return None  # not Megolm; in a room that is nobody's call key
        session_id = content.get("session_id")
        device_id = content.get("device_id")
        device = DeviceId(device_id) if is_id(device_id) else None
        sticky = membership.sticky_seconds(event)
        if sticky is None and not _can_be_key(RoomId(event["room_id"]), device, len(ciphertext)):
            return None  # an ordinary message is nobody's business
        return MegolmEnvelope(
            sender=sender,
            length=len(ciphertext),
            device_id=device,
            session_key_id=self._keyed.identity(session_id) if isinstance(session_id, str) else None,
            sticky_seconds=sticky,
        )


# --- single forms -------------------------------------------------------------------------------


def _can_be_key(room_id: RoomId, device_id: DeviceId | None, length: int) -> bool:
    """Tell whether a ciphertext has the length of a key event; where the device is not named, whether it might."""
    if device_id is None:
        return length in KEY_EVENT_LENGTHS
    predictions = room_key_lengths(room_id, device_id, with_history=True)
    return any(length in fits for fits in predictions.values())


def _parse_redaction(event: dict[str, Any], sender: UserId) -> Redaction:
    """`redacts` stands in the content from room version 11 on, at the top before."""
    content = event.get("content")
    redacts = event.get("redacts") or (content.get("redacts") if isinstance(content, dict) else None)
    if not is_id(redacts):
        raise Malformed("redacts")
    return Redaction(sender=sender, redacts=EventId(redacts))


def _parse_room_state(kind: str, event: dict[str, Any], content: dict[str, Any], sender: UserId) -> RoomState | None:
    if "state_key" not in event:
        return None  # a message posing as state
    state_key = fields.text(event, "state_key", "event")
    if kind == "m.room.member":
        value = fields.text(content, "membership", "content")
        if value not in ("leave", "ban"):
            return None
    else:
        if state_key != "":
            return None
        name = _ROOM_STATE[kind]
        value = "" if name is None else fields.text(content, name, "content")
    return RoomState(sender=sender, event_type=kind, state_key=state_key, value=value)


#: What stays of the outer event when what was sealed in it is read.
_OUTER = ("event_id", "room_id", "sender", "origin_server_ts", *membership.STICKY_MARKS)
_WATCHED_ONLY = frozenset({"m.room.encrypted", "m.room.member", "m.room.redaction"})
_RELEVANT = KEY_EVENT_TYPES | membership.STATE_TYPES | membership.STICKY_TYPES | set(_ROOM_STATE) | _WATCHED_ONLY
