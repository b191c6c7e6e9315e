"""Stage 2: key events without their keys in, what is kept of them out; raises `Malformed`."""

from typing import Any

from msgspec.structs import replace

from rtc_appservice.core import fields, membership
from rtc_appservice.core.fields import Malformed
from rtc_appservice.core.observed import Body, KeyMark, Membership, RoomKey, ToDeviceKey
from rtc_appservice.core.opened import Plaintext
from rtc_appservice.core.words import DeviceId, UserId


def parse_room_key(kind: str, content: dict[str, Any], sender: UserId) -> RoomKey:
    """Parse the stripped content of a key event in a room; raises Malformed."""
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


def parse_to_device_key(message: dict[str, Any], sender_key_id: str | None) -> ToDeviceKey:
    """Parse a stripped key message; `sender_key_id` tells the Olm key that sealed it, None if none did."""
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


def with_sender(body: Body | None, plain: Plaintext) -> Body | None:
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
