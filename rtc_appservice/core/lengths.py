"""
Stage 4: predicts how long the ciphertext of a media-key message is, from ids that everybody can see.

The plaintext of a key message is made of known parts: fixed type name, room id, user ids, device ids,
keys and signatures of fixed length, an index of one to three digits. Its length, and from it the length of
the ciphertext, can be computed without reading anything.

Olm, type 1, in bytes: 1 (version) + 34 (ratchet key) + 2 (chain index below 128) + 1 + varint(C) + C + 8 (MAC),
with C the AES-CBC ciphertext: the plaintext filled up to the next 16 bytes, a whole block added where it divides
already. Type 0 wraps this in 1 + 3 x 34 (one-time, base and identity key) + 1 + varint(length). Megolm:
1 + 1 + varint(message index) + 1 + varint(C) + C + 8 (MAC) + 64 (signature). All in unpadded base64.

Checked against recorded traffic of js-sdk 36.2 to 43.0 on Synapse 1.163.2: every room key and every to-device key
exact; Megolm session shares within one AES block of their own prediction and three from any key of the same sender.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rtc_appservice.core.words import DeviceId, RoomId, UserId

#: Base64 characters one AES block adds, rounded up.
BLOCK_CHARACTERS = 22
#: All recorded call keys hit a prediction exactly; one block leaves room for a number of another length. A Megolm
#: share is nearer to its own prediction, so it is not taken for a key even where a block would reach.
TOLERANCE_CHARACTERS = BLOCK_CHARACTERS

_KEY_TYPE = "io.element.call.encryption_keys"
_CURVE25519_OR_ED25519 = "x" * 43  # 32 bytes, unpadded base64
_SIGNATURE = "x" * 86  # 64 bytes, unpadded base64
_MILLISECONDS = 10**12  # 13 digits until the year 2286
_MEGOLM_SESSION_KEY = "x" * 306  # 229 bytes, unpadded base64
_SHARED_HISTORY = "org.matrix.msc3061.shared_history"
_UUID = "x" * 36
#: 16 bytes; the legacy manager (js-sdk up to 37.10) writes no padding, RTCEncryptionManager does.
_MEDIA_KEY = {"unpadded": "x" * 22, "padded": "x" * 24}

#: Content variants of a to-device key, oldest first: (name, media key text, `sent_ts`, `member.id`).
TO_DEVICE_VARIANTS: tuple[tuple[str, str, bool, str | None], ...] = (
    ("to_device_37_4", "unpadded", False, None),  # 37.4-37.10
    ("to_device_37_11", "padded", True, None),  # 37.11-39.x
    ("to_device_40", "padded", True, "uuid"),  # 40.0 on, Element Call
    ("to_device_40_user", "padded", True, "user_device"),  # 40.0 on, joinRoomSession
)
#: Content variants of a room key: (name, media key text, `sent_ts`).
ROOM_VARIANTS: tuple[tuple[str, str, bool], ...] = (
    ("room_34", "unpadded", False),  # up to 34.5
    ("room_34_6", "unpadded", True),  # 34.6 on, legacy manager
    ("room_37_11", "padded", True),  # RTCEncryptionManager
)


def _compact(value: dict[str, Any]) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def _varint(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _base64(count: int) -> int:
    return (count * 4 + 2) // 3


def _aes(plaintext: int) -> int:
    return (plaintext // 16 + 1) * 16


def olm_length(plaintext: int, olm_type: int) -> int:
    """Give the base64 characters of an Olm message body (type 0 or 1) for a plaintext of so many bytes."""
    cipher = _aes(plaintext)
    message = 1 + 34 + 2 + 1 + _varint(cipher) + cipher + 8
    if olm_type == 0:
        message = 1 + 3 * 34 + 1 + _varint(message) + message
    return _base64(message)


def megolm_length(plaintext: int, message_index: int = 0) -> int:
    """Give the base64 characters of a Megolm ciphertext for a plaintext of so many bytes."""
    cipher = _aes(plaintext)
    return _base64(1 + 1 + _varint(message_index) + 1 + _varint(cipher) + cipher + 8 + 64)


@lru_cache(maxsize=65536)
def to_device_lengths(
    room_id: RoomId, sender: UserId, sender_device: DeviceId, recipient: UserId, olm_type: int
) -> dict[str, tuple[int, ...]]:
    """Predict the body lengths of a to-device key, by content variant (cross-signed senders marked `+signed`)."""
    contents: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, key, sent_ts, member_id in TO_DEVICE_VARIANTS:
        member = {"claimed_device_id": str(sender_device)}
        if member_id is not None:
            member["id"] = _UUID if member_id == "uuid" else f"{sender}:{sender_device}"
        content: dict[str, Any] = {
            "keys": {"index": 0, "key": _MEDIA_KEY[key]},
            "room_id": room_id,
            "member": member,
            "session": {"call_id": "", "application": "m.call", "scope": "m.room"},
        }
        if sent_ts:
            content["sent_ts"] = _MILLISECONDS
        contents[name] = (_KEY_TYPE, content)
    for name, shared_history in (("megolm_share", None), ("megolm_share_history", True)):
        share = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "room_id": room_id,
            "session_id": _CURVE25519_OR_ED25519,
            "session_key": _MEGOLM_SESSION_KEY,
        }
        contents[name] = ("m.room_key", share if shared_history is None else share | {_SHARED_HISTORY: False})
    predictions: dict[str, tuple[int, ...]] = {}
    for name, (kind, content) in contents.items():
        digits = (0, 1, 2) if kind == _KEY_TYPE else (0,)  # a key's index has one to three
        for suffix, signed in (("", False), ("+signed", True)):
            plaintext = {
                "type": kind,
                "content": content,
                "sender": sender,
                "recipient": recipient,
                "recipient_keys": {"ed25519": _CURVE25519_OR_ED25519},
                "keys": {"ed25519": _CURVE25519_OR_ED25519},
                "sender_device_keys": _device_keys(sender, sender_device, signed=signed),
            }
            length = _compact(plaintext)
            predictions[name + suffix] = tuple(olm_length(length + more, olm_type) for more in digits)
    return predictions


@lru_cache(maxsize=65536)
def room_key_lengths(room_id: RoomId, device_id: DeviceId, *, with_history: bool = False) -> dict[str, frozenset[int]]:
    """
    Predict the ciphertext lengths a room key event can have, by content variant.

    `with_history`: the client may be so old (before js-sdk 34.6) that it repeats all keys of the session. For others
    those lengths are left out, since many an ordinary event has one of them.
    """
    predictions = {}
    for name, key, sent_ts in ROOM_VARIANTS:
        lengths = set()
        # js-sdk up to 34.5 repeats all keys of the session, whose indexes wrap at 16.
        single: list[Sequence[int]] = [(0,), (10,), (100,)]
        histories: list[Sequence[int]] = [range(count) for count in range(2, 17)]
        for indexes in single + histories if with_history and name == "room_34" else single:
            content: dict[str, Any] = {
                "keys": [{"index": index, "key": _MEDIA_KEY[key]} for index in indexes],
                "device_id": device_id,
                "call_id": "",
            }
            if sent_ts:
                content["sent_ts"] = _MILLISECONDS
            plaintext = _compact({"room_id": room_id, "type": _KEY_TYPE, "content": content})
            lengths |= {megolm_length(plaintext), megolm_length(plaintext, 128)}
        predictions[name] = frozenset(lengths)
    return predictions


def _device_keys(user_id: UserId, device_id: DeviceId, *, signed: bool) -> dict[str, Any]:
    """Build MSC4147 device keys: one signature by the device, one more by the user's self-signing key if signed."""
    signatures = {f"ed25519:{device_id}": _SIGNATURE}
    if signed:
        signatures[f"ed25519:{_CURVE25519_OR_ED25519}"] = _SIGNATURE
    return {
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": device_id,
        "keys": {f"curve25519:{device_id}": _CURVE25519_OR_ED25519, f"ed25519:{device_id}": _CURVE25519_OR_ED25519},
        "signatures": {user_id: signatures},
        "user_id": user_id,
    }


def classify_to_device(predictions: dict[str, tuple[int, ...]], length: int) -> tuple[str | None, int]:
    """
    Give the key variant a body length fits, or None, and the distance to the nearest prediction.

    Nearest wins; the oldest variant on a tie. A Megolm share, or a length that fits nothing, is None.
    """
    distances = {name: min(abs(predicted - length) for predicted in fits) for name, fits in predictions.items()}
    name = min(distances, key=lambda variant: distances[variant])
    distance = distances[name]
    is_key = not name.startswith("megolm_share") and distance <= TOLERANCE_CHARACTERS
    return (name if is_key else None), distance


def is_megolm_share(predictions: dict[str, tuple[int, ...]], length: int) -> bool:
    """Tell whether a body length fits the sharing of a Megolm session, which call devices also do."""
    shares = (fits[0] for name, fits in predictions.items() if name.startswith("megolm_share"))
    return any(abs(predicted - length) <= 2 * BLOCK_CHARACTERS for predicted in shares)
