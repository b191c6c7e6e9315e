"""Stage 2: what devices of ours read in sealed events and messages, on its way to the reader that strips it."""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct, field

from rtc_appservice.core.words import Device, DeviceId, DeviceTrust


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

    def event(self, event: dict[str, Any]) -> Plaintext | None:
        """Give what was in a sealed room event, if it was read."""
        event_id = event.get("event_id")
        return self.events.get(event_id) if isinstance(event_id, str) else None

    def message(self, message: dict[str, Any]) -> tuple[str, Plaintext] | None:
        """Give the ciphertext that a to-device message holds for our device with what was in it, if it was read."""
        address = (message.get("to_user_id"), message.get("to_device_id"))
        if self.messages and is_one_of(address, self.devices):
            for text in olm_bodies(message.get("content")):
                if text in self.messages:
                    return text, self.messages[text]
        return None


def is_one_of(address: tuple[Any, Any], devices: frozenset[Device]) -> bool:
    """Tell whether an address as it came over the wire is one of these devices."""
    return all(isinstance(part, str) for part in address) and address in devices


def olm_bodies(content: Any) -> Iterator[str]:
    """Yield the ciphertexts of the content of an Olm message: one for each device it is for, mostly one."""
    sealed = content.get("ciphertext") if isinstance(content, dict) else None
    for part in sealed.values() if isinstance(sealed, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("body"), str):
            yield part["body"]
