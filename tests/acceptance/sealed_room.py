"""A real Synapse, a client that encrypts with real Olm and Megolm, and the service's device on a real database."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.client import Client
from mautrix.crypto import OlmMachine
from mautrix.crypto.store import MemoryCryptoStore, StateStore
from mautrix.types import DeviceID, EncryptionAlgorithm, EventType, Obj, RoomEncryptionStateEventContent, RoomID, UserID
from msgspec import Struct

from rtc_appservice import registration
from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import Observation
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import DeviceId, RoomId, ServerName, UserId
from rtc_appservice.demo.olm_device import QUIET
from rtc_appservice.demo.synapse import SERVER_NAME, free_port, running_synapse
from rtc_appservice.intake.auditor import Auditor, auditor_terms
from rtc_appservice.intake.sealed import SealedIntake
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import TransactionIntake, now_utc
from rtc_appservice.store.observations import load_room
from rtc_appservice.store.pool import Pool

SECRET = b"the secret of a made-up deployment"
BOT = UserId(f"@rtc-auditor-device:{SERVER_NAME}")
PATIENCE = 20.0
_ENCRYPTION = RoomEncryptionStateEventContent(algorithm=EncryptionAlgorithm.MEGOLM_V1)


class _Encrypted(StateStore):
    async def is_encrypted(self, room_id: RoomID) -> bool:
        return True

    async def get_encryption_info(self, room_id: RoomID) -> RoomEncryptionStateEventContent:
        return _ENCRYPTION

    async def find_shared_rooms(self, user_id: UserID) -> list[RoomID]:
        return []


class Sender:
    """A client that sends encrypted events and to-device messages."""

    def __init__(self, client: Client) -> None:
        """Take a client that is logged in."""
        self.client = client
        self.session_key = ""
        self.machine = OlmMachine(client, MemoryCryptoStore(client.mxid, "memory"), _Encrypted(), log=QUIET)

    async def make_room(self, *, invite: bool = True, also: Sequence[str] = ()) -> RoomId:
        """Create an encrypted room, with an invitation for the device and others."""
        content = {
            "preset": "private_chat",
            "initial_state": [
                {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
            ],
            "invite": [*([BOT] if invite else []), *also],
            "power_level_content_override": {"events": {"org.matrix.msc3401.call.member": 0}},
        }
        answer = await self.client.api.request(Method.POST, ApiPath.v3.createRoom, content)
        return RoomId(answer["room_id"])

    async def invite(self, room_id: RoomId) -> None:
        """Invite the device."""
        await self.client.api.request(Method.POST, ApiPath.v3.rooms[room_id].invite, {"user_id": BOT})

    async def call(self, room_id: RoomId, *, live: bool = True) -> None:
        """Join the call of a room, or leave it."""
        user_id, device_id = self.client.mxid, self.client.device_id
        content: dict[str, Any] = {
            "application": "m.call",
            "call_id": "",
            "scope": "m.room",
            "device_id": device_id,
            "expires": 14400000,
            "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
            "foci_preferred": [],
        }
        kind = EventType.find("org.matrix.msc3401.call.member", EventType.Class.STATE)
        await self.client.send_state_event(
            RoomID(room_id), kind, content if live else {}, f"_{user_id}_{device_id}_m.call"
        )

    async def share(self, room_id: RoomId, *, with_device: bool = True) -> None:
        """Make a new Megolm session, and hand it to the service's device."""
        await self.machine.crypto_store.remove_outbound_group_session(RoomID(room_id))
        users = [self.client.mxid, *([UserID(BOT)] if with_device else [])]
        await self.machine.share_group_session(RoomID(room_id), users)
        outbound = await self.machine.crypto_store.get_outbound_group_session(RoomID(room_id))
        assert outbound is not None
        self._session_id, self.session_key = outbound.id, outbound.session_key

    async def seal(self, room_id: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """Give the encrypted content of an event, by the session that was handed out last."""
        session = await self.machine.crypto_store.get_outbound_group_session(RoomID(room_id))
        assert session is not None
        # As js-sdk writes it: mautrix puts spaces into the plaintext, by which it is longer.
        plaintext = json.dumps({"room_id": room_id, "type": kind, "content": content}, separators=(",", ":"))
        return {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": session.encrypt(plaintext),  # type: ignore[no-untyped-call]
            "session_id": session.id,
        }

    async def send(self, room_id: RoomId, kind: str, content: dict[str, Any]) -> str:
        """Send an encrypted event, and give its id."""
        sealed = await self.seal(room_id, kind, content)
        path = ApiPath.v3.rooms[room_id].send["m.room.encrypted"][self.client.api.get_txn_id()]
        answer = await self.client.api.request(Method.PUT, path, sealed)
        return str(answer["event_id"])

    async def send_room_key(self, room_id: RoomId, index: int, text: str | None = None) -> str:
        """Send a media key, a random one unless given, as an encrypted room event."""
        key = {"index": index, "key": text or secrets.token_urlsafe(16)[:22]}
        content = {"call_id": "", "device_id": self.client.device_id, "keys": [key], "sent_ts": now_ms()}
        return await self.send(room_id, "io.element.call.encryption_keys", content)

    async def hand_over(self, room_id: RoomId, device_id: DeviceId) -> None:
        """Hand the session in use to the service's device, from its beginning."""
        device = await self.machine.get_or_fetch_device(UserID(BOT), DeviceID(device_id))
        assert device is not None
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "room_id": room_id,
            "session_id": self._session_id,
            "session_key": self.session_key,
        }
        await self.machine.send_encrypted_to_device(device, EventType.ROOM_KEY, Obj(**content))  # type: ignore[no-untyped-call]

    async def put_state(self, room_id: RoomId, kind: str, content: dict[str, Any]) -> None:
        """Set state of a room."""
        await self.client.api.request(Method.PUT, ApiPath.v3.rooms[room_id].state[kind], content)

    async def _memberships(self, room_id: RoomId, user_id: str) -> list[dict[str, Any]]:
        state: Any = await self.client.api.request(Method.GET, ApiPath.v3.rooms[room_id].state)
        kind = "org.matrix.msc3401.call.member"
        return [event["content"] for event in state if event["type"] == kind and event["sender"] == user_id]

    async def members(self, room_id: RoomId, user_id: str) -> bool:
        """Tell whether a user is in the call of a room."""
        return any(await self._memberships(room_id, user_id))

    async def left(self, room_id: RoomId, user_id: str) -> bool:
        """Tell whether a user was in the call of a room and has left it."""
        found = await self._memberships(room_id, user_id)
        return bool(found) and not any(found)

    async def send_to_device_key(
        self, room_id: RoomId, index: int, device_id: DeviceId, text: str | None = None, *, claimed: str | None = None
    ) -> None:
        """Send a media key, a random one unless given, to the service's device by Olm, as the own device or another."""
        device = await self.machine.get_or_fetch_device(UserID(BOT), DeviceID(device_id))
        assert device is not None
        content = {
            "keys": {"index": index, "key": text or secrets.token_urlsafe(16)[:22] + "=="},
            "room_id": room_id,
            "member": {"claimed_device_id": claimed or self.client.device_id},
            "session": {"call_id": "", "application": "m.call", "scope": "m.room"},
            "sent_ts": now_ms(),
        }
        kind = EventType.find("io.element.call.encryption_keys", EventType.Class.TO_DEVICE)
        await self.machine.send_encrypted_to_device(device, kind, Obj(**content))  # type: ignore[no-untyped-call]

    async def send_nothing_to(self, user_id: str, device_id: str) -> None:
        """Send an empty to-device message to another device: Synapse loses one of two that race."""
        path = ApiPath.v3.sendToDevice["m.dummy"][self.client.api.get_txn_id()]
        await self.client.api.request(Method.PUT, path, {"messages": {user_id: {device_id: {}}}})


def now_ms() -> int:
    """Give the time as Matrix milliseconds."""
    return round(datetime.now(UTC).timestamp() * 1000)


class Service(Struct):
    """The service's side, without its exports."""

    intake: TransactionIntake
    server: IntakeServer
    auditor: Auditor
    pool: Pool

    async def observations(self, room_id: RoomId) -> list[Observation]:
        """Give what is recorded of a room."""
        async with self.pool.acquire() as conn:
            key = await conn.fetchval("SELECT room_key FROM room WHERE room_id = $1", room_id)
            if key is None:
                return []
            return await load_room(conn, ServerName(SERVER_NAME), room_id, key, datetime(2000, 1, 1, tzinfo=UTC))

    def look_at_rooms(self) -> None:
        """Have the device follow at once what the database says of rooms."""
        assert isinstance(self.intake.sealed, SealedIntake)
        self.intake.sealed.rooms_changed.set()

    async def history(self, room_id: RoomId, *, loss_free: bool = False) -> RoomHistory:
        """Give what projection is given of a room, five minutes from now."""
        return RoomHistory(
            homeserver=ServerName(SERVER_NAME),
            room_id=room_id,
            observations=tuple(await self.observations(room_id)),
            watermark_at=datetime.now(UTC) + timedelta(minutes=5),
            envelopes=False,
            witnesses=frozenset({self.auditor.own.device}),
            loss_free=loss_free,
        )

    async def count(self, query: str, *arguments: object) -> int:
        """Give a number from the database."""
        async with self.pool.acquire() as conn:
            return int(await conn.fetchval(query, *arguments))


@asynccontextmanager
async def running_service(
    pool: Pool, address: str, path: Path, port: int, *, clock: Callable[[], datetime] = now_utc, **terms: Any
) -> AsyncIterator[Service]:
    """Run intake and device, which goes by `clock`, against a Synapse until the end of the block."""
    given = registration.load(path)
    name = ServerName(SERVER_NAME)
    intake = TransactionIntake(pool, name, TransactionReader(name, SECRET))
    await intake.open()
    server = IntakeServer(
        Credentials(
            appservice_id=given.id,
            as_token=given.as_token,
            hs_token=given.hs_token,
            sender_localpart=given.sender_localpart,
        ),
        address=address,
        homeserver=name,
        take=intake.take,
        own_users=[BOT],
    )
    settings = auditor_terms(
        address=address,
        as_token=given.as_token,
        sender_localpart=given.sender_localpart,
        homeserver=name,
        **{"secret": SECRET, "invited_by": (SERVER_NAME,), **terms},
    )
    auditor = Auditor(pool, name, intake, settings, clock=clock)
    client = server.open_client()
    try:
        await auditor.open(client)
        await server.start("127.0.0.1", port)
        stop = asyncio.Event()
        living = asyncio.ensure_future(auditor.run(stop))
        try:
            yield Service(intake, server, auditor, pool)
        finally:
            stop.set()
            await living
            await server.stop()
    finally:
        await client.close()


@asynccontextmanager
async def sealed_synapse(
    folder: Path, *, pilot_regex: str | None = None, msc4190: bool = True
) -> AsyncIterator[tuple[str, Path, int]]:
    """Give a Synapse that knows the service's registration: its address, the registration, the service's port."""
    port = free_port()
    path = folder / "registration.yaml"
    scope = registration.Scope.ROOMS if pilot_regex is None else registration.Scope.PILOT
    url = f"http://127.0.0.1:{port}"
    text = registration.render(scope, domain=SERVER_NAME, url=url, pilot_regex=pilot_regex)
    assert "io.element.msc4190: true" in text
    path.write_text(text if msc4190 else text.replace("io.element.msc4190: true", ""))
    async with running_synapse(path) as synapse:
        yield synapse.address, path, port


@asynccontextmanager
async def sender(address: str, name: str) -> AsyncIterator[Sender]:
    """Log a client in, with published keys."""
    client = Client(base_url=address, log=QUIET)
    try:
        answer = await client.api.request(
            Method.POST,
            ApiPath.v3.register,
            {
                "username": name,
                "password": secrets.token_urlsafe(),
                "device_id": name.upper() + "1",
                "auth": {"type": "m.login.dummy"},
            },
        )
        client.mxid, client.device_id = UserID(answer["user_id"]), DeviceID(answer["device_id"])
        client.api.token = answer["access_token"]
        found = Sender(client)
        await found.machine.load()
        await found.machine.share_keys(0)
        yield found
    finally:
        await client.api.session.close()


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition gives something true, and give that."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


async def equals(found: Awaitable[int], expected: int) -> bool:
    """Tell whether a number is the one expected."""
    return await found == expected
