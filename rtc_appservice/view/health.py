"""
Stage 7: the admin listener: `/metrics`, `/live` and `/ready`. It is for probes and scrapers, not for the homeserver.

Ready means the database is reachable and at the newest migration; PostHog has no say. What it needs is
handed in as callables, so this module knows nothing of metrics or of migrations.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from rtc_appservice.errors import RtcAppserviceError

#: Takes a scrape's `Accept` header, gives the page and its content type.
Page = Callable[[str], Awaitable[tuple[bytes, str]]]

#: Returns if the service can do its work, raises an `RtcAppserviceError` that says why if not.
Readiness = Callable[[], Awaitable[None]]

#: A probe usually gives up after a few seconds; an answer that comes later helps nobody.
READY_TIMEOUT_SECONDS = 3.0


async def why_not_ready(ready: Readiness) -> str | None:
    """Say why the service cannot do its work; None if it can."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_SECONDS):
            await ready()
    except TimeoutError:
        return "The database does not answer."
    except RtcAppserviceError as error:
        return str(error)
    return None


def health_app(page: Page, ready: Readiness) -> web.Application:
    """Take what gives the metrics page and what tells readiness; give the application of the admin listener."""

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = await page(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    async def live(_request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def is_ready(_request: web.Request) -> web.Response:
        why = await why_not_ready(ready)
        return web.Response(text="ready\n") if why is None else web.Response(status=503, text=f"{why}\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/live", live), web.get("/ready", is_ready)])
    return app
