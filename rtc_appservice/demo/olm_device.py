"""A real Olm device of a simulated participant: it seals key messages as js-sdk does, and opens those it gets."""

import logging
import uuid
from typing import Any

from mautrix.client import Client
from mautrix.crypto import OlmMachine
from mautrix.crypto.sessions import Session
from mautrix.crypto.signature import verify_signature_json
from mautrix.crypto.store import MemoryCryptoStore, StateStore
from mautrix.types import DeviceID, DeviceIdentity, EncryptionKeyAlgorithm, RoomID, UserID
from mautrix.util.logging import TraceLogger

from rtc_appservice.core.words import Device
from rtc_appservice.demo import wire
from rtc_appservice.errors import RtcAppserviceError

# mautrix logs request bodies, plaintexts and events it cannot read: nothing below critical may come out.
QUIET = TraceLogger("rtc_appservice.demo", logging.CRITICAL)


class NoOlmSession(RtcAppserviceError):
    """A simulated participant could not send to a device."""


class OlmDevice:
    """
    The device a client is logged in with, its Olm account in memory.

    From `publish` on, the client's `/sync` hands what arrives to the Olm machine, which decrypts it and passes it to
    the client's handlers.
    """

    def __init__(self, client: Client) -> None:
        """Take a client that is logged in."""
        self._client = client
        self._store = MemoryCryptoStore(client.mxid, "memory")
        self._machine = OlmMachine(client, self._store, NoEncryptedRooms(), log=QUIET)

    async def publish(self) -> None:
        """Make the account, and upload its device keys and one-time keys."""
        await self._machine.load()
        await self._machine.share_keys(0)

    async def seal(self, content: dict[str, Any], to: Device) -> dict[str, Any]:
        """Give the content of the `m.room.encrypted` that carries a key content to a device."""
        account = self._machine.account
        recipient = await self._machine.get_or_fetch_device(UserID(to[0]), DeviceID(to[1]))
        if account is None or recipient is None:
            raise NoOlmSession(f"{to[0]} has no device {to[1]} with keys")
        session = await self._session(recipient)
        device_keys = account.get_device_keys(self._client.mxid, self._client.device_id).serialize()
        device_keys.pop("unsigned")  # mautrix adds it, clients do not
        plaintext = wire.olm_plaintext(
            content,
            sender=self._client.mxid,
            sender_device_keys=device_keys,
            recipient=recipient.user_id,
            recipient_ed25519=recipient.signing_key,
        )
        return {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "ciphertext": {recipient.identity_key: session.encrypt(plaintext).serialize()},
            "org.matrix.msgid": uuid.uuid4().hex,
            "sender_key": account.identity_key,
        }

    async def _session(self, recipient: DeviceIdentity) -> Session:
        known = await self._store.get_latest_session(recipient.identity_key)
        if known is not None:
            return known
        algorithm = EncryptionKeyAlgorithm.SIGNED_CURVE25519
        claimed = await self._client.claim_keys({recipient.user_id: {recipient.device_id: algorithm}})
        _, one_time_key = claimed.one_time_keys[recipient.user_id][recipient.device_id].popitem()
        signed = verify_signature_json(one_time_key, recipient.user_id, recipient.device_id, recipient.signing_key)
        if not signed or self._machine.account is None:
            raise NoOlmSession(f"the one-time key of {recipient.user_id} is not signed by its device")
        session = self._machine.account.new_outbound_session(recipient.identity_key, one_time_key["key"])
        await self._store.add_session(recipient.identity_key, session)
        return session


class NoEncryptedRooms(StateStore):
    """The room state mautrix's Olm machine asks for, where no room is encrypted."""

    async def is_encrypted(self, room_id: RoomID) -> bool:
        """Say no."""
        return False

    async def get_encryption_info(self, room_id: RoomID) -> None:
        """Give nothing."""

    async def find_shared_rooms(self, user_id: UserID) -> list[RoomID]:
        """Give none."""
        return []
