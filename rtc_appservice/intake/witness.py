"""
Stage 1: the device as a member of calls, where a room's moderators asked for it.

It is in a call while somebody else is, and never outlives the service: before it joins, the homeserver is told to end
its membership (MSC4140) unless that is put off again and again. Where the homeserver cannot, it does not join.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rtc_appservice.core.membership import STATE_TYPES
from rtc_appservice.core.model import Device, RoomId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.sealed import SealedIntake

_log = logging.getLogger("rtc_appservice.intake")

MEMBER_TYPE = "org.matrix.msc3401.call.member"
#: js-sdk's own values: the leave is sent 8 s after the last sign of life, one comes every 5 s.
LEAVE_DELAY_MS = 8000
SIGN_OF_LIFE_SECONDS = 4.0
#: js-sdk 36 to 43: a membership is believed for four hours.
EXPIRES_MS = 4 * 3600 * 1000
REFRESH_SECONDS = EXPIRES_MS / 1000 - 1800


@dataclass(slots=True)
class _Part:
    """The device's membership of one call."""

    delay_id: str
    content: dict[str, Any]
    sent_at: float  #: by the monotonic clock


class Witness:
    """Joins and leaves calls."""

    def __init__(
        self,
        api: DeviceApi,
        device: Device,
        sealed: SealedIntake,
        is_wanted: Callable[[RoomId], Awaitable[bool]],
        notice: str | None,
    ) -> None:
        """Take the device, what tells of changed calls and of rooms that want it, and what it says when it joins."""
        self._api = api
        self._device = device
        self._sealed = sealed
        self._is_wanted = is_wanted
        self._notice = notice
        self._key = f"_{device[0]}_{device[1]}_m.call"
        self._parts: dict[RoomId, _Part] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Follow calls until `stop`, then end every membership."""
        while not stop.is_set():
            rooms, self._sealed.calls_changed = self._sealed.calls_changed, set()
            self._sealed.call_changed.clear()
            for room_id in rooms:
                await self._try(self._follow(room_id), "the device could not join or leave a call")
            for room_id in list(self._parts):
                await self._try(self._live_on(room_id), "the device lost its place in a call")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._any(stop), SIGN_OF_LIFE_SECONDS)
        for room_id in list(self._parts):
            await self._try(self.withdraw(room_id), "the device could not leave a call; the homeserver will end it")

    def takes_part(self, room_id: RoomId) -> bool:
        """Tell whether the device is in a room's call."""
        return room_id in self._parts

    async def withdraw(self, room_id: RoomId) -> None:
        """End the membership of a room's call, if there is one."""
        part = self._parts.pop(room_id, None)
        if part is not None:
            await self._api.put_state(room_id, MEMBER_TYPE, self._key, {})
            with suppress(*RequestFailed):
                await self._api.delayed(part.delay_id, "cancel")

    async def _follow(self, room_id: RoomId) -> None:
        wanted = room_id in self._sealed.own.rooms and await self._is_wanted(room_id)
        others = _others(await self._api.state(room_id), self._device[0]) if wanted else []
        if others and room_id not in self._parts:
            await self._join(room_id, others[0])
        elif not others:
            await self.withdraw(room_id)

    async def _join(self, room_id: RoomId, other: dict[str, Any]) -> None:
        delay_id = await self._api.put_state(room_id, MEMBER_TYPE, self._key, {}, delay_ms=LEAVE_DELAY_MS)
        if delay_id is None:
            _log.warning("the homeserver has no delayed events (MSC4140): the device takes no part in calls")
            return
        user_id, device_id = self._device
        content = {
            "application": "m.call",
            "call_id": other.get("call_id", ""),
            "scope": "m.room",
            "device_id": device_id,
            "expires": EXPIRES_MS,
            "membershipID": f"{user_id}:{device_id}",
            # Clients take the SFU of the oldest member, which we may become: it is the one that is used already.
            "focus_active": other.get("focus_active"),
            "foci_preferred": other.get("foci_preferred", []),
        }
        await self._api.put_state(room_id, MEMBER_TYPE, self._key, content)
        self._parts[room_id] = _Part(delay_id, content, time.monotonic())
        # The owner's own update may put an end to the delayed leave: it has to be alive now.
        await self._live_on(room_id)
        if self._notice:
            await self._api.say(room_id, self._notice)

    async def _live_on(self, room_id: RoomId) -> None:
        part = self._parts[room_id]
        try:
            await self._api.delayed(part.delay_id, "restart")
        except RequestFailed:
            # Gone or sent: what the call looks like now decides.
            del self._parts[room_id]
            self._sealed.note_call(room_id)
            raise
        if time.monotonic() - part.sent_at > REFRESH_SECONDS:
            part.content["created_ts"] = part.content.get("created_ts", int((time.time() - REFRESH_SECONDS) * 1000))
            part.content["expires"] += EXPIRES_MS
            await self._api.put_state(room_id, MEMBER_TYPE, self._key, part.content)
            part.sent_at = time.monotonic()

    @staticmethod
    async def _try(doing: Awaitable[None], fault: str) -> None:
        try:
            await doing
        except (*RequestFailed, StoreUnavailable) as error:
            _log.warning(fault, extra=describe(error))

    async def _any(self, stop: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, self._sealed.call_changed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()


def _others(state: list[dict[str, Any]], own_user: str) -> list[dict[str, Any]]:
    """Give the live memberships of others, the oldest first."""
    now_ms = time.time() * 1000
    live = []
    for event in state:
        content = event.get("content")
        if event.get("type") not in STATE_TYPES or event.get("sender") == own_user or not isinstance(content, dict):
            continue
        if "application" not in content or not isinstance(content.get("focus_active"), dict):
            continue
        begun, expires = content.get("created_ts", event.get("origin_server_ts")), content.get("expires", EXPIRES_MS)
        if isinstance(begun, int | float) and isinstance(expires, int | float) and begun + expires > now_ms:
            live.append((begun, content))
    return [content for _, content in sorted(live, key=lambda found: found[0])]
