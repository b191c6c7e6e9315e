"""Rooms that the device is asked into, with a homeserver that refuses, or never answers, for some of them."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId
from rtc_appservice.intake import server as server_module
from rtc_appservice.intake.device_api import DeviceApi
from rtc_appservice.intake.room_keeper import RoomKeeper
from rtc_appservice.intake.sealed import SealedIntake
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import Read
from rtc_appservice.store import audited_rooms
from rtc_appservice.store.audited_rooms import AuditedRoom
from rtc_appservice.store.pool import Pool

from .olm_peer import OURS, body
from .reading_device import ReadingDevice
from .serving import HOMESERVER, Clock

SILENT, FORBIDDEN, OPEN = RoomId("!a-silent:lab.test"), RoomId("!b-forbidden:lab.test"), RoomId("!c-open:lab.test")


class Homeserver:
    """Lets the device into a room unless its name says otherwise."""

    def __init__(self) -> None:
        """Begin with nobody there."""
        self.address = ""
        self.joins: list[str] = []
        self.notices: list[str] = []
        self._opened = asyncio.Event()
        self.is_overtaken = False  #: the open room was joined while the silent one was waited for

    async def answer(self, request: web.Request) -> web.Response:
        """Answer."""
        *_, before, last = request.path.split("/")
        if before == "join":
            self.joins.append(last)
            if "silent" in last:
                await self._opened.wait()
                self.is_overtaken |= request.transport is not None and not request.transport.is_closing()
                await asyncio.sleep(30)
            if "forbidden" in last:
                return web.json_response({"errcode": "M_FORBIDDEN", "error": "no"}, status=403)
            self._opened.set()
            return web.json_response({"room_id": last})
        if before == "m.room.message":
            self.notices.append(last)
            return web.json_response({"event_id": "$notice"})
        return web.json_response([])


class NoCalls:
    """Takes part in no call."""

    def takes_part(self, _room_id: RoomId) -> bool:
        """Say no."""
        return False

    async def withdraw(self, _room_id: RoomId) -> None:
        """Do nothing."""


class Kept:
    """A device with its rooms, and the homeserver they are on."""

    def __init__(self, device: ReadingDevice, keeper: RoomKeeper, homeserver: Homeserver) -> None:
        """Take them."""
        self.device, self.keeper, self.homeserver = device, keeper, homeserver
        assert isinstance(device.intake.sealed, SealedIntake)
        self.sealed = device.intake.sealed

    async def want(self, *room_ids: RoomId, wanted: bool = True) -> None:
        """Ask the device into rooms or out of them."""
        async with self.device.pool.acquire() as conn:
            for room_id in room_ids:
                await audited_rooms.want_room(conn, self.device.intake.homeserver_id, room_id, wanted=wanted)

    async def tend(self, times: int = 1) -> None:
        """See to the rooms without waiting first."""
        for _ in range(times):
            self.sealed.rooms_changed.set()
            await self.keeper.tend()

    async def rooms(self) -> dict[str, AuditedRoom]:
        """Give what `room list` shows."""
        async with self.device.pool.acquire() as conn:
            found = await audited_rooms.audited_rooms(conn, self.device.intake.homeserver_id)
        return {room.room_id: room for room in found}


@pytest.fixture
async def kept(pool: Pool, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    """Give a device in no room, whose requests go out as the service's do; each is given up after a second."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 1.0)
    device, homeserver = ReadingDevice(pool, clock), Homeserver()
    await device.start()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", homeserver.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    homeserver.address = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def take(_read: Read) -> Intake:
        return Intake()

    server = IntakeServer(
        Credentials(appservice_id="rtc", as_token="as", hs_token="hs", sender_localpart="rtc-auditor"),
        address=homeserver.address,
        homeserver=HOMESERVER,
        take=take,
        own_users=[OURS[0]],
    )
    session = server.open_client()
    api = DeviceApi(homeserver.address, "as", session, OURS)
    assert isinstance(device.intake.sealed, SealedIntake)
    device.own.rooms.clear()
    keeper = RoomKeeper(
        pool, HOMESERVER, device.intake, device.intake.sealed, api, NoCalls(), notice="I read here.", clock=clock
    )
    yield Kept(device, keeper, homeserver)
    await session.close()
    await runner.cleanup()


async def test_one_that_is_never_answered_does_not_keep_the_others_waiting(kept: Kept) -> None:
    """The room behind it is entered at once, and it itself is given up for a while."""
    await kept.want(SILENT, FORBIDDEN, OPEN)
    began = time.monotonic()
    await kept.tend()

    assert time.monotonic() - began < 10
    assert kept.homeserver.is_overtaken
    assert {OPEN} == kept.device.own.rooms
    assert {SILENT, FORBIDDEN} == kept.keeper.not_before.keys()
    await kept.want(SILENT, wanted=False)
    kept.keeper.not_before.clear()
    await kept.tend()
    assert {FORBIDDEN, OPEN} == (await kept.rooms()).keys()
    await kept.tend()
    assert {FORBIDDEN} == kept.keeper.not_before.keys()
    assert 1 == kept.homeserver.joins.count(OPEN)


async def test_a_thousand_that_refuse_make_no_thousand_lines(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """One line a minute says that some refuse, and what to do."""
    await kept.want(*(RoomId(f"!forbidden{number}:lab.test") for number in range(30)))
    with caplog.at_level("INFO"):
        await kept.tend()
        kept.keeper.not_before.clear()
        await kept.tend()

    (line,) = [record for record in caplog.records if "could not be joined" in record.message]
    assert "rtc-appservice room list" in vars(line)["hint"]
    assert 60 == len(kept.homeserver.joins)


async def test_what_is_said_on_entering_is_said_once(kept: Kept, clock: Clock) -> None:
    """Killed before that it was said is noted, the service says it under the same id; anew when it returns."""
    await kept.want(OPEN)
    await kept.tend(times=2)
    async with kept.device.pool.acquire() as conn:
        await conn.execute("UPDATE crypto.room SET announced_at = NULL")
    await kept.tend(times=2)
    await kept.want(OPEN, wanted=False)
    await kept.tend()
    clock.advance(1)
    await kept.want(OPEN)
    await kept.tend(times=2)

    first, again, returned = kept.homeserver.notices
    assert first == again != returned


async def test_a_join_that_nobody_asked_for_is_listed(kept: Kept) -> None:
    """A leave that comes late drops the room; the join behind it, and what an administrator does, brings it back."""
    await kept.want(OPEN)
    await kept.tend(times=2)
    events = tuple(
        {
            "type": "m.room.member",
            "room_id": OPEN,
            "event_id": f"${membership}",
            "sender": OURS[0],
            "state_key": OURS[0],
            "origin_server_ts": 1_795_000_000_000,
            "content": {"membership": membership},
        }
        for membership in ("leave", "join")
    )
    await kept.device.take(body(events=events))
    listed = (await kept.rooms())[OPEN]
    await kept.tend(times=2)

    assert (True, True) == (listed.wanted, listed.joined_at is not None)
    assert (await kept.rooms())[OPEN].state_read_at is not None
    assert {OPEN} == kept.device.own.rooms
    assert [OPEN] == kept.homeserver.joins
