"""
What call clients of each generation put on the wire: membership contents, key contents, Olm plaintexts. Pure.

Field for field as matrix-js-sdk 36.2, 37.13 and 43.0 were seen to send them, so that the service, which predicts
the length of an Olm envelope from the parts a real client puts into it, meets in the demo what it meets in the world.
"""

import base64
import json
from enum import StrEnum
from typing import Any

from rtc_appservice.core.words import Device, KeyTransport

MEMBER_TYPE = "org.matrix.msc3401.call.member"
KEY_TYPE = "io.element.call.encryption_keys"

_SFU = "https://sfu.rtc.invalid/livekit/jwt"
_MEMBERSHIP_MILLISECONDS = 14_400_000


class Generation(StrEnum):
    """A kind of call client, by the js-sdk release it stands for."""

    ROOM_ONLY = "room_only"  #: 36.2: room events only
    SMART = "smart"  #: 37.13: to-device, and room events once somebody else uses them
    MODERN = "modern"  #: 43.0: to-device only


def state_key(generation: Generation, device: Device) -> str:
    """Give the state key of a device's membership; releases from 38.0 on add the application."""
    user_id, device_id = device
    return f"_{user_id}_{device_id}" + ("_m.call" if generation is Generation.MODERN else "")


def membership_content(generation: Generation, device: Device, room_id: str) -> dict[str, Any]:
    """Give the content of a first membership."""
    user_id, device_id = device
    content: dict[str, Any] = {
        "application": "m.call",
        "call_id": "",
        "device_id": device_id,
        "expires": _MEMBERSHIP_MILLISECONDS,
        "foci_preferred": [{"type": "livekit", "livekit_service_url": _SFU, "livekit_alias": room_id}],
        "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
        "scope": "m.room",
    }
    if generation is Generation.MODERN:
        content["focus_active"]["focus_selection"] = "multi_sfu"
        content["m.call.intent"] = "video"
        content["membershipID"] = f"{user_id}:{device_id}"
    return content


def key_text(generation: Generation, key: bytes) -> str:
    """Give a media key as text: the legacy manager writes unpadded base64, the newer one pads it."""
    text = base64.b64encode(key).decode()
    return text.rstrip("=") if generation is Generation.ROOM_ONLY else text


def key_content(
    generation: Generation,
    key_transport: KeyTransport,
    *,
    device: Device,
    room_id: str,
    member_id: str,
    index: int,
    key: bytes,
    sent_ts: int,
) -> dict[str, Any]:
    """Give the content of a key event: `keys` is a list in the room and an object to a device."""
    device_id = device[1]
    one = {"index": index, "key": key_text(generation, key)}
    if key_transport is KeyTransport.ROOM_EVENT:
        return {"call_id": "", "device_id": device_id, "keys": [one], "sent_ts": sent_ts}
    member: dict[str, str] = {"claimed_device_id": device_id}
    if generation is Generation.MODERN:
        member["id"] = member_id
    return {
        "keys": one,
        "member": member,
        "room_id": room_id,
        "sent_ts": sent_ts,
        "session": {"application": "m.call", "call_id": "", "scope": "m.room"},
    }


def olm_plaintext(
    content: dict[str, Any], *, sender: str, sender_device_keys: dict[str, Any], recipient: str, recipient_ed25519: str
) -> str:
    """
    Give the plaintext of a key to-device message as js-sdk builds it.

    That is without spaces, and with the sender's signed device keys (MSC4147) in place of the bare device id that
    mautrix writes.
    """
    device_id = sender_device_keys["device_id"]
    event = {
        "type": KEY_TYPE,
        "content": content,
        "sender": sender,
        "recipient": recipient,
        "recipient_keys": {"ed25519": recipient_ed25519},
        "keys": {"ed25519": sender_device_keys["keys"][f"ed25519:{device_id}"]},
        "sender_device_keys": sender_device_keys,
    }
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False)
