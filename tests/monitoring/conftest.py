from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from msgspec import Struct
from prometheus_client import parser

from rtc_appservice.core.words import ServerName
from rtc_appservice.export.prometheus import Metrics
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.streams import open_stream
from rtc_appservice.view.health import health_app


class Listener(Struct):
    """An admin listener on loopback."""

    metrics: Metrics
    port: int


async def _ready() -> None:
    return None


@pytest.fixture
async def listener(pool: Pool) -> AsyncIterator[Listener]:
    """Serve the metrics page as the service does."""
    async with pool.acquire() as conn:
        await open_stream(conn, ServerName("example.org"))
    metrics = Metrics(pool, ["example.org"], "1.2.3")
    runner = web.AppRunner(health_app(metrics.page, _ready))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Listener(metrics, runner.addresses[0][1])
    await runner.cleanup()


@pytest.fixture
async def page_names(listener: Listener) -> set[str]:
    """Give every name a query may ask the page for, those of a histogram's parts included."""
    page = (await listener.metrics.page("text/plain"))[0].decode()
    families = list(parser.text_string_to_metric_families(page))
    bare = {family.name for family in families if family.type == "gauge"}  # one may have no sample yet
    return bare | {sample.name for family in families for sample in family.samples}
