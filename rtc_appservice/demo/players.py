"""
Simulated call participants: real Matrix clients with real Olm devices, played by the rules of one generation.

A player is logged in as a user with a device, its Olm keys are uploaded, its `/sync` runs. What it learns there goes
through its `Behaviour`; what that decides is sent, and noted in the log that tells afterwards what really happened.
The media keys are random, live in the player's memory alone, and are in no log.
"""

import asyncio
import contextlib
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from mautrix.api import Method, Path, PathBuilder
from mautrix.client import Client
from mautrix.types import DeviceID, Event, EventType, RoomID, ToDeviceEvent, UserID
from msgspec import Struct

from rtc_appservice.core.words import Device, DeviceId, KeyTransport, RoomId, UserId
from rtc_appservice.demo import wire
from rtc_appservice.demo.generations import Action, Behaviour, Distribute, RoomOnly, ToDevice, Wake
from rtc_appservice.demo.olm_device import QUIET, OlmDevice
from rtc_appservice.demo.wire import Generation
from rtc_appservice.errors import RtcAppserviceError

_MEMBER = EventType.find(wire.MEMBER_TYPE, t_class=EventType.Class.STATE)
_ROOM_KEY = EventType.find(wire.KEY_TYPE, t_class=EventType.Class.MESSAGE)
_TO_DEVICE_KEY = EventType.find(wire.KEY_TYPE, t_class=EventType.Class.TO_DEVICE)


class PlayerFailed(RtcAppserviceError):
    """A simulated participant could not do what it should."""


class Sent(Struct, frozen=True, kw_only=True):
    """A player's note of one distribution."""

    sender: Device
    key_transport: KeyTransport
    index: int
    at: datetime
    recipients: tuple[Device, ...]
    followed: Device | None  #: whose room key moved the sender to room events


class Received(Struct, frozen=True, kw_only=True):
    """A player's note of one key that reached it by to-device and was decrypted."""

    recipient: Device
    sender: UserId
    index: int


class PlayLog(Struct, kw_only=True):
    """What the players of one call did: the truth a report is held against."""

    title: str
    room_id: RoomId
    generations: dict[Device, Generation] = {}
    sent: list[Sent] = []
    received: list[Received] = []


class Player:
    """One device of one user; made by `logged_in`."""

    def __init__(self, client: Client, olm: OlmDevice, generation: Generation, *, lies: bool) -> None:
        """Take a client that is logged in; `lies` makes it send one key otherwise than it notes."""
        self.device: Device = (UserId(client.mxid), DeviceId(client.device_id))
        self.generation = generation
        self.log: PlayLog | None = None
        self.client = client
        self._olm = olm
        self._lies = lies
        self._behaviour = _behaviour(generation, self.device)
        self._member_id = str(uuid.uuid4())
        self._media_keys: dict[int, bytes] = defaultdict(lambda: secrets.token_bytes(16))
        self._inbox: asyncio.Queue[Callable[[float], list[Action]]] = asyncio.Queue()
        self._call: dict[str, Device] = {}  # who is in the call, by state key
        self._seen: set[str] = set()  # Synapse repeats state it sent before: act on each event once
        self._changed = asyncio.Event()

    async def join_room(self, log: PlayLog) -> None:
        """Enter the room of a call, without joining the call yet."""
        self.log = log
        log.generations[self.device] = self.generation
        await self.client.join_room_by_id(RoomID(log.room_id))

    async def join_call(self) -> None:
        """Join the call, and return when it was seen to be joined and all it owed was sent."""
        await self._perform(self._behaviour.about_to_join(time.monotonic()))
        content = wire.membership_content(self.generation, self.device, self._log.room_id)
        await self._set_membership(content)
        await self.sees(self.device, present=True)

    async def leave_call(self) -> None:
        """Leave the call, and return when that was seen."""
        await self._set_membership({})
        await self.sees(self.device, present=False)

    async def sees(self, device: Device, *, present: bool) -> None:
        """Wait until this player has seen a device in the call (or out of it) and has answered to it."""
        while (device in self._call.values()) is not present:
            self._changed.clear()
            await self._changed.wait()
        await self._inbox.join()

    async def run(self) -> None:
        """Follow `/sync` and act, until cancelled."""
        self.client.add_event_handler(_MEMBER, self._on_member, wait_sync=True)
        self.client.add_event_handler(_ROOM_KEY, self._on_room_key, wait_sync=True)
        self.client.add_event_handler(_TO_DEVICE_KEY, self._on_to_device_key, wait_sync=True)
        syncing = self.client.start(None)
        try:
            while True:
                stimulus = await self._inbox.get()
                try:
                    await self._perform(stimulus(time.monotonic()))
                finally:
                    self._inbox.task_done()
        finally:
            self.client.stop()
            await asyncio.gather(syncing, return_exceptions=True)

    @property
    def _log(self) -> PlayLog:
        if self.log is None:
            raise PlayerFailed
        return self.log

    async def _set_membership(self, content: dict[str, Any]) -> None:
        key = wire.state_key(self.generation, self.device)
        await self.client.send_state_event(RoomID(self._log.room_id), _MEMBER, content, key)

    # --- what /sync brings ---------------------------------------------------------------------

    async def _on_member(self, event: Event) -> None:
        if event.event_id in self._seen:
            return
        self._seen.add(event.event_id)
        content = event.content.serialize()
        if content:
            device = (UserId(event.sender), DeviceId(content["device_id"]))
            self._call[event.state_key] = device
            self._inbox.put_nowait(lambda now: self._behaviour.joined(device, now))
        elif gone := self._call.pop(event.state_key, None):
            self._inbox.put_nowait(lambda now: self._behaviour.left(gone, now))
        self._changed.set()

    async def _on_room_key(self, event: Event) -> None:
        sender = (UserId(event.sender), DeviceId(event.content.serialize()["device_id"]))
        if sender != self.device:
            self._inbox.put_nowait(lambda now: self._behaviour.room_key_seen(sender, now))

    async def _on_to_device_key(self, event: ToDeviceEvent) -> None:
        index = event.content.serialize()["keys"]["index"]
        self._log.received.append(Received(recipient=self.device, sender=UserId(event.sender), index=index))

    # --- what goes out -------------------------------------------------------------------------

    async def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Wake):
                delay = max(0.0, action.at - time.monotonic())
                asyncio.get_running_loop().call_later(delay, self._inbox.put_nowait, self._behaviour.woken)
            else:
                await self._distribute(action)

    async def _distribute(self, action: Distribute) -> None:
        if action.key_transport is KeyTransport.ROOM_EVENT or self._lies:
            await self._send_room_key(action.index)
            self._lies = False
        else:
            await self._send_to_device(action.index, action.recipients)
        self._log.sent.append(
            Sent(
                sender=self.device, key_transport=action.key_transport, index=action.index, at=datetime.now(UTC),
                recipients=action.recipients, followed=action.followed,
            )
        )  # fmt: skip

    def _content(self, key_transport: KeyTransport, index: int) -> dict[str, Any]:
        return wire.key_content(
            self.generation, key_transport, device=self.device, room_id=self._log.room_id, member_id=self._member_id,
            index=index, key=self._media_keys[index], sent_ts=int(time.time() * 1000),
        )  # fmt: skip

    async def _send_room_key(self, index: int) -> None:
        content = self._content(KeyTransport.ROOM_EVENT, index)
        await self._put(Path.v3.rooms[self._log.room_id].send[wire.KEY_TYPE], content)

    async def _send_to_device(self, index: int, recipients: tuple[Device, ...]) -> None:
        content = self._content(KeyTransport.TO_DEVICE, index)
        messages: dict[str, dict[str, Any]] = {}
        for user_id, device_id in recipients:
            messages.setdefault(user_id, {})[device_id] = await self._olm.seal(content, (user_id, device_id))
        await self._put(Path.v3.sendToDevice["m.room.encrypted"], {"messages": messages})

    async def _put(self, path: PathBuilder, content: dict[str, Any]) -> None:
        await self.client.api.request(Method.PUT, path[self.client.api.get_txn_id()], content)


def _behaviour(generation: Generation, device: Device) -> Behaviour:
    if generation is Generation.ROOM_ONLY:
        return RoomOnly(device)
    return ToDevice(device, switches=generation is Generation.SMART)


@contextlib.asynccontextmanager
async def logged_in(
    address: str, localpart: str, device_id: str, generation: Generation, *, lies: bool = False
) -> AsyncIterator[Player]:
    """Register a user on the homeserver at `address`, log its device in, and give the player that acts for it."""
    client = Client(base_url=address, log=QUIET)
    try:
        response = await client.api.request(
            Method.POST,
            Path.v3.register,
            {
                "username": localpart,
                "password": secrets.token_urlsafe(),
                "device_id": device_id,
                "auth": {"type": "m.login.dummy"},
            },
        )
        client.mxid, client.device_id = UserID(response["user_id"]), DeviceID(response["device_id"])
        client.api.token = response["access_token"]
        olm = OlmDevice(client)
        await olm.publish()
        yield Player(client, olm, generation, lies=lies)
    finally:
        await client.api.session.close()
