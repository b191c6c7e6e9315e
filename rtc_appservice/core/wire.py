"""
Stage 2: a homeserver's transaction in, observations and held envelopes out. Every wire form, and nothing else.

Bad wire data is data: what cannot be taken becomes a `rejected` observation that names the reason and the
field, never the value. Events of no interest are passed over at their `type`.
"""

import hashlib
from collections.abc import Container
from datetime import datetime, timedelta
from typing import Any, TypeGuard

from msgspec import Struct, field
from msgspec.structs import replace

from rtc_appservice.core import fields, membership
from rtc_appservice.core.fields import Malformed
from rtc_appservice.core.model import (
    Body,
    Device,
    DeviceId,
    DeviceTrust,
    EventId,
    HeldEnvelope,
    KeyMark,
    MegolmEnvelope,
    Membership,
    Observation,
    OlmEnvelope,
    Redaction,
    Rejected,
    RoomId,
    RoomKey,
    RoomState,
    ServerName,
    ToDeviceKey,
    UserId,
    Withheld,
)
from rtc_appservice.core.strip import KEY_EVENT_TYPES, Tagger, comparison_tag, strip_key_event

#: A federated sender chooses its timestamp: outside these bounds it is not believed.
MAX_AGE = timedelta(days=7)
MAX_AHEAD = timedelta(minutes=10)
#: Behind the watermark by more than this is `late`.
LATE_AFTER = timedelta(seconds=60)
#: js-sdk's shortest key message has some 900 plaintext bytes of ids and keys, its longest under 2 kB with MSC4147
#: device keys; in base64 with the Olm frame that stays within these bounds for ids up to 255 bytes.
CALL_KEY_BODY_LENGTHS = range(500, 6000)

_ROOM_STATE = {
    "m.room.create": None,
    "m.room.encryption": "algorithm",
    "m.room.history_visibility": "history_visibility",
}
_WITHHELD = frozenset({"m.room_key.withheld", "org.matrix.room_key.withheld"})
_TO_DEVICE = ("to_device", "de.sorunome.msc2409.to_device")
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


class Plaintext(Struct, frozen=True, kw_only=True):
    """What a device of ours read in a sealed event or message, and what is known of the device that sealed it."""

    type: str
    content: dict[str, Any]  #: may hold media keys: only the reader, which strips it, looks inside
    sender_device_id: DeviceId | None
    trust: DeviceTrust

    def __repr__(self) -> str:
        """Leave the content out: a repr ends up in logs."""
        return f"Plaintext(type={self.type!r})"


class Opened(Struct):
    """What devices of ours could read of a transaction."""

    devices: frozenset[Device] = frozenset()
    events: dict[str, Plaintext] = field(default_factory=dict)  #: by event id
    messages: dict[str, Plaintext] = field(default_factory=dict)  #: by the ciphertext for our device


class TransactionReader:
    """Reads the transactions of one homeserver; holds its name and the secret, nothing that changes."""

    def __init__(self, homeserver: ServerName, secret: bytes, *, comparison_tags: bool = True) -> None:
        """Take the homeserver's name and the deployment secret (keys identities and comparison tags)."""
        self._homeserver = homeserver
        self._domain = ":" + homeserver
        self._secret = secret
        self._identity_key = hashlib.sha256(b"identity\0" + secret).digest()
        self._comparison_tags = comparison_tags

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
        opened = opened or _SEALED
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
                if kind == "m.room.encrypted" and event.get("event_id") in opened.events:
                    self._read_opened(event, opened.events[event["event_id"]], received_at, watermark_at, intake)
                elif (
                    isinstance(kind, str)
                    and kind in _RELEVANT
                    and (kind not in _WATCHED_ONLY or self._is_of_interest(event, watched, intake))
                ):
                    self._read_event(event, received_at, watermark_at, intake)
            newest = fields.from_ms(newest_ms) if newest_ms else None
            if newest is not None:
                intake.newest_at = min(newest, received_at)
        self._read_to_device(body, received_at, opened, intake)
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
        if _is_id(room_id) and (room_id in watched or room_id in intake.rtc_rooms):
            return True
        return event.get("type") == "m.room.encrypted" and membership.sticky_seconds(event) is not None

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
            event = strip_key_event(event, self._tagger(event.get("room_id")))
        sender = event.get("sender")
        room_id = event.get("room_id")
        event_id = event.get("event_id")
        if not (_is_id(sender) and _is_id(room_id) and _is_id(event_id)):
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
                key=key if kind in membership.STATE_TYPES and _is_id(key) else None,
            )
        if plain is not None:
            body = _with_sender(body, plain)
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
            return _parse_room_key(kind, content, sender)
        if kind == "m.room.encrypted":
            return self._parse_encrypted(event, content, sender)
        return _parse_room_state(kind, event, content, sender)

    def _parse_encrypted(self, event: dict[str, Any], content: dict[str, Any], sender: UserId) -> Body | None:
        ciphertext = content.get("ciphertext")
        if not isinstance(ciphertext, str):
            return None  # not Megolm; in a room that is nobody's call key
        session_id = content.get("session_id")
        device_id = content.get("device_id")
        return MegolmEnvelope(
            sender=sender,
            length=len(ciphertext),
            device_id=DeviceId(device_id) if _is_id(device_id) else None,
            session_key_id=self._identity(session_id) if isinstance(session_id, str) else None,
            sticky_seconds=membership.sticky_seconds(event),
        )

    # --- to-device messages --------------------------------------------------------------------

    def _read_to_device(self, body: dict[str, Any], received_at: datetime, opened: Opened, intake: Intake) -> None:
        messages = body.get(_TO_DEVICE[0]) or body.get(_TO_DEVICE[1])
        if not isinstance(messages, list) or not messages:
            return
        intake.to_device_count = len(messages)
        intake.newest_at = received_at
        for message in messages:
            if not isinstance(message, dict):
                continue
            recipient = message.get("to_user_id")
            if _is_id(recipient):
                intake.served_users.add(UserId(recipient))
            kind = message.get("type")
            if kind == "m.room.encrypted":
                found = _opened_message(message, opened)
                if found is not None:
                    self._read_opened_key(message, *found, received_at, intake)
                    continue
                envelope = self._read_olm(message, received_at)
                if envelope is not None:
                    intake.envelopes.append(envelope)
            elif isinstance(kind, str) and kind in KEY_EVENT_TYPES:
                self._read_cleartext_key(message, received_at, intake)
            elif kind in _WITHHELD and (recipient, message.get("to_device_id")) in opened.devices:
                self._read_withheld(message, received_at, intake)

    def _read_olm(self, message: dict[str, Any], received_at: datetime) -> HeldEnvelope | None:
        sender, recipient, device = message.get("sender"), message.get("to_user_id"), message.get("to_device_id")
        content = message.get("content")
        ciphertext = content.get("ciphertext") if isinstance(content, dict) else None
        if not (_is_id(sender) and _is_id(recipient) and _is_id(device)):
            return None
        if not isinstance(content, dict) or not isinstance(ciphertext, dict):
            return None
        for sealed in ciphertext.values():
            text = sealed.get("body") if isinstance(sealed, dict) else None
            if isinstance(text, str) and sealed.get("type") in (0, 1) and len(text) in CALL_KEY_BODY_LENGTHS:
                return HeldEnvelope(
                    homeserver=self._homeserver,
                    identity=self._identity(text, recipient, device),
                    received_at=received_at,
                    body=OlmEnvelope(
                        sender=UserId(sender),
                        recipient=UserId(recipient),
                        recipient_device=DeviceId(device),
                        olm_type=sealed["type"],
                        body_length=len(text),
                        sender_key_id=self._identity(str(content.get("sender_key"))),
                    ),
                )
        return None

    def _read_cleartext_key(self, message: dict[str, Any], received_at: datetime, intake: Intake) -> None:
        message = self._strip_to_device_key(message)
        content = message.get("content", {})
        identity = self._identity(repr(sorted(content.items())), *(str(message.get(name)) for name in _ADDRESSES))
        self._add_to_device_key(message, identity, received_at, intake)

    def _read_opened_key(
        self, message: dict[str, Any], text: str, plain: Plaintext, received_at: datetime, intake: Intake
    ) -> None:
        if plain.type in KEY_EVENT_TYPES:
            addresses = {name: message.get(name) for name in _ADDRESSES}
            key = self._strip_to_device_key({**addresses, "type": plain.type, "content": plain.content})
            identity = self._identity(text, str(addresses["to_user_id"]), str(addresses["to_device_id"]))
            sender_key = self._identity(str(message["content"].get("sender_key")))
            self._add_to_device_key(key, identity, received_at, intake, plain, sender_key)

    def _strip_to_device_key(self, message: dict[str, Any]) -> dict[str, Any]:
        claimed = message.get("content")
        return strip_key_event(message, self._tagger(claimed.get("room_id") if isinstance(claimed, dict) else None))

    def _add_to_device_key(
        self,
        message: dict[str, Any],
        identity: str,
        received_at: datetime,
        intake: Intake,
        plain: Plaintext | None = None,
        sender_key_id: str | None = None,
    ) -> None:
        """Record a stripped key message, of our device (`plain`) or sent without Olm."""
        claimed_room = message.get("content", {}).get("room_id")
        if not (all(_is_id(message.get(name)) for name in _ADDRESSES) and _is_id(claimed_room)):
            return
        body: Body | None
        try:
            body = _parse_to_device_key(message, sender_key_id)
        except Malformed as fault:
            sender = UserId(message["sender"])
            body = Rejected(sender=sender, event_type=message["type"], reason="malformed", field=fault.field)
        if plain is not None:
            body = _with_sender(body, plain)
        if body is not None:
            self._add_to_device(body, RoomId(claimed_room), identity, received_at, intake)

    def _read_withheld(self, message: dict[str, Any], received_at: datetime, intake: Intake) -> None:
        """Record that a Megolm session is kept from our device; a code without a room (`m.no_olm`) names no session."""
        content = message.get("content")
        content = content if isinstance(content, dict) else {}
        room_id, session_id, code = (content.get(name) for name in ("room_id", "session_id", "code"))
        sender = message.get("sender")
        if _is_id(sender) and _is_id(room_id) and _is_id(session_id) and _is_id(code):
            body = Withheld(sender=UserId(sender), code=code, session_key_id=self._identity(session_id))
            identity = self._identity("withheld", sender, room_id, session_id, code)
            self._add_to_device(body, RoomId(room_id), identity, received_at, intake)

    def _add_to_device(self, body: Body, room_id: RoomId, identity: str, received_at: datetime, intake: Intake) -> None:
        intake.observations.append(
            Observation(
                homeserver=self._homeserver,
                room_id=room_id,
                identity=identity,
                event_at=received_at,
                received_at=received_at,
                body=body,
            )
        )

    # --- keyed hashes --------------------------------------------------------------------------

    def _identity(self, *parts: str) -> str:
        """Give a keyed hash as 32 hex digits: equal input, equal identity; nothing can be read back."""
        return hashlib.blake2b("\0".join(parts).encode(), key=self._identity_key, digest_size=16).hexdigest()

    def _tagger(self, room_id: Any) -> Tagger:
        if not self._comparison_tags or not isinstance(room_id, str):
            return lambda key: None
        return lambda key: comparison_tag(self._secret, room_id, key)


# --- single forms -------------------------------------------------------------------------------


def _parse_room_key(kind: str, content: dict[str, Any], sender: UserId) -> RoomKey:
    name = "media_key" if "media_key" in content else "keys"
    listed = content.get(name)
    if name == "keys" and not isinstance(listed, list):
        raise Malformed("content.keys")
    return RoomKey(
        sender=sender,
        device_id=DeviceId(fields.text(content, "device_id", "content")),
        slot_id=membership.normalise_slot("m.call", fields.text(content, "call_id", "content")),
        keys=_key_marks(listed if isinstance(listed, list) else [listed], f"content.{name}"),
        event_type=kind,
        claimed_sent_at=fields.optional_time(content, "sent_ts", "content"),
    )


def _parse_to_device_key(message: dict[str, Any], sender_key_id: str | None) -> ToDeviceKey:
    content = fields.table(message, "content", "message")
    name = "media_key" if "media_key" in content else "keys"
    raw_member, raw_session = content.get("member"), content.get("session")
    member = raw_member if isinstance(raw_member, dict) else {}
    session = raw_session if isinstance(raw_session, dict) else {}
    device_id = fields.optional_text(member, "claimed_device_id", "content.member")
    return ToDeviceKey(
        sender=UserId(message["sender"]),
        recipient=UserId(message["to_user_id"]),
        recipient_device=DeviceId(message["to_device_id"]),
        claimed_device_id=None if device_id is None else DeviceId(device_id),
        slot_id=membership.normalise_slot(
            fields.optional_text(session, "application", "content.session") or "m.call",
            fields.optional_text(session, "call_id", "content.session") or "",
        ),
        keys=_key_marks([content.get(name)], f"content.{name}"),
        event_type=message["type"],
        encrypted=sender_key_id is not None,
        sender_key_id=sender_key_id,
        claimed_sent_at=fields.optional_time(content, "sent_ts", "content"),
    )


def _with_sender(body: Body | None, plain: Plaintext) -> Body | None:
    """Add to what was decrypted that it was, and which device sealed it."""
    sender = plain.sender_device_id
    if isinstance(body, RoomKey):
        matches = None if sender is None else sender == body.device_id
        return replace(body, encrypted=True, sender_device_id=sender, trust=plain.trust, device_matches=matches)
    if isinstance(body, ToDeviceKey):
        matches = None if sender is None or body.claimed_device_id is None else sender == body.claimed_device_id
        return replace(body, sender_device_id=sender, trust=plain.trust, device_matches=matches)
    if isinstance(body, Membership) and body.live and body.dialect == "msc4143" and sender is not None:
        return replace(body, device_id=sender)  # this dialect names no device: it is the one that sealed the event
    return body


def _opened_message(message: dict[str, Any], opened: Opened) -> tuple[str, Plaintext] | None:
    """Give the ciphertext for our device with what was in it, if it was decrypted."""
    if (message.get("to_user_id"), message.get("to_device_id")) in opened.devices:
        for text in olm_bodies(message.get("content")):
            if text in opened.messages:
                return text, opened.messages[text]
    return None


def olm_bodies(content: Any) -> list[str]:
    """Give the ciphertexts of the content of an Olm message: one for each device it is for, mostly one."""
    sealed = content.get("ciphertext") if isinstance(content, dict) else None
    parts = sealed.values() if isinstance(sealed, dict) else ()
    return [part["body"] for part in parts if isinstance(part, dict) and isinstance(part.get("body"), str)]


def _key_marks(listed: list[Any], path: str) -> tuple[KeyMark, ...]:
    """Turn stripped entries into marks; js-sdk wants a numeric index and a key text in each."""
    marks = []
    for entry in listed:
        if not isinstance(entry, dict) or entry["index"] is None:
            raise Malformed(f"{path}[].index")
        if entry["mark"] is None:
            raise Malformed(f"{path}[].key")
        if not 0 <= entry["index"] <= 255:
            raise Malformed(f"{path}[].index")
        marks.append(KeyMark(index=entry["index"], **entry["mark"]))
    if not marks:
        raise Malformed(path)
    return tuple(marks)


def _parse_redaction(event: dict[str, Any], sender: UserId) -> Redaction:
    """`redacts` stands in the content from room version 11 on, at the top before."""
    content = event.get("content")
    redacts = event.get("redacts") or (content.get("redacts") if isinstance(content, dict) else None)
    if not _is_id(redacts):
        raise Malformed("redacts")
    return Redaction(sender=sender, redacts=EventId(redacts))


def _parse_room_state(kind: str, event: dict[str, Any], content: dict[str, Any], sender: UserId) -> RoomState | None:
    state_key = event.get("state_key")
    if not isinstance(state_key, str):
        return None  # a message posing as state
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


def _is_id(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= fields.MAX_TEXT and "\0" not in value


#: Nothing was decrypted.
_SEALED = Opened()
#: What stays of the outer event when what was sealed in it is read.
_OUTER = ("event_id", "room_id", "sender", "origin_server_ts", "msc4354_sticky", "sticky")
_ADDRESSES = ("sender", "to_user_id", "to_device_id")
_WATCHED_ONLY = frozenset({"m.room.encrypted", "m.room.member", "m.room.redaction"})
_RELEVANT = KEY_EVENT_TYPES | membership.STATE_TYPES | membership.STICKY_TYPES | set(_ROOM_STATE) | _WATCHED_ONLY
