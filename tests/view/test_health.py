"""The probes: live while the process serves, ready while the database does its part."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from rtc_appservice.errors import SchemaBehind
from rtc_appservice.view import health
from rtc_appservice.view.health import Readiness, health_app

Client = TestClient[web.Request, web.Application]
Connect = Callable[[Readiness], Awaitable[Client]]


async def _page(accept: str) -> tuple[bytes, str]:
    return f"asked for {accept}".encode(), "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Give a function that serves the probes with a given readiness and gives a client."""
    clients: list[Client] = []

    async def start(ready: Readiness) -> Client:
        client = TestClient(TestServer(health_app(_page, ready)))
        await client.start_server()
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()


async def test_ready(connect: Connect) -> None:
    """A service that can work is live and ready."""

    async def ready() -> None:
        return None

    client = await connect(ready)

    assert [(await client.get(path)).status for path in ("/live", "/ready", "/elsewhere")] == [200, 200, 404]


async def test_not_ready_says_why(connect: Connect) -> None:
    """A service that cannot work is live, not ready, and says what to do."""

    async def behind() -> None:
        raise SchemaBehind

    client = await connect(behind)
    answer = await client.get("/ready")

    assert (await client.get("/live")).status == 200
    assert answer.status == 503
    assert "rtc-appservice db upgrade" in await answer.text()


async def test_a_database_that_hangs(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe gets its answer even where the database gives none."""
    monkeypatch.setattr(health, "READY_TIMEOUT_SECONDS", 0.01)
    client = await connect(lambda: asyncio.Event().wait())  # type: ignore[arg-type,return-value]

    assert (await client.get("/ready")).status == 503


async def test_metrics_passes_the_accept_header(connect: Connect) -> None:
    """The page is made for what the scraper asks, and has the content type it was given."""

    async def ready() -> None:
        return None

    answer = await (await connect(ready)).get("/metrics", headers={"Accept": "application/openmetrics-text"})

    assert await answer.text() == "asked for application/openmetrics-text"
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
