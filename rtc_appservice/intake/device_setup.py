"""
Stage 1: makes the device one that others share keys with: keys published, one-time keys at hand, cross-signed.

Whatever of it a crash interrupts is done at the next start. Keys are stored before they are shown to the homeserver.
"""

import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Any

from mautrix.crypto import OlmMachine
from mautrix.crypto.account import OlmAccount
from mautrix.crypto.cross_signing_key import CrossSigningSeeds
from mautrix.crypto.signature import sign_olm
from mautrix.crypto.store import MemoryCryptoStore, StateStore
from mautrix.types import RoomID, UserID

from rtc_appservice.intake.client_api import QUIET
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.device_api import DeviceApi
from rtc_appservice.intake.device_keys import identity_of
from rtc_appservice.intake.own_device import OwnDevice, pickle_key
from rtc_appservice.store import crypto
from rtc_appservice.store.pool import Pool, store_errors

#: What a fallback key was used for can be read by who gets hold of it later, so it gives way to another; but not more
#: often than this: the one before opens what is under way, and anybody can use one up.
ROTATED_AFTER = timedelta(hours=1)

_SEEDS = ("master", "self signing", "user signing")


def recovery_phrase(secret: bytes) -> str:
    """Derive from the deployment secret the phrase that opens the device's cross-signing keys on the homeserver."""
    digits = hmac.new(secret, b"recovery phrase", hashlib.sha256).hexdigest()[:48]
    return "-".join(digits[start : start + 8] for start in range(0, len(digits), 8))


class DeviceSetup:
    """What is done at start, and whenever one-time keys run low."""

    def __init__(self, pool: Pool, homeserver_id: int, own: OwnDevice, api: DeviceApi, secret: bytes) -> None:
        """Take the device, and the deployment secret that its cross-signing keys come from."""
        self._pool = pool
        self._homeserver_id = homeserver_id
        self._own = own
        self._api = api
        self._secret = secret
        self._rotated_at: datetime | None = None

    async def set_up(self, now: datetime) -> None:
        """
        Create, publish and sign the device, as far as it is not done yet; raises one of `RequestFailed`.

        The homeserver is asked, too: whoever deletes the device there deletes its keys.
        """
        await self._api.register()
        await self._api.create_device("RTC auditor")
        user_id, device_id = self._own.device
        listed = await self._api.query_keys([user_id])
        is_signed = is_cross_signed(user_id, device_id, listed)
        is_listed = any(keys.get("device_id") == device_id for keys in identity_of(user_id, listed).devices)
        with store_errors():
            async with self._pool.acquire() as conn, conn.transaction():
                row = await crypto.lock_device(conn, self._homeserver_id, self._own.device)
        counts = await self._api.upload_keys({})
        await self.refill(
            counts.get("signed_curve25519", 0), publish=row.published_at is None or not is_listed, now=now
        )
        if row.signed_at is None or not is_signed:
            await self._sign()
            with store_errors():
                async with self._pool.acquire() as conn:
                    await crypto.mark_signed(conn, self._homeserver_id, now)

    async def refill(self, count: int, *, publish: bool = False, is_fallback_used: bool = False, now: datetime) -> None:
        """Upload one-time keys if they run low, another fallback key if it was used, and what never was uploaded."""
        is_due = self._rotated_at is None or now - self._rotated_at >= ROTATED_AFTER
        rotate = publish or (is_fallback_used and is_due)
        with store_errors():
            async with self._pool.acquire() as conn, conn.transaction():
                row = await crypto.lock_device(conn, self._homeserver_id, self._own.device)
                account = self._own.account(row.account)
                wanted = account.max_one_time_keys // 2
                is_uploaded = not account.one_time_keys["curve25519"] and not account.fallback_key["curve25519"]
                if not rotate and count >= wanted // 2 and is_uploaded:
                    return
                if not account.one_time_keys["curve25519"]:
                    account.generate_one_time_keys(max(wanted - count, 0))
                # Made and not uploaded, one stays: another would drop the one that the homeserver has.
                if rotate and not account.fallback_key["curve25519"]:
                    account.generate_fallback_key()
                await crypto.save_account(conn, self._homeserver_id, self._own.pickle(account))
        content = self._upload(account, publish=publish)
        await self._api.upload_keys(content)
        with store_errors():
            async with self._pool.acquire() as conn, conn.transaction():
                row = await crypto.lock_device(conn, self._homeserver_id, self._own.device)
                stored = self._own.account(row.account)
                # One that somebody used meanwhile is gone from the account, and not to be uploaded once more.
                if stored.one_time_keys["curve25519"].items() <= account.one_time_keys["curve25519"].items():
                    stored.mark_keys_as_published()
                    await crypto.save_account(conn, self._homeserver_id, self._own.pickle(stored))
                if publish:
                    await crypto.mark_published(conn, self._homeserver_id, now)
        if rotate:
            self._rotated_at = now

    def _upload(self, account: Any, *, publish: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"one_time_keys": self._signed(account, account.one_time_keys["curve25519"])}
        if publish:
            content["device_keys"] = self._device_keys(account)
        fallback = account.fallback_key["curve25519"]
        if fallback:
            content["fallback_keys"] = self._signed(account, fallback, fallback=True)
        return content

    def _signed(self, account: Any, keys: dict[str, str], **more: bool) -> dict[str, Any]:
        signed = {}
        for key_id, key in keys.items():
            entry: dict[str, Any] = {"key": key, **more}
            entry["signatures"] = self._signatures(sign_olm(dict(entry), account))
            signed[f"signed_curve25519:{key_id}"] = entry
        return signed

    def _device_keys(self, account: Any) -> dict[str, Any]:
        user_id, device_id = self._own.device
        keys: dict[str, Any] = {
            "user_id": user_id,
            "device_id": device_id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {f"{algorithm}:{device_id}": key for algorithm, key in account.identity_keys.items()},
        }
        keys["signatures"] = self._signatures(sign_olm(dict(keys), account))
        return keys

    def _signatures(self, signature: str) -> dict[str, dict[str, str]]:
        user_id, device_id = self._own.device
        return {user_id: {f"ed25519:{device_id}": signature}}

    async def _sign(self) -> None:
        """
        Cross-sign the device by mautrix, with keys derived from the deployment secret.

        So the identity stays when the database is lost, and nothing secret is stored: the keys lie encrypted on the
        homeserver, where the recovery phrase opens them.
        """
        with store_errors():
            async with self._pool.acquire() as conn:
                row = await crypto.require_device(conn, self._homeserver_id, self._own.device)
        derived = (hmac.new(self._secret, f"cross-signing {name}".encode(), hashlib.sha256).digest() for name in _SEEDS)
        seeds = CrossSigningSeeds(*derived)
        found = identity_of(row.user_id, await self._api.query_keys([row.user_id]))
        if found.self_signing_key == seeds.to_keys().public_keys.self_signing_key:
            # Published by an earlier device. Synapse (1.163) answers 500 to the same keys once more.
            await self._sign_device(self._own.account(row.account), seeds)
            return
        store = MemoryCryptoStore(row.user_id, "memory")
        machine = OlmMachine(self._api.client, store, _NoRooms(), log=QUIET)
        machine.account = OlmAccount.from_pickle(row.account.encode(), pickle_key(self._secret), shared=True)
        await machine.generate_recovery_key(recovery_phrase(self._secret), seeds)

    async def _sign_device(self, account: Any, seeds: CrossSigningSeeds) -> None:
        key = seeds.to_keys().self_signing_key
        keys = self._device_keys(account)
        signature = sign_olm({name: value for name, value in keys.items() if name != "signatures"}, key)
        user_id, _ = self._own.device
        keys["signatures"] = {user_id: {f"ed25519:{key.public_key}": signature}}
        await self._api.upload_signature(keys)


class _NoRooms(StateStore):
    """The room state that mautrix's machine asks for when it sends: it never does."""

    async def is_encrypted(self, room_id: RoomID) -> bool:
        return False

    async def get_encryption_info(self, room_id: RoomID) -> None:
        return None

    async def find_shared_rooms(self, user_id: UserID) -> list[RoomID]:
        return []
