"""The stand-in takes what PostHog takes, and shows it to programs and to people."""

import aiohttp

from rtc_appservice.demo.posthog_standin import PostHogStandIn


async def test_shows_what_it_kept() -> None:
    """A batch that is well formed is kept whole, one that is not is refused whole; the page obeys no event."""
    server = PostHogStandIn()
    address = await server.start()
    event = {"event": "E", "uuid": "u", "distinct_id": "<script>", "properties": {"a": 1, "$b": 2}}
    try:
        async with aiohttp.ClientSession() as client:
            kept = await client.post(f"{address}/batch/", json={"batch": [event], "api_key": "k"})
            refused = await client.post(f"{address}/batch/", json={"batch": [event, {"event": "E"}], "api_key": "k"})
            no_json = await client.post(f"{address}/batch/", data=b"\x00")
            events = await (await client.get(f"{address}/events")).json()
            page = await (await client.get(f"{address}/events", headers={"Accept": "text/html"})).text()
    finally:
        await server.stop()

    assert [kept.status, refused.status, no_json.status] == [200, 400, 400]
    assert events == [event]
    assert "Events received: 1" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
