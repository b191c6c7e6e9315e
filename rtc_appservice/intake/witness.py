"""
Stage 1: the device as a member of calls, where a room's moderators asked for it.

It is in a call while somebody else is, in a form the others see (`call_form`), and never outlives the service: before
it joins, the homeserver is told to end its membership (MSC4140) unless that is put off again and again. Where the
homeserver cannot, it does not join. Who is in a call is what the service itself has recorded.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.words import Device, RoomId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake import call_form
from rtc_appservice.intake.call_api import CallApi
from rtc_appservice.intake.call_form import CallForm, OwnMembership
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed, is_gone
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.sealed import SealedIntake
from rtc_appservice.repeats import Repeats

_log = logging.getLogger("rtc_appservice.intake")

#: js-sdk's own values: the leave is sent 8 s after the last sign of life, one comes every 5 s.
LEAVE_DELAY_SECONDS = 8.0
SIGN_OF_LIFE_SECONDS = 4.0
#: A membership is refreshed when so much of its time is left.
REFRESH_BEFORE = timedelta(minutes=10)
#: Where a room forbids to join or leave, that is tried again after this.
FORBIDDEN_SECONDS = 60.0
NEVER = float("-inf")


@dataclass(slots=True)
class _Part:
    """The device's membership of one call."""

    form: CallForm
    membership: OwnMembership
    delay_id: str
    tried: bool = False  #: it may have been sent: an answer can be lost
    joined_at: datetime | None = None  #: None: still to be sent
    believed_until: datetime | None = None
    alive_at: float = NEVER  #: when the leave was put off last, by the monotonic clock
    recorded: bool = False  #: the service has seen its own membership come back
    told: bool = False  #: the room was told


class Witness:
    """Joins and leaves calls."""

    def __init__(
        self,
        api: DeviceApi,
        device: Device,
        sealed: SealedIntake,
        *,
        is_wanted: Callable[[RoomId], Awaitable[bool]],
        members: Callable[[RoomId], Awaitable[Sequence[DeviceStint]]],
        notice: str | None,
        clock: Callable[[], datetime],
    ) -> None:
        """Take the device, what tells of calls and of rooms that want it, and what it says when it joins."""
        self._api = api
        self._calls = CallApi(api.client.api)
        self._device = device
        self._sealed = sealed
        self._is_wanted = is_wanted
        self._members = members
        self._notice = notice
        self._clock = clock
        self._parts: dict[RoomId, _Part] = {}
        #: Since when a membership of an earlier process has been seen, by the monotonic clock.
        self._left_over: dict[RoomId, float] = {}
        #: What a room forbids, and until when it is left alone.
        self._forbidden: dict[RoomId, tuple[str, float]] = {}
        self._repeats = Repeats()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow calls until `stop`, then end every membership."""
        while not stop.is_set():
            rooms, self._sealed.calls_changed = self._sealed.calls_changed | self._parts.keys(), set()
            self._sealed.call_changed.clear()
            for room_id in rooms:
                await self._try(self._follow(room_id), "the device could not join or leave a call")
            for room_id in list(self._parts):
                await self._try(self._live_on(room_id), "the device could not keep its place in a call")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._any(stop), SIGN_OF_LIFE_SECONDS)
        fault = "the device could not leave a call; the homeserver will end it"
        await asyncio.gather(*(self._try(self.withdraw(room_id), fault) for room_id in list(self._parts)))

    def takes_part(self, room_id: RoomId) -> bool:
        """Tell whether the device is in a room's call."""
        return room_id in self._parts

    async def withdraw(self, room_id: RoomId) -> None:
        """End the membership of a room's call, if there is one; it stays where the room forbids to end it."""
        part = self._parts.get(room_id)
        inside = room_id in self._sealed.own.rooms
        if part is None or (inside and self._is_left_alone(room_id)):
            return
        if part.tried:
            try:
                await self._calls.send(room_id, part.membership, part.membership.leave)
            except RequestFailed as error:
                if not is_gone(error):
                    raise
                if inside:
                    self._leave_alone(room_id, "a room does not let the device leave its call; that ends by itself")
                    return
        await self._drop(room_id)

    async def _follow(self, room_id: RoomId) -> None:
        """Join, leave, or be in the call another way, as the room wants and the others are."""
        wanted = room_id in self._sealed.own.rooms and await self._is_wanted(room_id)
        stints = await self._members(room_id) if wanted else ()
        mine = [stint for stint in stints if stint.device == self._device and stint.left_at is None]
        others = call_form.others_in(stints, self._device[0])
        part = self._parts.get(room_id)
        if part is not None and part.joined_at is not None and wanted:
            if any(stint.memberships[-1].key == part.membership.key for stint in mine):
                part.recorded = True
            elif part.recorded:  # somebody else ended it, or a leave that the homeserver sent
                await self._drop(room_id)
                part = None
        form = call_form.wanted_form(others, None if part is None else part.form)
        if part is not None and part.form != form:
            await self.withdraw(room_id)
            part = self._parts.get(room_id)
        if form is None or not wanted:
            self._left_over.pop(room_id, None)
        elif part is None and not self._is_left_alone(room_id) and not self._must_wait(room_id, mine):
            part = await self._begin(room_id, form, others[0], mine)
        if part is not None and part.form == form:
            await self._join(room_id, part)

    def _must_wait(self, room_id: RoomId, mine: Sequence[DeviceStint]) -> bool:
        """
        Tell whether a membership of an earlier process is still to be ended by the homeserver.

        That would end a new one that stands in its place.
        """
        if not mine:
            self._left_over.pop(room_id, None)
            return False
        return time.monotonic() - self._left_over.setdefault(room_id, time.monotonic()) < 2 * LEAVE_DELAY_SECONDS

    async def _begin(
        self, room_id: RoomId, form: CallForm, other: DeviceStint, mine: Sequence[DeviceStint]
    ) -> _Part | None:
        """Have the homeserver promise to end the membership, before there is one."""
        if form.dialect is None:
            content = await self._content_of(room_id, other)
            membership = call_form.state_membership(self._device, form, content)
        else:
            stuck = [stint.memberships[-1].key for stint in mine if call_form.form_of(stint) == form]
            membership = call_form.sticky_membership(self._device, form, stuck[0] if stuck else str(uuid.uuid4()))
        delay_ms = round(LEAVE_DELAY_SECONDS * 1000)
        try:
            delay_id = await self._calls.send(room_id, membership, membership.leave, delay_ms=delay_ms)
        except RequestFailed as error:
            if not is_gone(error):
                raise
            delay_id = None
        if delay_id is None:
            # Synapse answers so unless `max_event_delay_duration` is set.
            self._leave_alone(room_id, "the homeserver delays no events (MSC4140): the device takes no part in calls")
            return None
        part = self._parts[room_id] = _Part(form, membership, delay_id)
        return part

    async def _content_of(self, room_id: RoomId, other: DeviceStint) -> dict[str, Any]:
        with suppress(*RequestFailed):
            return await self._calls.content_of(room_id, call_form.STATE_TYPE, other.memberships[-1].key)
        return {}

    async def _join(self, room_id: RoomId, part: _Part) -> None:
        """Send the membership, and again before it ends."""
        now = self._clock()
        if part.joined_at is None:
            if not await self._send(room_id, part, part.membership, now):
                return
            part.joined_at = now
            # Sending may have put an end to the delayed leave: it has to be alive now.
            part.alive_at = NEVER
            self._forbidden.pop(room_id, None)
            await self._live_on(room_id)
        elif part.believed_until is not None and now > part.believed_until - REFRESH_BEFORE:
            created_ms = round(part.joined_at.timestamp() * 1000)
            await self._send(room_id, part, call_form.refreshed(part.membership, created_ms), now)
        if self._notice and not part.told and room_id in self._parts:
            await self._tell(room_id, self._notice, f"witness/{part.joined_at.isoformat()}")
            part.told = True

    async def _tell(self, room_id: RoomId, notice: str, occasion: str) -> None:
        """Say to the room that the device takes part; a room that lets it say nothing is not asked again."""
        try:
            await self._api.say(room_id, notice, occasion)
        except RequestFailed as error:
            if not is_gone(error):
                raise

    async def _send(self, room_id: RoomId, part: _Part, membership: OwnMembership, now: datetime) -> bool:
        """Send a membership; tells whether the room let it in."""
        part.tried = True
        try:
            await self._calls.send(room_id, membership, membership.content)
        except RequestFailed as error:
            if not is_gone(error):
                raise
            self._leave_alone(room_id, f"a room's power levels do not let the device send {membership.event_type}")
            await self._drop(room_id)
            return False
        part.membership = membership
        part.believed_until = now + timedelta(seconds=membership.lasts_seconds)
        return True

    async def _live_on(self, room_id: RoomId) -> None:
        """Put the leave off once more."""
        part = self._parts.get(room_id)
        if part is None or time.monotonic() - part.alive_at < SIGN_OF_LIFE_SECONDS / 2:
            return
        try:
            await self._calls.put_off(part.delay_id)
        except RequestFailed as error:
            if is_gone(error):  # it was sent, or somebody else overwrote the membership
                self._parts.pop(room_id, None)
                self._sealed.note_call(room_id)
            raise
        part.alive_at = time.monotonic()

    async def _drop(self, room_id: RoomId) -> None:
        """Be in a call no longer, without saying so there."""
        part = self._parts.pop(room_id, None)
        if part is not None:
            with suppress(*RequestFailed):
                await self._calls.cancel(part.delay_id)

    def _leave_alone(self, room_id: RoomId, fault: str) -> None:
        """Say, once, what a room or the homeserver forbids, and do not try again for a while."""
        said, _ = self._forbidden.get(room_id, ("", NEVER))
        if said != fault:
            _log.warning(fault)
            _log.debug(fault, extra={"room_id": room_id})
        self._forbidden[room_id] = fault, time.monotonic() + FORBIDDEN_SECONDS

    def _is_left_alone(self, room_id: RoomId) -> bool:
        _, until = self._forbidden.get(room_id, ("", NEVER))
        return until > time.monotonic()

    async def _try(self, doing: Awaitable[None], fault: str) -> None:
        """Do what the homeserver or the database may refuse; one that hangs must not keep the others from living on."""
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                await doing
        except (*RequestFailed, StoreUnavailable) as error:
            count = self._repeats.note((fault, type(error)))
            if count is not None:
                _log.warning(fault, extra={**describe(error), "count": count})

    async def _any(self, stop: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (stop, self._sealed.call_changed)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
