"""
Stage 2: a transaction and a device's keys in, what the device could read of it out.

To-device messages come first, since they bring the sessions that open the events beside them. What was read goes to
the reader, which strips it; what could not be read is told with the reason, by event id only.

mautrix's Olm machine is not used for it. Version 0.21.1 advances the ratchet and then raises `AttributeError` for
every message of a custom type, drops withheld codes and cleartext call keys at debug level, logs plaintexts it cannot
parse, answers a message it cannot open by sending a new session, and commits each step by itself.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from msgspec import Struct, field

from rtc_appservice.core.fields import from_ms, is_id
from rtc_appservice.core.opened import Opened, Plaintext
from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode, withheld_code
from rtc_appservice.core.words import Device, DeviceTrust, RoomId, UserId
from rtc_appservice.intake.device_keys import Identity, sealed_by
from rtc_appservice.intake.keyring import CannotOpen, Keyring, Place, message_id

OLM = "m.olm.v1.curve25519-aes-sha2"
MEGOLM = "m.megolm.v1.aes-sha2"
WITHHELD_TYPES = ("m.room_key.withheld", "org.matrix.room_key.withheld")
_TO_DEVICE = ("to_device", "de.sorunome.msc2409.to_device")


class UnreadEvent(Struct, frozen=True, kw_only=True):
    """A room event that could not be opened."""

    event_id: str
    room_id: RoomId
    session_id: str
    sender: UserId
    at: datetime | None  #: `origin_server_ts`
    reason: UndecryptableReason


class Reading(Struct):
    """What opening a transaction yielded."""

    opened: Opened
    unread_events: list[UnreadEvent] = field(default_factory=list)
    #: To-device messages that could not be opened: (hash of the ciphertext, reason).
    unread_messages: list[tuple[str, UndecryptableReason]] = field(default_factory=list)
    #: Megolm sessions that came, or came again from an earlier index: what waits for them can be opened now.
    sessions: set[tuple[RoomId, str]] = field(default_factory=set)
    #: Megolm sessions that a user keeps from the device, with the code that says why.
    withheld: dict[tuple[RoomId, str, UserId], WithheldCode] = field(default_factory=dict)


class SealedMessage(Struct, frozen=True):
    """An Olm message for our device."""

    sender: UserId
    sender_key: str
    olm_type: int
    text: str


def open_transaction(
    body: dict[str, Any], keyring: Keyring, identities: Mapping[UserId, Identity] | None = None
) -> Reading:
    """
    Open what a transaction holds for a device; raises on nothing. What it changed stands in `keyring.changes`.

    `identities` is what the homeserver says of the senders; without it, what they send along has to do.
    """
    reading = Reading(Opened(devices=frozenset({keyring.device})))
    for message in messages_for(body, keyring.device, keyring.identity_key):
        _open_message(message, keyring, (identities or {}).get(message.sender), reading)
    _take_withheld(body, keyring.device, reading)
    for event in sealed_events(body):
        open_event(event, keyring, reading)
    return reading


def _addressed_to(body: dict[str, Any], device: Device) -> Iterator[dict[str, Any]]:
    messages = body.get(_TO_DEVICE[0]) or body.get(_TO_DEVICE[1])
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and (message.get("to_user_id"), message.get("to_device_id")) == device:
            yield message


def _take_withheld(body: dict[str, Any], device: Device, reading: Reading) -> None:
    for message in _addressed_to(body, device):
        content, sender = message.get("content"), message.get("sender")
        if message.get("type") in WITHHELD_TYPES and isinstance(content, dict) and is_id(sender):
            room_id, session_id, code = (content.get(name) for name in ("room_id", "session_id", "code"))
            if is_id(room_id) and is_id(session_id) and is_id(code):
                reading.withheld[(RoomId(room_id), session_id, UserId(sender))] = withheld_code(code)


def messages_for(body: dict[str, Any], device: Device, identity_key: str) -> Iterator[SealedMessage]:
    """Yield the Olm messages of a transaction that are for a device."""
    for message in _addressed_to(body, device):
        if message.get("type") != "m.room.encrypted":
            continue
        content, sender = message.get("content"), message.get("sender")
        if not isinstance(content, dict) or content.get("algorithm") != OLM or not is_id(sender):
            continue
        ciphertext, sender_key = content.get("ciphertext"), content.get("sender_key")
        sealed = ciphertext.get(identity_key) if isinstance(ciphertext, dict) else None
        if not isinstance(sealed, dict) or not is_id(sender_key):
            continue
        text, olm_type = sealed.get("body"), sealed.get("type")
        if isinstance(text, str) and type(olm_type) is int and olm_type in (0, 1):
            yield SealedMessage(UserId(sender), sender_key, olm_type, text)


def sealed_events(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the Megolm events of a transaction."""
    events = body.get("events")
    for event in events if isinstance(events, list) else ():
        if isinstance(event, dict) and event.get("type") == "m.room.encrypted":
            content = event.get("content")
            ids = (event.get("event_id"), event.get("room_id"), event.get("sender"))
            if isinstance(content, dict) and content.get("algorithm") == MEGOLM and all(map(is_id, ids)):
                session_id, text = content.get("session_id"), content.get("ciphertext")
                if is_id(session_id) and isinstance(text, str):
                    yield event


def _open_message(message: SealedMessage, keyring: Keyring, identity: Identity | None, reading: Reading) -> None:
    if keyring.is_taken(message.text):
        reading.opened.messages.setdefault(message.text, _READ_BEFORE)
        return
    try:
        plaintext = _parse(keyring.open_olm(message.sender, message.sender_key, message.olm_type, message.text))
        keyring.take(message.text)
        content = _checked_content(plaintext, message, keyring)
    except CannotOpen as fault:
        reading.unread_messages.append((message_id(message.text), fault.reason))
        return
    sender = sealed_by(plaintext, message.sender, message.sender_key, identity)
    kind = plaintext["type"]
    if kind == "m.room_key":
        given = (message.sender, message.sender_key, sender)
        if content.get("algorithm") == MEGOLM:
            room_id, session_id, session_key = (content.get(name) for name in ("room_id", "session_id", "session_key"))
            if is_id(room_id) and is_id(session_id) and isinstance(session_key, str):
                room = RoomId(room_id)
                if keyring.add_megolm(room, session_id, session_key, given):
                    reading.sessions.add((room, session_id))
        content = {}
    reading.opened.messages[message.text] = Plaintext(
        type=kind, content=content, sender_device_id=sender.device_id, trust=sender.trust
    )


def open_event(event: dict[str, Any], keyring: Keyring, reading: Reading) -> None:
    """Open one Megolm event, as `sealed_events` yields it, and add what came of it to a reading."""
    content, room_id, event_id = event["content"], RoomId(event["room_id"]), event["event_id"]
    session_id, sender, at = content["session_id"], UserId(event["sender"]), origin_time(event)
    try:
        text, index, session = keyring.open_megolm(room_id, session_id, sender, content["ciphertext"])
        plaintext = _parse(text)
        inner = plaintext.get("content")
        if not isinstance(inner, dict):
            raise CannotOpen(UndecryptableReason.MALFORMED)
        if plaintext.get("room_id") != room_id:
            raise CannotOpen(UndecryptableReason.WRONG_ROOM)
        # Before its sender's own session has come, too: whoever has it may send a copy meanwhile.
        keyring.take_place(session_id, sender, index, Place(event_id, at))
        if session.owner != sender:
            raise CannotOpen(UndecryptableReason.WRONG_SENDER)
    except CannotOpen as fault:
        reading.unread_events.append(
            UnreadEvent(
                event_id=event_id,
                room_id=room_id,
                session_id=session_id,
                sender=sender,
                at=at,
                reason=fault.reason,
            )
        )
        return
    reading.opened.events[event_id] = Plaintext(
        type=plaintext["type"],
        content=inner,
        sender_device_id=session.sealed_by.device_id,
        trust=session.sealed_by.trust,
    )


def origin_time(event: dict[str, Any]) -> datetime | None:
    """Give the `origin_server_ts` of an event, if it is a time."""
    ts = event.get("origin_server_ts")
    return from_ms(ts) if type(ts) is int else None


def _parse(text: str) -> dict[str, Any]:
    """Parse a plaintext to an object with a type; what is raised quotes nothing of it."""
    try:
        plaintext = orjson.loads(text)
    except ValueError:
        plaintext = None
    if not isinstance(plaintext, dict) or not isinstance(plaintext.get("type"), str):
        raise CannotOpen(UndecryptableReason.MALFORMED)
    return plaintext


def _checked_content(plaintext: dict[str, Any], message: SealedMessage, keyring: Keyring) -> dict[str, Any]:
    """Give the content of an Olm plaintext that is from whom it was said to be and for us."""
    content, for_keys = plaintext.get("content"), plaintext.get("recipient_keys")
    if plaintext.get("sender") != message.sender:
        raise CannotOpen(UndecryptableReason.WRONG_SENDER)
    own_key = for_keys.get("ed25519") if isinstance(for_keys, dict) else None
    if plaintext.get("recipient") != keyring.device[0] or own_key != keyring.signing_key:
        raise CannotOpen(UndecryptableReason.WRONG_RECIPIENT)
    if not isinstance(content, dict):
        raise CannotOpen(UndecryptableReason.MALFORMED)
    return content


#: Stands for a message that was taken before: it holds nothing more.
_READ_BEFORE = Plaintext(type="", content={}, sender_device_id=None, trust=DeviceTrust.UNKNOWN)
