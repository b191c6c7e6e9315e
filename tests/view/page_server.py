"""The pages with real data behind them: recordings through the store and the projector, served by aiohttp."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from rtc_appservice.core.model import Settings
from rtc_appservice.store.pool import Pool
from rtc_appservice.view.access import Access, Names
from rtc_appservice.view.health import Readiness, health_app
from rtc_appservice.view.pages import Pages
from tests.test_projector import Service, read

TOKEN = "a token of the tests"

#: Calls of every verdict: followers and a room-only client, all by to-device, all by room events.
SCENARIOS = ("smart-switch", "todevice-only", "legacy-only", "crash")

PSEUDONYMS = Names(
    room=lambda room_id: f"room-{len(room_id)}",
    user=lambda user_id: f"user-{len(user_id)}",
    device=lambda _user_id, device_id: f"device-{len(device_id)}",
)


async def fill(pool: Pool, scenarios: Sequence[str] = SCENARIOS, *, settled: bool = True) -> None:
    """Take recordings in and project them; without settling, the last one's call may still go on."""
    service = await Service.open(pool)
    for scenario in scenarios:
        intakes = read(scenario)
        for intake in intakes:
            await service.take(intake)
        await service.project()
        if settled:
            await service.settle(intakes)


async def fill_live(pool: Pool, scenario: str = "smart-switch") -> None:
    """Take a recording in up to the middle of its call, so that the call goes on."""
    service = await Service.open(pool)
    intakes = read(scenario)
    first = next(n for n, intake in enumerate(intakes) if intake.rtc_rooms)
    for intake in intakes[: first + (len(intakes) - first) // 2]:
        await service.take(intake)
    await service.project()


async def always_ready() -> None:
    """Find nothing that is not ready."""


@asynccontextmanager
async def serving(
    pool: Pool,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    ready: Readiness = always_ready,
    settings: Settings | None = None,
) -> AsyncIterator[TestServer]:
    """Serve the admin listener on loopback, as if it were bound to `host`."""

    async def page(_accept: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    app: web.Application = health_app(page, ready)
    access = Access(host=host, token=token, pseudonyms=PSEUDONYMS)
    Pages(pool, settings or Settings(), ready, access).add_to(app)
    server = TestServer(app)
    async with server:
        yield server
