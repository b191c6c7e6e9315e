"""
Stage 1: what `doctor` finds of the service's own device: its keys here and there, and whether it can be written to.

Nothing here is committed: what a message opened changed is forgotten, and the service opens it once more when it runs.
"""

import json
import secrets
from typing import Any

from mautrix.api import Method, Path
from mautrix.crypto.signature import verify_signature_json
from mautrix.types import DeviceID, SigningKey, UserID
from olm.account import Account
from olm.session import OutboundSession

from rtc_appservice.core.installation import DeviceFacts
from rtc_appservice.core.words import Device, ServerName
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.decrypt import open_transaction
from rtc_appservice.intake.device_api import SYNC_FILTER, DeviceApi, OddAnswer
from rtc_appservice.intake.keyring import message_id
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.intake.probes import ProbeServer, TemporaryDevice
from rtc_appservice.store import crypto
from rtc_appservice.store.pool import Pool, store_errors

#: No client knows it, and the service drops what it does not know.
PROBE_TYPE = "rtc_appservice.doctor"
#: As many to-device messages Synapse (1.163) gives in one `/sync`.
_MOST_AT_ONCE = 100
_SYNC_TIMEOUT_MS = 5_000


class _FreshSync(DeviceApi):
    """The device's requests, of which `/sync` is answered anew each time."""

    async def sync(self, since: str | None) -> dict[str, Any]:
        """Give what waits for the device. Without a token nothing is waited for, and nothing is confirmed as taken."""
        # Synapse keeps an answer for two minutes and gives it to who asks for the very same.
        query = {"timeout": str(secrets.randbelow(_SYNC_TIMEOUT_MS)), "filter": SYNC_FILTER, "set_presence": "offline"}
        if since:
            query["since"] = since
        answer: dict[str, Any] = await self._api.request(Method.GET, Path.v3.sync, query_params=query)
        return answer


class DeviceProbe:
    """The device as the database has it, and as the homeserver knows it."""

    def __init__(
        self, pool: Pool, homeserver_id: int, own: OwnDevice, server: ProbeServer, row: crypto.DeviceRow
    ) -> None:
        """Take what `open_probe` found."""
        self._pool = pool
        self._homeserver_id = homeserver_id
        self._own = own
        self._server = server
        self._api = _FreshSync(server.server, server.as_token, server.open_client(), own.device)
        self._sync_token = row.sync_token
        self._keys: dict[str, str] = own.account(row.account).identity_keys
        self.device = own.device

    async def facts(self) -> DeviceFacts:
        """Ask the homeserver; raises one of `RequestFailed`."""
        user_id, device_id = self.device
        # As the sender: a device that is not there can ask for nothing.
        content: dict[str, Any] = {"device_keys": {user_id: []}}
        answer = (await self._server.ask("POST", "/_matrix/client/v3/keys/query", content)).body
        listed = answer.get("device_keys")
        of_user = listed.get(user_id) if isinstance(listed, dict) else None
        keys = of_user.get(device_id) if isinstance(of_user, dict) else None
        if not isinstance(keys, dict):
            return DeviceFacts(known=False)
        expected = {f"{algorithm}:{device_id}": key for algorithm, key in self._keys.items()}
        synced = await self._api.sync(None)
        counts, unused = synced.get("device_one_time_keys_count"), synced.get("device_unused_fallback_key_types")
        count = counts.get("signed_curve25519") if isinstance(counts, dict) else None
        return DeviceFacts(
            known=True,
            same=keys.get("keys") == expected,
            cross_signed=is_cross_signed(user_id, device_id, answer),
            one_time_keys=count if isinstance(count, int) else 0,
            unused_fallback_key="signed_curve25519" in unused if isinstance(unused, list) else None,
        )

    async def send_sealed(self, sender: TemporaryDevice) -> str:
        """Have a device send this one a sealed message that asks for nothing; give the sealed text."""
        user_id, device_id = self.device
        key = await sender.api.claim_key(self.device)
        signed = verify_signature_json(
            {"unsigned": None, **key},  # type: ignore[typeddict-item]
            UserID(user_id),
            DeviceID(device_id),
            SigningKey(self._keys["ed25519"]),
        )
        if not signed or not isinstance(key.get("key"), str):
            raise OddAnswer
        account = Account()
        session = OutboundSession(account, self._keys["curve25519"], key["key"])
        plaintext = {
            "type": PROBE_TYPE,
            "content": {},
            "sender": sender.device[0],
            "sender_device": sender.device[1],
            "keys": {"ed25519": account.identity_keys["ed25519"]},
            "recipient": user_id,
            "recipient_keys": {"ed25519": self._keys["ed25519"]},
        }
        sealed = session.encrypt(json.dumps(plaintext))
        text = str(sealed.ciphertext)
        content = {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": account.identity_keys["curve25519"],
            "ciphertext": {self._keys["curve25519"]: {"type": sealed.message_type, "body": text}},
        }
        await sender.api.send_to_device("m.room.encrypted", self.device, content)
        return text

    async def is_opened(self, text: str) -> bool:
        """Tell whether the running service has opened a sealed text."""
        name = message_id(text)
        with store_errors():
            async with self._pool.acquire() as conn:
                return name in await crypto.load_taken(conn, self._homeserver_id, [name])

    async def opens(self, text: str) -> bool | None:
        """
        Fetch a sealed text from the homeserver and open it with the keys in the database, which stay as they are.

        None if so much waits for the device that the homeserver does not show it yet.
        """
        # What came before this token was taken already: nothing is confirmed that the service has not.
        synced = await self._api.sync(self._sync_token)
        to_device = synced.get("to_device")
        listed = to_device.get("events") if isinstance(to_device, dict) else None
        events = [event for event in listed if isinstance(event, dict)] if isinstance(listed, list) else []
        found = next((event for event in events if text in json.dumps(event)), None)
        if found is None:
            return None if len(events) >= _MOST_AT_ONCE else False
        user_id, device_id = self.device
        body = {"events": [], "to_device": [{**found, "to_user_id": user_id, "to_device_id": device_id}]}
        with store_errors():
            async with self._pool.acquire() as conn:
                within = conn.transaction()
                await within.start()
                try:
                    keyring = await self._own.load(conn, body)
                    reading = open_transaction(body, keyring)
                finally:
                    await within.rollback()
        return not reading.unread_messages and reading.opened.messages[text].type == PROBE_TYPE


async def open_probe(
    pool: Pool, server: ProbeServer, homeserver: ServerName, homeserver_id: int, secret: bytes
) -> DeviceProbe | None:
    """Give the device that the database has, None if it has none yet; raises OtherSecret."""
    with store_errors():
        async with pool.acquire() as conn:
            row = await crypto.load_device(conn, homeserver_id)
    if row is None:
        return None
    device: Device = (row.user_id, row.device_id)
    own = OwnDevice(homeserver, homeserver_id, device, secret)
    server.own_users.add(row.user_id)
    return DeviceProbe(pool, homeserver_id, own, server, row)
