"""
Stage 2: the to-device messages of a transaction in, observations and held envelopes out.

Most are sealed for somebody else's device and show their envelope only; those for a device of ours come opened.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct, field

from rtc_appservice.core.fields import Malformed, is_id
from rtc_appservice.core.keyed import Keyed
from rtc_appservice.core.media_key import parse_to_device_key, with_sender
from rtc_appservice.core.observed import Body, HeldEnvelope, Observation, OlmEnvelope, Rejected, Withheld
from rtc_appservice.core.opened import Opened, Plaintext, is_one_of
from rtc_appservice.core.strip import KEY_EVENT_TYPES, strip_key_event
from rtc_appservice.core.undecryptable import withheld_code
from rtc_appservice.core.words import DeviceId, RoomId, ServerName, UserId

#: js-sdk's shortest key message has some 900 plaintext bytes of ids and keys, its longest under 2 kB with MSC4147
#: device keys; in base64 with the Olm frame that stays within these bounds for ids up to 255 bytes.
CALL_KEY_BODY_LENGTHS = range(500, 6000)
_WITHHELD = frozenset({"m.room_key.withheld", "org.matrix.room_key.withheld"})
_TO_DEVICE = ("to_device", "de.sorunome.msc2409.to_device")
_ADDRESSES = ("sender", "to_user_id", "to_device_id")


class ToDevice(Struct):
    """What the to-device messages of a transaction held."""

    observations: list[Observation] = field(default_factory=list)
    envelopes: list[HeldEnvelope] = field(default_factory=list)
    served_users: set[UserId] = field(default_factory=set)  #: recipients
    count: int = 0


class ToDeviceReader:
    """Reads the to-device messages of one homeserver; raises on nothing."""

    def __init__(self, homeserver: ServerName, keyed: Keyed) -> None:
        """Take the homeserver's name, and what makes identities."""
        self._homeserver = homeserver
        self._keyed = keyed

    def read(self, body: dict[str, Any], received_at: datetime, opened: Opened) -> ToDevice:
        """Read the to-device part of a transaction body."""
        found = ToDevice()
        messages = body.get(_TO_DEVICE[0]) or body.get(_TO_DEVICE[1])
        if not isinstance(messages, list) or not messages:
            return found
        found.count = len(messages)
        for message in messages:
            if not isinstance(message, dict):
                continue
            recipient = message.get("to_user_id")
            if is_id(recipient):
                found.served_users.add(UserId(recipient))
            kind = message.get("type")
            if kind == "m.room.encrypted":
                readable = opened.message(message)
                if readable is not None:
                    self._read_opened_key(message, *readable, received_at, found)
                    continue
                envelope = self._read_olm(message, received_at)
                if envelope is not None:
                    found.envelopes.append(envelope)
            elif isinstance(kind, str) and kind in KEY_EVENT_TYPES:
                self._read_cleartext_key(message, received_at, found)
            elif (
                isinstance(kind, str)
                and kind in _WITHHELD
                and is_one_of((recipient, message.get("to_device_id")), opened.devices)
            ):
                self._read_withheld(message, received_at, found)

        return found

    def _read_olm(self, message: dict[str, Any], received_at: datetime) -> HeldEnvelope | None:
        sender, recipient, device = message.get("sender"), message.get("to_user_id"), message.get("to_device_id")
        content = message.get("content")
        ciphertext = content.get("ciphertext") if isinstance(content, dict) else None
        if not (is_id(sender) and is_id(recipient) and is_id(device)):
            return None
        if not isinstance(content, dict) or not isinstance(ciphertext, dict):
            return None
        sender_key = content.get("sender_key")
        for sealed in ciphertext.values():
            text = sealed.get("body") if isinstance(sealed, dict) else None
            if isinstance(text, str) and sealed.get("type") in (0, 1) and len(text) in CALL_KEY_BODY_LENGTHS:
                return HeldEnvelope(
                    homeserver=self._homeserver,
                    identity=self._keyed.identity(text, recipient, device),
                    received_at=received_at,
                    body=OlmEnvelope(
                        sender=UserId(sender),
                        recipient=UserId(recipient),
                        recipient_device=DeviceId(device),
                        olm_type=sealed["type"],
                        body_length=len(text),
                        sender_key_id=self._keyed.identity(sender_key if isinstance(sender_key, str) else ""),
                    ),
                )
        return None

    def _read_cleartext_key(self, message: dict[str, Any], received_at: datetime, found: ToDevice) -> None:
        message = self._strip_to_device_key(message)
        content = message.get("content", {})
        identity = self._keyed.identity(repr(sorted(content.items())), *(str(message.get(name)) for name in _ADDRESSES))
        self._add_to_device_key(message, identity, received_at, found)

    def _read_opened_key(
        self, message: dict[str, Any], text: str, plain: Plaintext, received_at: datetime, found: ToDevice
    ) -> None:
        if plain.type in KEY_EVENT_TYPES:
            addresses = {name: message.get(name) for name in _ADDRESSES}
            key = self._strip_to_device_key({**addresses, "type": plain.type, "content": plain.content})
            identity = self._keyed.identity(text, str(addresses["to_user_id"]), str(addresses["to_device_id"]))
            sender_key = self._keyed.identity(str(message["content"].get("sender_key")))
            self._add_to_device_key(key, identity, received_at, found, plain, sender_key)

    def _strip_to_device_key(self, message: dict[str, Any]) -> dict[str, Any]:
        claimed = message.get("content")
        return strip_key_event(
            message, self._keyed.tagger(claimed.get("room_id") if isinstance(claimed, dict) else None)
        )

    def _add_to_device_key(
        self,
        message: dict[str, Any],
        identity: str,
        received_at: datetime,
        found: ToDevice,
        plain: Plaintext | None = None,
        sender_key_id: str | None = None,
    ) -> None:
        """Record a stripped key message, of our device (`plain`) or sent without Olm."""
        claimed_room = message.get("content", {}).get("room_id")
        if not (all(is_id(message.get(name)) for name in _ADDRESSES) and is_id(claimed_room)):
            return
        body: Body | None
        try:
            body = parse_to_device_key(message, sender_key_id)
        except Malformed as fault:
            sender = UserId(message["sender"])
            body = Rejected(sender=sender, event_type=message["type"], reason="malformed", field=fault.field)
        if plain is not None:
            body = with_sender(body, plain)
        if body is not None:
            self._add_to_device(body, RoomId(claimed_room), identity, received_at, found)

    def _read_withheld(self, message: dict[str, Any], received_at: datetime, found: ToDevice) -> None:
        """Record that a Megolm session is kept from our device; a code without a room (`m.no_olm`) names no session."""
        content = message.get("content")
        content = content if isinstance(content, dict) else {}
        room_id, session_id, code = (content.get(name) for name in ("room_id", "session_id", "code"))
        sender = message.get("sender")
        if is_id(sender) and is_id(room_id) and is_id(session_id) and is_id(code):
            body = Withheld(
                sender=UserId(sender), code=withheld_code(code), session_key_id=self._keyed.identity(session_id)
            )
            identity = self._keyed.identity("withheld", sender, room_id, session_id, code)
            self._add_to_device(body, RoomId(room_id), identity, received_at, found)

    def _add_to_device(
        self, body: Body, room_id: RoomId, identity: str, received_at: datetime, found: ToDevice
    ) -> None:
        found.observations.append(
            Observation(
                homeserver=self._homeserver,
                room_id=room_id,
                identity=identity,
                event_at=received_at,
                received_at=received_at,
                body=body,
            )
        )
