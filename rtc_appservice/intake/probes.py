"""
Stage 1: what `doctor` asks of the homeserver and of the port the homeserver is to reach. It judges nothing.

Requests go out by the same session as the service's, so as no user but its own.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from mautrix.api import Method, Path

from rtc_appservice.core.installation import Answer, Listening, text_of
from rtc_appservice.core.opened import olm_bodies
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import Device, ServerName
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.device_api import DeviceApi, OddAnswer, RequestFailed
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import Read, parse_body

#: Synapse waits 60 s for an answer to a ping; who has none by then has none.
ASK_SECONDS = 15.0
#: What does not answer on this machine by then is not the service.
HERE_SECONDS = 3.0
#: Synapse hands a to-device message over within a second, or not at all.
ARRIVAL_SECONDS = 2.0
#: It skips some of those that race (some 5 %), and drops those of the moment in which it finds the service up again.
ATTEMPTS = 4
POLL_SECONDS = 0.1
#: So long is a sealed message that the service takes for a call's.
_TEXT_BYTES = 600

VERSIONS = "/_matrix/client/versions"
WHOAMI = "/_matrix/client/v3/account/whoami"
SUMMARY = "/_matrix/client/v1/room_summary/"


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    token: str | None = None,
    content: Any = None,
    *,
    seconds: float = ASK_SECONDS,
) -> Answer:
    """Send one request and give what came of it; raises on nothing that a server or the way to it may do."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        # A redirect would take the token elsewhere.
        async with session.request(
            method, url, json=content, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            raw = await response.read()
            status = response.status
    except TimeoutError:
        return Answer(problem="time-out")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else None
        return Answer(problem=said or type(error).__name__)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    return Answer(status=status, body=body if isinstance(body, dict) else {})


async def who_listens(session: aiohttp.ClientSession, host: str, port: int, hs_token: str) -> Listening:
    """Tell who answers on the service's port; HERE if nobody does, so that it is free."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # all of them: this one
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), HERE_SECONDS)
        writer.close()
    except (OSError, TimeoutError):
        return Listening.HERE
    alive = await ask(session, "GET", f"{base}/_matrix/mau/live", seconds=HERE_SECONDS)
    if alive.status != 200:
        return Listening.OTHER_PROGRAM
    pinged = await ask(session, "POST", f"{base}/_matrix/app/v1/ping", hs_token, {"transaction_id": "doctor"})
    if pinged.status == 200:
        return Listening.SERVICE
    return Listening.OTHER_REGISTRATION if pinged.status in (401, 403) else Listening.OTHER_PROGRAM


class ProbeServer(IntakeServer):
    """
    The service's own listener, for the time of a check: it answers pings, and takes no transaction but of our own.

    One that holds anything else is answered as if the database were down: the homeserver sends it again.
    """

    def __init__(self, credentials: Credentials, *, address: str, homeserver: ServerName, own_user: str) -> None:
        """Take what the service takes, and the user of our own whose messages may be taken."""
        super().__init__(credentials, address=address, homeserver=homeserver, take=self._take_own)
        self._own_user = own_user
        self.appservice_id = credentials.appservice_id
        #: Transaction ids of the pings that came.
        self.pings: set[str] = set()
        #: Texts of the sealed messages that came.
        self.texts: set[str] = set()
        #: Whether the homeserver sent something that is the service's to take.
        self.refused = False
        #: How many transactions told of changed devices, as they do where the extensions (MSC3202) are on.
        self.device_lists = 0

    async def _take_own(self, read: Read) -> Intake:
        body = parse_body(await read())
        messages = body.get("to_device") or body.get("de.sorunome.msc2409.to_device") or []
        if body["events"] or any(message.get("sender") != self._own_user for message in messages):
            self.refused = True
            raise StoreUnavailable
        for message in messages:
            self.texts.update(olm_bodies(message.get("content")))
        self.device_lists += "org.matrix.msc3202.device_lists" in body
        return Intake()

    async def _answer_ping(self, request: web.Request) -> web.Response:
        answer = await super()._answer_ping(request)
        if answer.status == 200:
            self.pings.add(str((await request.json()).get("transaction_id")))
        return answer

    async def ask(self, method: str, path: str, content: Any = None) -> Answer:
        """Ask the homeserver, as the registration's sender."""
        return await ask(self.open_client(), method, self.server + path, self.as_token, content)

    async def ask_room(self, room: str) -> tuple[Answer, Answer, Answer]:
        """Give what the registration's sender is told of a room, by id or alias: summary, encryption, power levels."""
        summary = await self.ask("GET", SUMMARY + quote(room, safe=""))
        state = f"/_matrix/client/v3/rooms/{quote(text_of(summary.body, 'room_id'), safe='')}/state"
        encryption = await self.ask("GET", f"{state}/m.room.encryption")
        return summary, encryption, await self.ask("GET", f"{state}/m.room.power_levels")

    async def ping(self) -> tuple[Answer, bool]:
        """
        Have the homeserver ping the service; give its answer, and whether the ping came to this listener.

        A failed connection is tried again: Synapse may keep one to a listener that has ended since.
        """
        path = f"/_matrix/client/v1/appservice/{self.appservice_id}/ping"
        answer, name = Answer(), ""
        for _ in range(ATTEMPTS):
            name = secrets.token_hex(8)
            answer = await self.ask("POST", path, {"transaction_id": name})
            if answer.errcode != "M_CONNECTION_FAILED":
                break
        return answer, name in self.pings


class TemporaryApi(DeviceApi):
    """What a device for a while does beside."""

    async def delete_device(self) -> None:
        """Delete the device."""
        await self._user.request(Method.DELETE, Path.v3.devices[self._device[1]], {})

    async def send_to_device(self, kind: str, to: Device, content: dict[str, Any]) -> None:
        """Send a to-device message."""
        path = Path.v3.sendToDevice[kind][self._api.get_txn_id()]
        await self._api.request(Method.PUT, path, {"messages": {to[0]: {to[1]: content}}})

    async def claim_key(self, of: Device) -> dict[str, Any]:
        """Give a signed one-time key of a device, or its fallback key; raises OddAnswer if it has none."""
        content = {"one_time_keys": {of[0]: {of[1]: "signed_curve25519"}}}
        answer: Any = await self._api.request(Method.POST, Path.v3.keys.claim, content)
        try:
            (key,) = answer["one_time_keys"][of[0]][of[1]].values()
        except (KeyError, TypeError, AttributeError, ValueError):
            raise OddAnswer from None
        if not isinstance(key, dict):
            raise OddAnswer
        return key


class TemporaryDevice:
    """A device of a user of the service's own, made for a check and deleted after it. The user stays: users do."""

    def __init__(self, server: ProbeServer, device: Device) -> None:
        """Take the device to be; its user is one of our own from now on."""
        server.own_users.add(device[0])
        self._server = server
        self.device = device
        #: Whether it could not be deleted.
        self.left_behind = False
        self.api = TemporaryApi(server.server, server.as_token, server.open_client(), device)

    async def __aenter__(self) -> "TemporaryDevice":
        """Make the device; raises one of `RequestFailed`."""
        await self.api.register()
        await self.api.create_device("RTC auditor: doctor")
        return self

    async def __aexit__(self, *_: object) -> None:
        """
        Delete it.

        The homeserver tells of that in a transaction, and takes a service that is not there for it for down: later
        events come late then. So the listener is there for it.
        """
        told = self._server.device_lists
        try:
            await self.api.delete_device()
        except RequestFailed:
            self.left_behind = True
        if self._server.ready:
            await holds(self._is_told_more_than(told), ARRIVAL_SECONDS)

    def _is_told_more_than(self, told: int) -> Callable[[], Awaitable[bool]]:
        async def is_told() -> bool:
            return self._server.device_lists > told

        return is_told

    async def send_to_itself(self, arrived: Callable[[str], Awaitable[bool]]) -> bool:
        """Send the device sealed messages that nobody can open, until one `arrived`; tells whether one did."""
        for _ in range(ATTEMPTS):
            text = secrets.token_hex(_TEXT_BYTES // 2)
            content = {
                "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "sender_key": "doctor",
                "ciphertext": {"doctor": {"type": 1, "body": text}},
            }
            await self.api.send_to_device("m.room.encrypted", self.device, content)
            if await holds(partial(arrived, text), ARRIVAL_SECONDS):
                return True
            if self._server.refused:  # nothing comes before that
                break
        return False


async def holds(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Wait until a condition holds, and tell whether it did within so many seconds."""
    ends_at = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > ends_at:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
