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
from rtc_appservice.core.words import DeviceId, DeviceTrust, UserId

#: Unpadded base64 of an Ed25519 key: what a cross-signing key is called by.
_KEY_CHARACTERS = 43


class SealedBy(Struct, frozen=True):
    """The device that sealed a message, None where it is not proven, and how far it is trusted."""

    device_id: DeviceId | None
    trust: DeviceTrust


class Identity(Struct, frozen=True):
    """What the homeserver says of a user's devices, checked as far as signatures go."""

    self_signing_key: str | None = None  #: signed by the user's master key
    devices: tuple[dict[str, Any], ...] = ()


def identity_of(user_id: UserId, answer: Mapping[str, Any]) -> Identity:
    """Take a user's identity from the answer of `/keys/query`."""
    devices = _table(_table(answer, "device_keys"), user_id)
    master, self_signing = (_table(_table(answer, name), user_id) for name in ("master_keys", "self_signing_keys"))
    master_key, key = _public_key(master), _public_key(self_signing)
    is_key = master_key is not None and key is not None and len(key) == _KEY_CHARACTERS
    is_chained = is_key and _is_signed(self_signing, user_id, str(master_key), str(master_key))
    return Identity(key if is_chained else None, tuple(one for one in devices.values() if isinstance(one, dict)))


def sealed_by(
    plaintext: Mapping[str, Any], sender: UserId, sender_key: str, identity: Identity | None = None
) -> SealedBy:
    """
    Tell from the plaintext of an Olm message which device of its sender sealed it.

    Its device keys must name the sender, hold the very Curve25519 key the Olm session is with and the Ed25519 key the
    plaintext claims, and be signed by the latter. Without any, those the homeserver has are looked through.
    """
    identity = identity or Identity()
    signing_key = _table(plaintext, "keys").get("ed25519")
    attached = plaintext.get("sender_device_keys") or plaintext.get("org.matrix.msc4147.device_keys")
    listed = [keys for keys in identity.devices if sender_key in _table(keys, "keys").values()]
    if attached is None and not listed:
        return SealedBy(None, DeviceTrust.UNKNOWN)
    given = [attached] if attached is not None else []
    # The listed keys may have been signed by the user since the sender copied its own.
    found = [_check(keys, sender, sender_key, signing_key, identity.self_signing_key) for keys in (*given, *listed)]
    if any(one.trust is DeviceTrust.INVALID for one in found[:1]):
        return found[0]
    return max(found, key=lambda one: _ORDER.index(one.trust))


_ORDER = (
    DeviceTrust.INVALID,
    DeviceTrust.UNKNOWN,
    DeviceTrust.UNSIGNED,
    DeviceTrust.SIGNED_UNCHECKED,
    DeviceTrust.CROSS_SIGNED,
)


def _check(
    device_keys: Any, user_id: UserId, identity_key: str, signing_key: Any, self_signing_key: str | None
) -> SealedBy:
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
    if self_signing_key is not None:
        is_cross_signed = _is_signed(device_keys, user_id, self_signing_key, self_signing_key)
        trust = DeviceTrust.CROSS_SIGNED if is_cross_signed else DeviceTrust.UNSIGNED
        return SealedBy(DeviceId(device_id), trust)
    others = [name for name in _signatures(device_keys, user_id) if name != f"ed25519:{device_id}"]
    is_signed = any(len(name.removeprefix("ed25519:")) == _KEY_CHARACTERS for name in others)
    return SealedBy(DeviceId(device_id), DeviceTrust.SIGNED_UNCHECKED if is_signed else DeviceTrust.UNSIGNED)


def _table(source: Any, name: str) -> dict[str, Any]:
    found = source.get(name) if isinstance(source, Mapping) else None
    return found if isinstance(found, dict) else {}


def _public_key(key: dict[str, Any]) -> str | None:
    return next((value for value in _table(key, "keys").values() if isinstance(value, str)), None)


def _signatures(signed: dict[str, Any], user_id: UserId) -> dict[str, Any]:
    return _table(_table(signed, "signatures"), user_id)


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
    except (TypeError, ValueError, RecursionError):  # of what anybody may have signed, or put in a signature's place
        return False
