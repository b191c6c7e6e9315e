"""Who the service's own device is, and whom it takes senders for, on a real Synapse."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from Crypto.Cipher import AES
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.types import RoomID
from olm.pk import PkSigning

from rtc_appservice.core.observed import ToDeviceKey
from rtc_appservice.core.words import DeviceTrust, Evidence, FindingKind, RoomId, Severity
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.device_setup import recovery_phrase
from rtc_appservice.intake.own_device import OtherSecret
from rtc_appservice.store.crypto import forget_device
from rtc_appservice.store.pool import Pool
from tests.acceptance.sealed_room import BOT, SECRET, Sender, Service, running_service, sealed_synapse, sender, until
from tests.core.build import project_room

Homeserver = tuple[str, Path, int]
OTHER_SECRET = b"the secret that the deployment has from now on"
SIGNED = "SELECT count(*) FROM crypto.device WHERE signed_at IS NOT NULL"


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """Give a Synapse with the registration of the service."""
    async with sealed_synapse(tmp_path_factory.mktemp("synapse")) as given:
        yield given


def bytes_of(text: str) -> bytes:
    """Decode base64 with or without padding."""
    return base64.b64decode(text + "=" * (-len(text) % 4))


def opened(phrase: str, key: dict[str, Any], sealed: dict[str, str], name: str) -> str:
    """Open a secret of secure storage as the Matrix specification has it, with nothing of the service's."""
    given = key["passphrase"]
    raw = hashlib.pbkdf2_hmac("sha512", phrase.encode(), given["salt"].encode(), given["iterations"], 32)
    # HKDF-SHA-256 with a salt of 32 zero bytes: two blocks, the AES key and the MAC key.
    extracted = hmac.digest(bytes(32), raw, "sha256")
    aes_key = hmac.digest(extracted, name.encode() + b"\x01", "sha256")
    mac_key = hmac.digest(extracted, aes_key + name.encode() + b"\x02", "sha256")
    ciphertext, iv = bytes_of(sealed["ciphertext"]), bytes_of(sealed["iv"])
    assert hmac.compare_digest(hmac.digest(mac_key, ciphertext, "sha256"), bytes_of(sealed["mac"]))
    cipher = AES.new(aes_key, AES.MODE_CTR, nonce=b"", initial_value=iv)
    return cipher.decrypt(ciphertext).decode()


async def public_keys_by_phrase(service: Service, phrase: str) -> dict[str, str]:
    """Open the secrets that lie on the homeserver, and give the public key of each."""
    client = service.auditor._api.client

    async def stored(name: str) -> Any:
        path = ApiPath.v3.user[BOT].account_data[name]
        return await client.api.request(Method.GET, path)

    key_id = (await stored("m.secret_storage.default_key"))["key"]
    key = await stored(f"m.secret_storage.key.{key_id}")
    found = {}
    for usage in ("master", "self_signing"):
        name = f"m.cross_signing.{usage}"
        seed = opened(phrase, key, (await stored(name))["encrypted"][key_id], name)
        found[usage] = str(PkSigning(bytes_of(seed)).public_key)
    return found


async def published(who: Sender) -> dict[str, str]:
    """Give the public keys of the identity of the device's user, as the homeserver tells them to others."""
    answer = await who.client.api.request(Method.POST, ApiPath.v3.keys.query, {"device_keys": {BOT: []}})
    (master,) = answer["master_keys"][BOT]["keys"].values()
    (self_signing,) = answer["self_signing_keys"][BOT]["keys"].values()
    return {"master": master, "self_signing": self_signing}


async def signed_devices(who: Sender) -> set[str]:
    """Give the devices of the device's user that its identity as it is has signed."""
    answer = await who.client.api.request(Method.POST, ApiPath.v3.keys.query, {"device_keys": {BOT: []}})
    return {name for name in answer["device_keys"][BOT] if is_cross_signed(BOT, name, answer)}


async def to_device_keys(service: Service, room_id: RoomId) -> list[ToDeviceKey]:
    """Give the to-device keys that are recorded."""
    return [o.body for o in await service.observations(room_id) if isinstance(o.body, ToDeviceKey)]


async def test_whom_senders_are_taken_for(homeserver: Homeserver, pool: Pool) -> None:
    """A device that its user signed, one that nobody signed, and one that names another device in its key."""
    address, path, port = homeserver
    async with (
        running_service(pool, address, path, port) as service,
        sender(address, "signe") as signed,
        sender(address, "una") as unsigned,
        sender(address, "fay") as other,
    ):
        for who in (signed, other):
            await who.machine.generate_recovery_key()
        ours = service.auditor.own.device[1]
        room_id = await signed.make_room(also=[unsigned.client.mxid, other.client.mxid])
        for who in (unsigned, other):
            await who.client.join_room_by_id(RoomID(room_id))
        await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
        for who in (signed, unsigned, other):
            await who.call(room_id)
            await who.send_to_device_key(room_id, 0, ours, claimed="ELSE" if who is other else None)
        keys = await until(lambda: three(service, room_id), "the keys were read")
        history = await service.history(room_id, loss_free=True)
    ((session,),) = (project_room(history),)
    told = {
        (finding.kind, str(finding.subject.user_id), finding.severity, finding.evidence)
        for finding in session.report.findings
        if finding.subject is not None
        and finding.kind in (FindingKind.UNTRUSTED_SENDER_DEVICE, FindingKind.CLAIMED_DEVICE_MISMATCH)
    }

    assert {
        signed.client.mxid: (DeviceTrust.CROSS_SIGNED, True),
        unsigned.client.mxid: (DeviceTrust.UNSIGNED, True),
        other.client.mxid: (DeviceTrust.CROSS_SIGNED, False),
    } == {key.sender: (key.trust, key.device_matches) for key in keys}
    assert {
        (FindingKind.UNTRUSTED_SENDER_DEVICE, str(unsigned.client.mxid), Severity.WARNING, Evidence.DIRECT),
        (FindingKind.CLAIMED_DEVICE_MISMATCH, str(other.client.mxid), Severity.CRITICAL, Evidence.DIRECT),
    } == told


async def three(service: Service, room_id: RoomId) -> list[ToDeviceKey]:
    """Give the to-device keys once there are three."""
    keys = await to_device_keys(service, room_id)
    return keys if len(keys) == 3 else []


async def test_the_phrase_opens_the_identity(homeserver: Homeserver, pool: Pool) -> None:
    """
    What `recovery-phrase` prints does; with another secret and `new-device`, another phrase opens another identity.

    Synapse (1.163) takes no identity back that a user had before, so this comes last.
    """
    address, path, port = homeserver
    async with sender(address, "olga") as olga:
        async with running_service(pool, address, path, port) as service:
            await until(lambda: service.count(SIGNED), "signed")
            first_device = service.auditor.own.device[1]
            room_id = await olga.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            first = await public_keys_by_phrase(service, recovery_phrase(SECRET))
            first_published = await published(olga)
            homeserver_id = service.intake.homeserver_id
        with pytest.raises(OtherSecret, match="new-device"):
            async with running_service(pool, address, path, port, secret=OTHER_SECRET):
                pass
        async with pool.acquire() as conn:
            await forget_device(conn, homeserver_id)
        async with running_service(pool, address, path, port, secret=OTHER_SECRET) as service:
            await until(lambda: service.count(SIGNED), "signed once more")
            second_device = service.auditor.own.device[1]
            second = await public_keys_by_phrase(service, recovery_phrase(OTHER_SECRET))
            second_published = await published(olga)
            signed = await signed_devices(olga)
            await olga.call(room_id)
            await olga.send_to_device_key(room_id, 0, second_device)
            await until(lambda: to_device_keys(service, room_id), "the new device reads in the rooms of the old one")

    assert first == first_published
    assert second == second_published
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert first_device != second_device
    assert {second_device} == signed
