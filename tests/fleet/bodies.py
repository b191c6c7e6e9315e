"""
Builds events and to-device messages as Synapse hands them to an appservice; sealed ones have the true length only.

Lengths come from the plaintext js-sdk seals, by the framing of Olm and Megolm: AES-CBC fills up to 16 bytes (a whole
block where it divides), Olm adds 1 version, 34 ratchet key, 2 chain index, 1 + varint length, 8 MAC; an Olm message
that opens a session (type 0) wraps this in 1 + 3 x 34 keys and 1 + varint length. Megolm adds 1 version, 1 + varint
index, 1 + varint length, 8 MAC, 64 signature. All in unpadded base64.
"""

import json
from typing import Any

from .generations import Device, Generation

KEY_TYPE = "io.element.call.encryption_keys"
MEMBER_TYPE = "org.matrix.msc3401.call.member"
FOUR_HOURS_MS = 14_400_000

_KEY43 = "k" * 43  # Curve25519 and Ed25519 keys
_SIGNATURE = "s" * 86
_FOCUS_URL = "https://sfu.sim.test/livekit/jwt"


def membership(room_id: str, device: Device, generation: Generation) -> dict[str, Any]:
    """Give the content of a session membership."""
    content: dict[str, Any] = {
        "application": "m.call",
        "call_id": "",
        "device_id": device[1],
        "foci_preferred": [{"type": "livekit", "livekit_service_url": _FOCUS_URL, "livekit_alias": room_id}],
        "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
        "scope": "m.room",
    }
    if generation.expires:
        content["expires"] = FOUR_HOURS_MS
    if generation.membership_id:
        content["membershipID"] = ":".join(device)
    return content


def state_key(device: Device, generation: Generation) -> str:
    """Give the state key of a membership; ordinary room versions want the leading underscore."""
    return f"_{device[0]}_{device[1]}" + ("_m.call" if generation.long_state_key else "")


def room_key(device: Device, keys: list[tuple[int, str]], sent_ts: int | None) -> dict[str, Any]:
    """Give the content of a room key event."""
    content: dict[str, Any] = {
        "call_id": "",
        "device_id": device[1],
        "keys": [{"index": index, "key": key} for index, key in keys],
    }
    return content if sent_ts is None else content | {"sent_ts": sent_ts}


def to_device_key(
    room_id: str, device: Device, index: int, key: str, sent_ts: int | None, member_id: str | None
) -> dict[str, Any]:
    """Give the content of a to-device key."""
    member = {"claimed_device_id": device[1]} | ({} if member_id is None else {"id": member_id})
    content: dict[str, Any] = {
        "keys": {"index": index, "key": key},
        "room_id": room_id,
        "member": member,
        "session": {"call_id": "", "application": "m.call", "scope": "m.room"},
    }
    return content if sent_ts is None else content | {"sent_ts": sent_ts}


def megolm_share(room_id: str) -> dict[str, Any]:
    """Give the content of an `m.room_key`: what sharing a Megolm session sends to each device."""
    return {
        "algorithm": "m.megolm.v1.aes-sha2",
        "room_id": room_id,
        "session_id": _KEY43,
        "session_key": "m" * 306,
        "org.matrix.msc3061.shared_history": False,
    }


def olm_body_length(
    kind: str, content: dict[str, Any], sender: Device, recipient: str, *, opening: bool, cross_signed: bool
) -> int:
    """Give the base64 characters of the sealed message."""
    signatures = {f"ed25519:{sender[1]}": _SIGNATURE}
    if cross_signed:
        signatures[f"ed25519:{_KEY43}"] = _SIGNATURE
    plaintext = _bytes(
        {
            "type": kind,
            "content": content,
            "sender": sender[0],
            "recipient": recipient,
            "recipient_keys": {"ed25519": _KEY43},
            "keys": {"ed25519": _KEY43},
            "sender_device_keys": {
                "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
                "device_id": sender[1],
                "keys": {f"curve25519:{sender[1]}": _KEY43, f"ed25519:{sender[1]}": _KEY43},
                "signatures": {sender[0]: signatures},
                "user_id": sender[0],
            },
        }
    )
    sealed = _aes(plaintext)
    message = 1 + 34 + 2 + 1 + _varint(sealed) + sealed + 8
    if opening:
        message = 1 + 3 * 34 + 1 + _varint(message) + message
    return _base64(message)


def megolm_length(room_id: str, kind: str, content: dict[str, Any], message_index: int) -> int:
    """Give the base64 characters of the sealed room event."""
    sealed = _aes(_bytes({"room_id": room_id, "type": kind, "content": content}))
    return _base64(1 + 1 + _varint(message_index) + 1 + _varint(sealed) + sealed + 8 + 64)


def olm_message(
    sender: str, sender_key: str, recipient: Device, body: str, message_id: str, *, opening: bool
) -> dict[str, Any]:
    """Give a to-device entry of a transaction."""
    return {
        "type": "m.room.encrypted",
        "sender": sender,
        "to_user_id": recipient[0],
        "to_device_id": recipient[1],
        "content": {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": sender_key,
            "ciphertext": {_KEY43: {"body": body, "type": 0 if opening else 1}},
            "org.matrix.msgid": message_id,
        },
    }


def event(
    kind: str, room_id: str, event_id: str, sender: str, origin_server_ts: int, content: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """Give a room event in the v1 form, without its ages."""
    return {
        "type": kind,
        "room_id": room_id,
        "event_id": event_id,
        "sender": sender,
        "user_id": sender,
        "origin_server_ts": origin_server_ts,
        "content": content,
        **more,
    }


def _bytes(value: dict[str, Any]) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def _aes(plaintext: int) -> int:
    return plaintext + 16 - plaintext % 16


def _base64(count: int) -> int:
    return -(-count * 4 // 3)
