"""Messages for the device that waited at the homeserver are opened before newer ones of a transaction."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rtc_appservice.core.wire import Intake
from rtc_appservice.intake.auditor import Auditor, auditor_terms
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.device_api import RequestFailed
from rtc_appservice.intake.sealed import SealedIntake
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.store import crypto
from rtc_appservice.store.pool import Connection, Pool

from .olm_peer import body
from .reading_device import ReadingDevice
from .serving import HOMESERVER, Clock


async def test_what_waited_is_not_passed_over(pool: Pool, clock: Clock) -> None:
    """A session keeps forty keys: the newest of sixty messages, opened first, would make the oldest unreadable."""
    device = ReadingDevice(pool, clock)
    await device.start()
    messages = [device.alice.media_key() for _ in range(60)]

    async def write(_conn: Connection, _reading: Reading, _intake: Intake) -> None:
        return

    assert device.intake.sealed is not None
    device.intake.sealed.is_behind = True
    await device.take(body(messages[-1]))
    before = await device.totals()
    for start in range(0, len(messages), 20):
        await device.intake.take_beside({"events": [], "to_device": messages[start : start + 20]}, write)
    device.intake.sealed.is_behind = False
    await device.take(body(messages[-1], device.alice.media_key()))

    assert {} == before
    assert {"to_device_decrypted": 61} == await device.totals()


class Homeserver:
    """Answers `/sync`."""

    def __init__(self) -> None:
        self.address = ""
        self.waiting = 0  #: to-device messages an answer brings
        self.status = 200

    async def answer(self, _request: web.Request) -> web.Response:
        """Answer."""
        brought: dict[str, Any] = {
            "next_batch": "s1",
            "to_device": {"events": [{}] * self.waiting},
            "device_one_time_keys_count": {"signed_curve25519": 50},
        }
        return web.json_response(brought, status=self.status)


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    """Give a listening HTTP server."""
    given = Homeserver()
    app = web.Application()
    app.router.add_get("/_matrix/client/v3/sync", given.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    given.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield given
    await runner.cleanup()


async def test_until_a_sync_has_brought_all(
    pool: Pool, intake: TransactionIntake, clock: Clock, homeserver: Homeserver
) -> None:
    """From the start, and from a `/sync` that failed, until one brings less than a homeserver gives at once."""
    terms = auditor_terms(
        address=homeserver.address, as_token="as", sender_localpart="rtc", homeserver=HOMESERVER, secret=b"a secret"
    )
    auditor, told = Auditor(pool, HOMESERVER, intake, terms, clock=clock), []

    def is_behind() -> bool:
        assert isinstance(intake.sealed, SealedIntake)
        return intake.sealed.is_behind

    async with aiohttp.ClientSession() as session:
        await auditor.open(session)
        told.append(is_behind())
        for homeserver.waiting in (100, 1):
            await auditor._sync_or_note()
            told.append(is_behind())
        homeserver.status = 502
        with pytest.raises(RequestFailed):
            await auditor._sync_or_note()
        told.append(is_behind())

    assert [True, True, False, True] == told


async def test_a_device_that_was_replaced_ends_the_service(
    pool: Pool, intake: TransactionIntake, clock: Clock, homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `new-device` a service that runs is not to go on with what was forgotten, nor to try for ever."""
    terms = auditor_terms(
        address=homeserver.address, as_token="as", sender_localpart="rtc", homeserver=HOMESERVER, secret=b"a secret"
    )
    auditor, stop = Auditor(pool, HOMESERVER, intake, terms, clock=clock), asyncio.Event()

    async def is_set_up(_now: object) -> None:
        """Do as if the homeserver had the device."""

    async with aiohttp.ClientSession() as session:
        await auditor.open(session)
        monkeypatch.setattr(auditor._setup, "set_up", is_set_up)
        async with pool.acquire() as conn:
            await crypto.forget_device(conn, intake.homeserver_id)
        with pytest.raises(crypto.DeviceReplaced, match="Start the service again"):
            await asyncio.wait_for(auditor.run(stop), 20)

    assert stop.is_set()
