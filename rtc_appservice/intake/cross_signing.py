"""Stage 2: is a device signed by its user's self-signing key? Needs libolm, so it stands apart from who asks."""

from collections.abc import Mapping
from typing import Any

from rtc_appservice.core.words import DeviceId, DeviceTrust, UserId
from rtc_appservice.intake.device_keys import identity_of, sealed_by

_TOLD = {DeviceTrust.CROSS_SIGNED: True, DeviceTrust.UNSIGNED: False}


def is_cross_signed(user_id: UserId, device_id: DeviceId, answer: Mapping[str, Any]) -> bool | None:
    """
    Tell from an answer of `/keys/query` whether a device is cross-signed, with every signature checked.

    None if the answer does not have the device, or has what does not fit together.
    """
    identity = identity_of(user_id, answer)
    for device_keys in identity.devices:
        public = device_keys.get("keys")
        if device_keys.get("device_id") != device_id or not isinstance(public, dict):
            continue
        # Judged as it would be if it had sealed a message with the keys it shows.
        claimed = {"keys": {"ed25519": public.get(f"ed25519:{device_id}")}}
        judged = sealed_by(claimed, user_id, str(public.get(f"curve25519:{device_id}")), identity)
        return _TOLD.get(judged.trust) if judged.device_id == device_id else None
    return None
