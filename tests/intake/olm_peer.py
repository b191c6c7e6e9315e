"""A device of somebody else, with real Olm and Megolm, and ours to which it sends."""

import json
from typing import Any

from mautrix.crypto.signature import sign_olm
from olm.account import Account
from olm.group_session import OutboundGroupSession
from olm.pk import PkSigning
from olm.session import OutboundSession

from rtc_appservice.core.words import Device, DeviceId, UserId
from rtc_appservice.intake.keyring import Keyring

OURS: Device = (UserId("@auditor:lab.test"), DeviceId("OURS1"))
ROOM = "!" + "r" * 43
KEY_TYPE = "io.element.call.encryption_keys"


def our_keyring() -> Keyring:
    """Give the keys of our device, with one-time keys at hand."""
    account = Account()
    account.generate_one_time_keys(5)
    return Keyring(device=OURS, account=account)


class Peer:
    """A device that sends to ours."""

    def __init__(self, ours: Keyring, user: str = "@alice:lab.test", device: str = "ALICE1") -> None:
        """Make its keys, and a session with our device by one of its one-time keys."""
        self.user, self.device = user, device
        self.account = Account()
        self.ours = ours
        keys = sorted(ours.account.one_time_keys["curve25519"].values())
        one_time_key = keys[device != "ALICE1"]  # another for another device
        self.session = OutboundSession(self.account, ours.identity_key, one_time_key)
        self.megolm = OutboundGroupSession()

    @property
    def identity_key(self) -> str:
        """Its Curve25519 key."""
        return str(self.account.identity_keys["curve25519"])

    def device_keys(self, cross_signed_by: PkSigning | None = None) -> dict[str, Any]:
        """Give its device keys as published."""
        keys: dict[str, Any] = {
            "user_id": self.user,
            "device_id": self.device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {f"{name}:{self.device}": key for name, key in self.account.identity_keys.items()},
        }
        signatures = {f"ed25519:{self.device}": sign_olm(dict(keys), self.account)}
        if cross_signed_by is not None:
            signatures[f"ed25519:{cross_signed_by.public_key}"] = sign_olm(dict(keys), cross_signed_by)
        return {**keys, "signatures": {self.user: signatures}}

    def seal(self, kind: str, content: dict[str, Any], /, **changes: Any) -> dict[str, Any]:
        """Give a to-device message for our device; changes go into the plaintext, None takes a field out."""
        plaintext = {
            "type": kind,
            "content": content,
            "sender": self.user,
            "recipient": OURS[0],
            "recipient_keys": {"ed25519": self.ours.signing_key},
            "keys": {"ed25519": self.account.identity_keys["ed25519"]},
            "sender_device_keys": self.device_keys(),
            **changes,
        }
        sealed = self.session.encrypt(_json({name: value for name, value in plaintext.items() if value is not None}))
        return {
            "type": "m.room.encrypted",
            "sender": self.user,
            "to_user_id": OURS[0],
            "to_device_id": OURS[1],
            "content": {
                "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "sender_key": self.identity_key,
                "ciphertext": {self.ours.identity_key: {"type": sealed.message_type, "body": sealed.ciphertext}},
            },
        }

    def media_key(self, **changes: Any) -> dict[str, Any]:
        """Give a media key sealed for our device."""
        content = {
            "keys": {"index": 0, "key": "AAAAAAAAAAAAAAAAAAAAAA=="},
            "room_id": ROOM,
            "member": {"claimed_device_id": self.device},
            "session": {"call_id": "", "application": "m.call", "scope": "m.room"},
        }
        return self.seal(KEY_TYPE, content, **changes)

    def megolm_key(self, **changes: Any) -> dict[str, Any]:
        """Give the Megolm session, as it is now, sealed for our device."""
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "room_id": ROOM,
            "session_id": self.megolm.id,
            "session_key": self.megolm.session_key,
            **changes,
        }
        return self.seal("m.room_key", content)

    def event(self, number: int, kind: str, content: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Give a sealed room event."""
        text = self.megolm.encrypt(_json({"room_id": ROOM, "type": kind, "content": content, **changes}))
        return {
            "type": "m.room.encrypted",
            "event_id": f"$event{number}",
            "room_id": ROOM,
            "sender": self.user,
            "origin_server_ts": 1_795_000_000_000,
            "content": {"algorithm": "m.megolm.v1.aes-sha2", "session_id": self.megolm.id, "ciphertext": text},
        }

    def room_key(self, number: int, **changes: Any) -> dict[str, Any]:
        """Give a sealed media key event."""
        keys = [{"index": number, "key": "AAAAAAAAAAAAAAAAAAAAAA"}]
        return self.event(number, KEY_TYPE, {"call_id": "", "device_id": self.device, "keys": keys}, **changes)


def _json(content: dict[str, Any]) -> str:
    """Write JSON as js-sdk does: lengths are those of genuine clients."""
    return json.dumps(content, separators=(",", ":"))


def body(*messages: dict[str, Any], events: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """Give a transaction."""
    return {"events": list(events), "de.sorunome.msc2409.to_device": list(messages)}
