"""Stage 1: the rooms the service's own device is asked into or out of: it joins them, tells them, leaves them."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from rtc_appservice.core.membership import STATE_TYPES
from rtc_appservice.core.room_facts import state_read
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed, is_gone
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.late_rooms import note_joined_late
from rtc_appservice.intake.sealed import WITNESS_TYPE, SealedIntake
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.repeats import Repeats
from rtc_appservice.store import audited_rooms
from rtc_appservice.store.pool import WORK_SECONDS, Connection, Pool, lend

_log = logging.getLogger("rtc_appservice.intake")

#: Commands write to the database; this is how soon they are followed.
LOOK_SECONDS = 5.0
#: A room that could not be entered is tried again after this.
REFUSED_SECONDS = 60.0
#: So many rooms are seen to at a time: one whose server does not answer keeps the others waiting less.
_AT_ONCE = 4
#: State that is of use however old it is; memberships of longer ago than a week are over.
_SNAPSHOT = STATE_TYPES | {"m.room.encryption", "m.room.history_visibility", WITNESS_TYPE}
#: What to do about a room that the device is refused.
_HINT = (
    "is the room there, and is the device's user invited? `rtc-appservice room list` shows which rooms wait;"
    " `rtc-appservice room remove` has it give one up"
)


class InCalls(Protocol):
    """The device's part in calls."""

    def takes_part(self, room_id: RoomId) -> bool:
        """Tell whether the device is in a call of a room."""

    async def withdraw(self, room_id: RoomId) -> None:
        """Leave the call of a room, if the device is in one."""


class RoomKeeper:
    """Does in the homeserver what the database asks of rooms."""

    def __init__(
        self,
        pool: Pool,
        homeserver: ServerName,
        intake: TransactionIntake,
        sealed: SealedIntake,
        api: DeviceApi,
        witness: InCalls,
        *,
        notice: str | None,
        clock: Callable[[], datetime],
    ) -> None:
        """Take what the device says to a room it enters, if anything."""
        self._pool = pool
        self._homeserver = homeserver
        self._homeserver_id = intake.homeserver_id
        self._intake = intake
        self._sealed = sealed
        self._own = sealed.own
        self._api = api
        self._witness = witness
        self._notice = notice
        self._clock = clock
        #: When rooms that were refused are tried again, on the monotonic clock.
        self.not_before: dict[RoomId, float] = {}
        self._repeats = Repeats()

    async def enter_configured(self, names: tuple[str, ...]) -> None:
        """Join rooms, given by id or alias; those that refuse are said in the log."""
        for name in names:
            try:
                room_id = await self._api.join(name)
                async with lend(self._pool, WORK_SECONDS) as conn:
                    await audited_rooms.want_room(conn, self._homeserver_id, room_id, wanted=True)
                await self._enter(room_id)
            except RequestFailed as error:
                fault = "a room of the configuration could not be joined"
                _log.warning(fault, extra={**describe(error), "hint": _HINT})

    async def tend(self) -> None:
        """Wait until something is asked of a room, some seconds at most, and do it in all rooms that need it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._sealed.rooms_changed.wait(), LOOK_SECONDS)
        self._sealed.rooms_changed.clear()
        async with lend(self._pool, WORK_SECONDS) as conn:
            rooms = await audited_rooms.audited_rooms(conn, self._homeserver_id)
        now = time.monotonic()
        listed = {room.room_id for room in rooms}
        self.not_before = {room_id: at for room_id, at in self.not_before.items() if room_id in listed and at > now}
        places = asyncio.Semaphore(_AT_ONCE)
        doing = [self._try(room, places) for room in rooms if room.room_id not in self.not_before]
        for result in await asyncio.gather(*doing, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _try(self, room: audited_rooms.AuditedRoom, places: asyncio.Semaphore) -> None:
        async with places:
            try:
                await self._tend(room)
            except RequestFailed as error:
                self.not_before[room.room_id] = time.monotonic() + REFUSED_SECONDS
                fault = "a room could not be joined, told or left"
                _log.debug(fault, extra={"room_id": room.room_id})
                count = self._repeats.note("refused")
                if count is not None:
                    _log.warning(fault, extra={**describe(error), "count": count, "hint": _HINT})

    async def _tend(self, room: audited_rooms.AuditedRoom) -> None:
        if not room.wanted:
            await self._leave(room)
            return
        is_in = room.joined_at is not None and room.room_id in self._own.rooms
        if not is_in:
            await self._api.join(room.room_id)
        if not is_in or room.state_read_at is None:
            # Then it is looked at again, as it is now.
            await self._enter(room.room_id)
            return
        if room.announced_at is None and self._notice:
            await self._api.say(room.room_id, self._notice, f"joined/{room.joined_at}")
            async with lend(self._pool, WORK_SECONDS) as conn:
                await audited_rooms.mark_announced(conn, self._homeserver_id, room.room_id, self._clock())
        if room.witness or self._witness.takes_part(room.room_id):
            self._sealed.note_call(room.room_id)

    async def _leave(self, room: audited_rooms.AuditedRoom) -> None:
        await self._witness.withdraw(room.room_id)
        try:
            await self._api.leave(room.room_id)
        except RequestFailed as error:
            if room.joined_at is not None or not is_gone(error):
                raise  # one that it never entered need not be left
        async with lend(self._pool, WORK_SECONDS) as conn:
            await audited_rooms.drop_room(conn, self._homeserver_id, room.room_id)
        self._own.rooms.discard(room.room_id)

    async def _enter(self, room_id: RoomId) -> None:
        """Note that the device is in a room, and read the state it finds there; until then it is tried again."""

        async def write(conn: Connection, _reading: Reading, intake: Intake) -> None:
            read_at = self._clock()
            intake.observations.append(state_read(self._homeserver, room_id, self._own.device[0], read_at))
            await audited_rooms.mark_state_read(conn, self._homeserver_id, room_id, read_at)
            where = self._homeserver, self._homeserver_id, room_id
            await note_joined_late(conn, *where, found, joined_at, read_at)

        async with lend(self._pool, WORK_SECONDS) as conn:
            joined_at = await audited_rooms.mark_joined(conn, self._homeserver_id, room_id, self._clock())
        self._own.rooms.add(room_id)
        now = self._clock()
        found = await self._api.state(room_id)
        state = [_as_of(event, room_id, now) for event in found]
        events = [event for event in state if event.get("type") in _SNAPSHOT]
        await self._intake.take_beside({"events": events}, write, is_snapshot=True)
        self._sealed.rooms_changed.set()


def _as_of(event: dict[str, Any], room_id: RoomId, now: datetime) -> dict[str, Any]:
    """Give a state event as found in a room: what holds for the room holds now, however long ago it was set."""
    found = {**event, "room_id": room_id}
    if event.get("type") not in STATE_TYPES:
        found["origin_server_ts"] = round(now.timestamp() * 1000)
    return found
