"""
Stage 1: the homeserver's client API as the service's own device uses it.

Every request goes through the session whose middleware lets it out only as a user of our own.
"""

import hashlib
import json
from collections.abc import Collection
from typing import Any

import aiohttp
from mautrix.api import Method, Path
from mautrix.client import Client
from mautrix.errors import MatrixConnectionError, MatrixRequestError
from mautrix.types import DeviceID, UserID

from rtc_appservice.core.words import Device, EventId, RoomId, UserId
from rtc_appservice.errors import RtcAppserviceError
from rtc_appservice.intake.client_api import client_api, register

#: Longest wait of one `/sync`, in milliseconds.
SYNC_TIMEOUT_MS = 30_000
#: How long the homeserver asks others for keys: it then answers without theirs, before we give it up.
QUERY_TIMEOUT_MS = 3_000
#: To-device messages and key counts alone.
SYNC_FILTER = json.dumps(
    {"presence": {"not_types": ["*"]}, "account_data": {"not_types": ["*"]}, "room": {"rooms": []}}
)
#: What a homeserver answers that does not create devices without a login: Synapse 1.118 says 404.
_NOT_WITHOUT_LOGIN = (400, 403, 404, 405)


class OddAnswer(RtcAppserviceError):
    """The homeserver's answer lacks what it must have."""


#: What a request can fail with.
RequestFailed = (MatrixRequestError, MatrixConnectionError, OddAnswer, TimeoutError, aiohttp.ClientError)


class DeviceApi:
    """Requests made as the device, and the few that make it."""

    def __init__(self, address: str, as_token: str, session: aiohttp.ClientSession, device: Device) -> None:
        """Take where the homeserver is, the token, and the device to act as."""
        self._device = device
        user_id, device_id = UserID(device[0]), DeviceID(device[1])
        self._plain = client_api(address, as_token, session)
        self._user = client_api(address, as_token, session, as_user_id=user_id)
        self._api = client_api(address, as_token, session, as_user_id=user_id, as_device_id=device_id)
        #: mautrix's client of the device, for cross-signing.
        self.client = Client(user_id, device_id, api=self._api)

    # --- making the device ---------------------------------------------------------------------

    async def register(self) -> None:
        """Create the user, if it is not there."""
        await register(self._plain, UserID(self._device[0]))

    async def create_device(self, name: str) -> None:
        """
        Create the device without a login (MSC4190), or by one where the homeserver refuses that.

        Nothing happens if it is there.
        """
        try:
            await self._user.request(Method.PUT, Path.v3.devices[self._device[1]], {"display_name": name})
        except MatrixRequestError as error:
            if getattr(error, "http_status", None) not in _NOT_WITHOUT_LOGIN:
                raise
            await self._log_in(name)

    async def _log_in(self, name: str) -> None:
        """Have the device created by an appservice login; the access token that comes of it is dropped."""
        user_id, device_id = self._device
        content = {
            "type": "m.login.application_service",
            "identifier": {"type": "m.id.user", "user": user_id},
            "device_id": device_id,
            "initial_device_display_name": name,
        }
        await self._plain.request(Method.POST, Path.v3.login, content)

    async def upload_keys(self, content: dict[str, Any]) -> dict[str, int]:
        """Upload device keys, one-time keys or a fallback key; give how many one-time keys there are."""
        answer = _table_of(await self._api.request(Method.POST, Path.v3.keys.upload, content))
        counts = _table_of(answer.get("one_time_key_counts", {}))
        return {algorithm: count for algorithm, count in counts.items() if type(count) is int}

    async def upload_signature(self, device_keys: dict[str, Any]) -> None:
        """Upload a signature of the device's keys."""
        content = {self._device[0]: {self._device[1]: device_keys}}
        await self._api.request(Method.POST, Path.v3.keys.signatures.upload, content)

    async def query_keys(self, users: Collection[UserId]) -> dict[str, Any]:
        """Give what the homeserver says of the devices and identities of users."""
        content = {"device_keys": {user: [] for user in users}, "timeout": QUERY_TIMEOUT_MS}
        return _table_of(await self._api.request(Method.POST, Path.v3.keys.query, content))

    # --- reading -------------------------------------------------------------------------------

    async def sync(self, since: str | None) -> dict[str, Any]:
        """Wait for to-device messages; asking with the token of an answer confirms that it was taken."""
        query = {"timeout": str(SYNC_TIMEOUT_MS if since else 0), "filter": SYNC_FILTER, "set_presence": "offline"}
        if since:
            query["since"] = since
        return _table_of(await self._api.request(Method.GET, Path.v3.sync, query_params=query))

    async def event(self, room_id: RoomId, event_id: EventId) -> dict[str, Any]:
        """Give one event of a room."""
        return _table_of(await self._api.request(Method.GET, Path.v3.rooms[room_id].event[event_id]))

    async def state(self, room_id: RoomId) -> list[dict[str, Any]]:
        """Give the state of a room."""
        answer: Any = await self._api.request(Method.GET, Path.v3.rooms[room_id].state)
        return [event for event in answer if isinstance(event, dict)] if isinstance(answer, list) else []

    # --- rooms ---------------------------------------------------------------------------------

    async def join(self, room: str) -> RoomId:
        """Enter a room, given by id or alias."""
        answer = await self._api.request(Method.POST, Path.v3.join[room], {})
        return RoomId(text_of(answer, "room_id"))

    async def leave(self, room_id: RoomId) -> None:
        """Leave a room."""
        await self._api.request(Method.POST, Path.v3.rooms[room_id].leave, {})

    async def say(self, room_id: RoomId, text: str, occasion: str) -> None:
        """Post a notice; on the same occasion it is posted once, however often this is called."""
        content = {"msgtype": "m.notice", "body": text}
        name = hashlib.sha256(f"{room_id}/{occasion}".encode()).hexdigest()[:32]
        path = Path.v3.rooms[room_id].send["m.room.message"][f"rtc-notice-{name}"]
        await self._api.request(Method.PUT, path, content)


def _table_of(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise OddAnswer
    return answer


def text_of(answer: Any, name: str) -> str:
    """Give a text of an answer; raises OddAnswer."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, str):
        raise OddAnswer
    return found


def is_gone(error: BaseException) -> bool:
    """Tell whether a request failed because what it asked for is not there, or not for us."""
    return isinstance(error, MatrixRequestError) and getattr(error, "http_status", None) in (403, 404)
