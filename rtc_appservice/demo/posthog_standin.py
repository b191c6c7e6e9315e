"""
A stand-in for PostHog: takes batches as PostHog does, keeps them, and shows what it was sent.

`POST /batch/` (plain or gzip), `POST /flags/` (no flags, for a project without any), `GET /events` (JSON, or a page for
browsers). Requests are validated whole, as PostHog validates them. How it answers can be switched, so that every answer
of the real one can be met.
"""

import asyncio
import html
import json
from collections import deque
from typing import Any

from aiohttp import web
from msgspec import Struct, field

#: Largest body PostHog takes.
MAX_BODY_BYTES = 20 * 1024 * 1024


class Behaviour(Struct):
    """How the next requests are answered."""

    status: int = 200
    quota_limited: bool = False
    delay_seconds: float = 0.0
    retry_after_seconds: float | None = None
    #: A batch that holds an event with one of these uuids is answered 400, as one malformed event would.
    malformed: set[str] = field(default_factory=set)
    #: A batch of more events than this is answered 413.
    max_events: int | None = None
    #: The body of a 200 answer, where it is not PostHog's own.
    body: str | None = None


class PostHogStandIn:
    """A small HTTP server on loopback. `events` are what it kept, `bodies` whatever it was sent."""

    def __init__(self, keep_bodies: int = 1000) -> None:
        """Take how many request bodies to remember; events are all kept."""
        self.behaviour = Behaviour()
        self.events: list[dict[str, Any]] = []
        self.bodies: deque[dict[str, Any]] = deque(maxlen=keep_bodies)
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        """Listen on loopback, on a free port unless one is given; give the base address."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/batch/", self._take),
                web.post("/flags/", self._evaluate),
                web.get("/events", self._show),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.address

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def received(self, count: int) -> None:
        """Wait until at least `count` events were kept."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.events) >= count)

    async def _take(self, request: web.Request) -> web.Response:
        behaviour = self.behaviour
        if behaviour.delay_seconds:
            await asyncio.sleep(behaviour.delay_seconds)
        if behaviour.status != 200:
            headers = {}
            if behaviour.retry_after_seconds is not None:
                headers["Retry-After"] = str(behaviour.retry_after_seconds)
            return web.json_response({"detail": "as told"}, status=behaviour.status, headers=headers)
        try:
            body = await request.json()  # unpacked by aiohttp if it was gzip
            batch = body["batch"]
            well_formed = all(event["event"] and event["distinct_id"] and event["uuid"] for event in batch)
        except (ValueError, KeyError, TypeError, OSError):
            return web.json_response({"detail": "malformed"}, status=400)
        self.bodies.append(body)
        if not well_formed or behaviour.malformed & {event["uuid"] for event in batch}:
            return web.json_response({"detail": "malformed event"}, status=400)
        if behaviour.max_events is not None and len(batch) > behaviour.max_events:
            return web.json_response({"detail": "too large"}, status=413)
        if behaviour.body is not None:
            return web.Response(text=behaviour.body)
        if behaviour.quota_limited:
            return web.json_response({"status": "Ok", "quota_limited": ["events"]})
        async with self._news:
            self.events.extend(batch)
            self._news.notify_all()
        return web.json_response({"status": "Ok"})

    async def _evaluate(self, request: web.Request) -> web.Response:
        if self.behaviour.status != 200:
            return web.json_response({"detail": "as told"}, status=self.behaviour.status)
        body = await request.json()
        if not body.get("api_key") or not body.get("distinct_id"):
            return web.json_response({"detail": "malformed"}, status=400)
        return web.json_response({"flags": {}, "errorsWhileComputingFlags": False})

    async def _show(self, request: web.Request) -> web.Response:
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=_page(self.events), content_type="text/html")
        return web.json_response(self.events)


def _page(events: list[dict[str, Any]]) -> str:
    """Give the events as a page, newest first."""
    rows = "".join(
        f"<tr><td>{_cell(event.get('timestamp'))}<td>{_cell(event.get('event'))}<td>{_cell(event.get('distinct_id'))}"
        f"<td>{_properties(event.get('properties', {}))}"
        for event in reversed(events)
    )
    return (
        "<!doctype html><meta charset=utf-8><title>PostHog stand-in</title>"
        "<style>body{font:14px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;vertical-align:top;"
        "border-bottom:1px solid #ddd}td:last-child{font-family:monospace}</style>"
        f"<h1>Events received: {len(events)}</h1>"
        f"<table><tr><th>timestamp<th>event<th>distinct_id<th>properties{rows}</table>"
    )


def _properties(properties: dict[str, Any]) -> str:
    shown = ((name, value) for name, value in properties.items() if not name.startswith("$"))
    return "<br>".join(f"{_cell(name)}: {_cell(json.dumps(value))}" for name, value in shown)


def _cell(value: object) -> str:
    return html.escape(str(value))
