"""Whether PostHog takes the project's key, asked of the stand-in."""

import asyncio

import pytest
from aiohttp import web

from rtc_appservice.core.installation import Answer
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.export.posthog_key import ask_key


async def test_a_key_that_is_taken_and_one_that_is_not() -> None:
    """The answer is PostHog's, and no event is sent."""
    server = PostHogStandIn()
    host = await server.start()
    try:
        taken = await asyncio.to_thread(ask_key, "phc_test", host)
        server.behaviour.status = 401
        refused = await asyncio.to_thread(ask_key, "phc_test", host)
    finally:
        await server.stop()
    gone = await asyncio.to_thread(ask_key, "phc_test", host)

    assert "flags" in taken.body
    assert 401 == refused.status
    assert (None, "ConnectionError") == (gone.status, gone.problem)
    assert [] == server.events


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (200, "<html>", Answer(status=200)),
        (200, '{"quotaLimited": ["feature_flags"]}', Answer(status=200, body={"flags": {}})),
        (404, "[]", Answer(problem="an error that is not PostHog's")),
        (404, "nothing", Answer(status=404)),
    ],
)
async def test_odd_answers(status: int, text: str, expected: Answer) -> None:
    """Nothing that a server answers is an error here; a project over its quota has a key that is known."""

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type="application/json")

    app = web.Application()
    app.router.add_post("/flags/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        assert expected == await asyncio.to_thread(ask_key, "phc_test", host)
    finally:
        await runner.cleanup()
