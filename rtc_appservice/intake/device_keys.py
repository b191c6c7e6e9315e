"""
Stage 2: which device sealed a message, and how far it is known to be its user's.

The Olm key that sealed a message says nothing of a device by itself; the device keys that clients send along (MSC4147,
`sender_device_keys` since Matrix 1.15) bind it to one, if they are that device's own.
"""

from collections.abc import Mapping
from typing import Any

from mautrix.crypto.signature import verify_signature_json
from mautrix.types import DeviceID, SigningKey, UserID
from msgspec import Struct

from rtc_appservice.core.fields import is_id
from rtc_appservice.core.model import DeviceId, DeviceTrust, UserId

#: Unpadded base64 of an Ed25519 key: what a cross-signing key is called by.
_KEY_CHARACTERS = 43


class SealedBy(Struct, frozen=True):
    """The device that sealed a message, None where it is not proven, and how far it is trusted."""

    device_id: DeviceId | None
    trust: DeviceTrust


NOBODY_KNOWN = SealedBy(None, DeviceTrust.UNKNOWN)


def sealed_by(plaintext: Mapping[str, Any], sender: UserId, sender_key: str) -> SealedBy:
    """
    Tell from the plaintext of an Olm message which device of its sender sealed it.

    Its device keys must name the sender, hold the very Curve25519 key the Olm session is with and the Ed25519 key the
    plaintext claims, and be signed by the latter.
    """
    attached = plaintext.get("sender_device_keys") or plaintext.get("org.matrix.msc4147.device_keys")
    if attached is None:
        return NOBODY_KNOWN
    claimed = plaintext.get("keys")
    signing_key = claimed.get("ed25519") if isinstance(claimed, dict) else None
    return check_device_keys(attached, sender, sender_key, signing_key)


def check_device_keys(device_keys: Any, user_id: UserId, identity_key: str, signing_key: Any) -> SealedBy:
    """Give the device whose keys these are, if they hold both keys and are signed by it."""
    invalid = SealedBy(None, DeviceTrust.INVALID)
    if not isinstance(device_keys, dict) or not isinstance(signing_key, str):
        return invalid
    device_id, keys = device_keys.get("device_id"), device_keys.get("keys")
    if device_keys.get("user_id") != user_id or not is_id(device_id) or not isinstance(keys, dict):
        return invalid
    if keys.get(f"curve25519:{device_id}") != identity_key or keys.get(f"ed25519:{device_id}") != signing_key:
        return invalid
    if not _is_signed(device_keys, user_id, device_id, signing_key):
        return invalid
    others = [name for name in _signatures(device_keys, user_id) if name != f"ed25519:{device_id}"]
    is_signed = any(len(name.removeprefix("ed25519:")) == _KEY_CHARACTERS for name in others)
    return SealedBy(DeviceId(device_id), DeviceTrust.SIGNED_UNCHECKED if is_signed else DeviceTrust.UNSIGNED)


def _signatures(signed: dict[str, Any], user_id: UserId) -> dict[str, Any]:
    by_user = signed.get("signatures")
    own = by_user.get(user_id) if isinstance(by_user, dict) else None
    return own if isinstance(own, dict) else {}


def _is_signed(signed: dict[str, Any], user_id: UserId, key_name: str, key: str) -> bool:
    if not isinstance(_signatures(signed, user_id).get(f"ed25519:{key_name}"), str):
        return False
    try:
        return verify_signature_json(
            {"unsigned": None, **signed},  # type: ignore[typeddict-item]  # what else it holds is signed too
            UserID(user_id),
            DeviceID(key_name),
            SigningKey(key),
        )
    except (TypeError, UnicodeError):
        return False
