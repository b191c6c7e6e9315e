"""The service's own device where all it sees is what it is invited to, and where the homeserver knows no MSC4190."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from rtc_appservice.core.observed import RoomKey, RoomState
from rtc_appservice.core.words import GapReason, RoomId
from rtc_appservice.store.audited_rooms import want_room
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.pool import Pool
from tests.acceptance.sealed_room import BOT, Service, running_service, sealed_synapse, sender, until
from tests.core.build import project_room

Homeserver = tuple[str, Path, int]
READ = "SELECT count(*) FROM crypto.room WHERE room_id = $1 AND state_read_at IS NOT NULL"


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """Give a Synapse whose registration shows nobody's rooms but the device's, and does not ask for MSC4190."""
    folder = tmp_path_factory.mktemp("synapse")
    async with sealed_synapse(folder, pilot_regex="@nobody:rtc\\.test", msc4190=False) as given:
        yield given


class OlderHomeserver:
    """Hands requests on to a Synapse, but for those that would make a device without a login (as 1.118 does)."""

    def __init__(self, address: str) -> None:
        """Take where the Synapse is."""
        self.address = address
        self._synapse = address
        self.logins: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request."""
        self.tokens.add(request.headers.get("Authorization"))
        headers = {"Authorization": request.headers["Authorization"], "Content-Type": "application/json"}
        async with aiohttp.ClientSession(self._synapse) as session:
            if request.method == "PUT" and "/devices/" in request.path:
                async with session.get(request.rel_url, headers=headers) as known:
                    if known.status != 200:
                        return web.json_response({"errcode": "M_NOT_FOUND", "error": "No device found"}, status=404)
            async with session.request(
                request.method, request.rel_url, data=await request.read(), headers=headers
            ) as given:
                body = await given.read()
        if request.path.endswith("/login"):
            self.logins.append(json.loads(body))
        return web.Response(body=body, status=given.status, content_type="application/json")


@asynccontextmanager
async def older(address: str) -> AsyncIterator[OlderHomeserver]:
    """Give an older homeserver that is a Synapse for the rest."""
    given = OlderHomeserver(address)
    app = web.Application(client_max_size=10_000_000)
    app.router.add_route("*", "/{path:.*}", given.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    given.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield given
    await runner.cleanup()


async def has_read(service: Service, room_id: RoomId, room_keys: int) -> bool:
    """Tell whether a number of room keys was read."""
    return room_keys == sum(isinstance(o.body, RoomKey) for o in await service.observations(room_id))


async def test_logs_in_where_the_homeserver_makes_no_device(
    homeserver: Homeserver, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the device stays the same, and acts by the service's own token; what the login gave is kept nowhere."""
    synapse, path, port = homeserver
    async with older(synapse) as behind, sender(synapse, "alice") as alice:
        async with running_service(pool, behind.address, path, port) as service:
            room_id = await alice.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            await alice.call(room_id)
            await alice.share(room_id)
            await alice.send_room_key(room_id, 0)
            await until(lambda: has_read(service, room_id, 1), "the room key was read")
            device = service.auditor.own.device
        async with running_service(pool, behind.address, path, port) as service:
            await alice.send_room_key(room_id, 1)
            await until(lambda: has_read(service, room_id, 2), "it reads on after a restart")
            signed = await service.count("SELECT count(*) FROM crypto.device WHERE signed_at IS NOT NULL")
        dump = [str(row) for row in await pool.fetch("SELECT * FROM crypto.device")]

    (login,) = behind.logins
    assert device == (login["user_id"], login["device_id"]) == (BOT, login["device_id"])
    assert 1 == signed
    assert 1 == len(behind.tokens)
    assert not any(login["access_token"] in text for text in (*behind.tokens, *dump, caplog.text) if text)


async def test_calls_begun_after_it_came_were_seen_from_their_beginning(homeserver: Homeserver, pool: Pool) -> None:
    """Those that went on when it came began unseen; so do those it finds when it comes again."""
    synapse, path, port = homeserver
    async with running_service(pool, synapse, path, port) as service, sender(synapse, "ann") as ann:

        async def reads_state() -> None:
            await ann.invite(room_id)
            await until(lambda: service.count(READ, room_id), "the state of the room was read")

        async def call(*, until_now: int) -> None:
            await until(lambda: calls(service, room_id, until_now), f"{until_now} calls have begun")
            await ann.call(room_id, live=False)
            await until(lambda: calls(service, room_id, until_now, ended=True), f"{until_now} calls have ended")

        room_id = await ann.make_room(invite=False)
        await ann.call(room_id)
        await reads_state()
        await call(until_now=1)
        await ann.call(room_id)
        await call(until_now=2)
        async with pool.acquire() as conn:
            await want_room(conn, service.intake.homeserver_id, room_id, wanted=False)
        service.look_at_rooms()
        gone = "SELECT count(*) = 0 FROM crypto.room WHERE room_id = $1"
        await until(lambda: service.count(gone, room_id), "the device left")
        await ann.call(room_id)
        await reads_state()
        await call(until_now=3)
        await ann.call(room_id)
        await call(until_now=4)
        found = await projected(service, room_id)
        async with pool.acquire() as conn:
            gaps = [gap for gap in await load_gaps(conn, None, None) if gap.room_id == room_id]

    assert [GapReason.ROOM_JOINED_LATE] * 2 == [gap.reason for gap in gaps]
    times = [at for gap in gaps for at in (gap.started_at, gap.ended_at) if at is not None]
    assert sorted(set(times)) == times
    assert 4 == len(times)
    assert [False, True, False, True] == [beginning_seen for beginning_seen, _, _ in found]
    assert [True] * 4 == [encrypted for _, encrypted, _ in found]


async def test_state_that_was_not_read_is_read_after_all(homeserver: Homeserver, pool: Pool) -> None:
    """Killed, or refused, between entering a room and recording what it found there: the next look makes up for it."""
    synapse, path, port = homeserver
    async with sender(synapse, "cleo") as cleo:
        async with running_service(pool, synapse, path, port) as service:
            room_id = await cleo.make_room()
            await until(lambda: service.count(READ, room_id), "the state of the room was read")
        await pool.execute("UPDATE crypto.room SET state_read_at = NULL")
        await pool.execute("DELETE FROM observation")
        await pool.execute("DELETE FROM observation_identity")
        async with running_service(pool, synapse, path, port) as service:
            await until(lambda: service.count(READ, room_id), "the state of the room was read after all")
            kinds = {o.body.event_type for o in await service.observations(room_id) if isinstance(o.body, RoomState)}

    assert {"m.room.encryption", "m.room.history_visibility"} < kinds


async def projected(service: Service, room_id: RoomId) -> list[tuple[bool, bool | None, bool]]:
    """Give of each call: whether its beginning was seen, whether the room is encrypted, whether it has ended."""
    history = await service.history(room_id)
    reports = [session.report for session in project_room(history)]
    return [(report.beginning_seen, report.encrypted_room, report.ended_at is not None) for report in reports]


async def calls(service: Service, room_id: RoomId, number: int, *, ended: bool = False) -> bool:
    """Tell whether a number of calls is known, the last of them ended or going on."""
    found = await projected(service, room_id)
    return len(found) == number and found[-1][2] == ended
