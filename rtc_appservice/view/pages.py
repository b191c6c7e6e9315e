"""
Stage 7: the web pages of the admin listener: overview, calls, one call, rooms, one room, health.

Each is made on the server from what the store has, and can be read without script or anything from elsewhere. Who
is shown which names is decided in `access`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from rtc_appservice.core.model import Settings
from rtc_appservice.core.words import Verdict
from rtc_appservice.errors import InputError, StoreUnavailable
from rtc_appservice.store import outbox, pages, sessions
from rtc_appservice.store.condition import load_condition
from rtc_appservice.store.findings import load_of_rooms
from rtc_appservice.store.homeservers import load_homeservers
from rtc_appservice.store.pool import Pool, lend
from rtc_appservice.view.access import Access, Names
from rtc_appservice.view.charts import share_line, stacked_bars
from rtc_appservice.view.health import Readiness, why_not_ready
from rtc_appservice.view.matrix import matrix
from rtc_appservice.view.overview import Overview, read_overview
from rtc_appservice.view.rendering import render
from rtc_appservice.view.stored_call import explain_call
from rtc_appservice.view.timeline import draw

#: Lines of a list on one page.
PAGE = 50
#: Pages made at the same time: the connections of the pool are there for the intake first.
AT_ONCE = 2
#: A page whose database takes longer than this, the wait for a connection included, says so.
PAGE_SECONDS = 10.0
#: The windows that the overview offers, in days.
WINDOWS = (7, 28, 90)

_STATIC = Path(__file__).parent / "static"

#: Nothing from elsewhere, nothing inline, no frame around it; ids of rooms and users stay out of the Referer.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    hdrs.CACHE_CONTROL: "no-store",
}

#: A page: takes the request and how to call rooms and users, gives the HTML.
_Make = Callable[[web.Request, Names], Awaitable[str]]


class Pages:
    """The pages of one service."""

    def __init__(self, pool: Pool, settings: Settings, ready: Readiness, access: Access) -> None:
        """Take the database, what detection is tuned to, what tells readiness, and who may see what."""
        self._pool = pool
        self._settings = settings
        self._ready = ready
        self._access = access
        self._turns = asyncio.Semaphore(AT_ONCE)

    def add_to(self, app: web.Application) -> None:
        """Add the pages, and what they look like, to the admin listener."""
        made = {
            "/": self._overview,
            "/calls": self._calls,
            "/calls/{call_id}": self._call,
            "/rooms": self._rooms,
            r"/rooms/{room_key:\d{1,18}}": self._room,
            "/health": self._health,
        }
        app.add_routes([web.get(path, self._serve(make)) for path, make in made.items()])
        app.router.add_static("/static/", _STATIC)
        app.router.add_get("/{path:.*}", self._nowhere)

    async def _nowhere(self, request: web.Request) -> web.Response:
        """Say that there is no such page, as a page to who reads pages; a probe gets a line of text."""
        if "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
            raise web.HTTPNotFound

        async def none(_request: web.Request, _names: Names) -> str:
            raise InputError("There is no such page.")

        return await self._serve(none)(request)

    def _serve(self, make: _Make) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handler(request: web.Request) -> web.Response:
            status = 200
            try:
                names = self._access.names_for(request)
            except web.HTTPException as refused:
                refused.headers.update(_HEADERS)
                raise
            try:
                async with self._turns:
                    text = await make(request, names)
            except InputError as error:
                status, text = 404, _page("error.html", request, names, title="Not found", message=str(error))
            except StoreUnavailable:
                message = "The database does not answer. Try again in a moment."
                status, text = 503, _page("error.html", request, names, title="Not available", message=message)
            response = web.Response(status=status, text=text, content_type="text/html", headers=_HEADERS)
            response.enable_compression()
            return response

        return handler

    async def _overview(self, request: web.Request, names: Names) -> str:
        days = next((days for days in WINDOWS if str(days) == request.query.get("days")), 28)
        now = datetime.now(UTC)
        async with lend(self._pool, PAGE_SECONDS) as conn:
            homeservers = await load_homeservers(conn)
            homeserver = request.query.get("homeserver") or None
            asked = {name: number for name, number in homeservers.items() if homeserver in (None, name)}
            if homeserver is not None and not asked:
                raise InputError("There is nothing from this homeserver in the database.")
            target = self._settings.readiness_target
            counted = await read_overview(conn, asked, days=days, now=now, target=target)
        choice = {"windows": WINDOWS, "days": days, "homeserver": homeserver, "homeservers": homeservers}
        return await asyncio.to_thread(_overview_page, request, names, counted, choice)

    async def _calls(self, request: web.Request, names: Names) -> str:
        query = request.query
        homeservers = await self._homeservers()
        homeserver = query.get("homeserver") if query.get("homeserver") in homeservers else None
        verdict = next((verdict for verdict in Verdict if verdict == query.get("verdict")), None)
        since, number = _day(query.get("since")), _number(query)
        asked = pages.CallFilter(
            verdict=verdict,
            homeserver_id=homeservers[homeserver] if homeserver else None,
            since=since,
            sort=query.get("sort", "") if query.get("sort") in pages.SORTS else "started",
            ascending=query.get("order") == "ascending",
        )
        async with lend(self._pool, PAGE_SECONDS) as conn:
            now = datetime.now(UTC)
            calls, total = await pages.list_calls(conn, asked, limit=PAGE, offset=PAGE * (number - 1), now=now)
        kept = {
            "verdict": verdict,
            "homeserver": homeserver,
            "since": since.date().isoformat() if since else None,
            "sort": asked.sort,
            "order": "ascending" if asked.ascending else None,
        }
        return _page(
            "calls.html",
            request,
            names,
            title="Calls",
            calls=calls,
            kept=kept,
            asked=asked,
            homeservers=homeservers,
            **_place(number, total),
        )

    async def _call(self, request: web.Request, names: Names) -> str:
        call_id = request.match_info["call_id"]
        now = datetime.now(UTC)
        async with lend(self._pool, PAGE_SECONDS) as conn:
            found = await sessions.find_calls(conn, call_id)
        if len(found) != 1:
            raise InputError("There is no such call; it may be gone by retention, or have another id since.")
        told = None
        with suppress(InputError):
            told = await explain_call(self._pool, found[0].report.call_id, self._settings, seconds=PAGE_SECONDS)
        call = found[0].report if told is None else told.call
        return _page(
            "call.html",
            request,
            names,
            title=f"Call {call.call_id[:8]}",
            call=call,
            told=told,
            room_key=found[0].room_key,
            drawing=None if told is None else draw(told, now),
            matrix=None if told is None else matrix(told.owed),
            live=call.ended_at is None and request.query.get("live") != "off",
            now=now,
        )

    async def _rooms(self, request: web.Request, names: Names) -> str:
        number = _number(request.query)
        async with lend(self._pool, PAGE_SECONDS) as conn:
            rooms, total = await pages.list_rooms(conn, limit=PAGE, offset=PAGE * (number - 1))
        return _page("rooms.html", request, names, title="Rooms", rooms=rooms, kept={}, **_place(number, total))

    async def _room(self, request: web.Request, names: Names) -> str:
        room_key, number = int(request.match_info["room_key"]), _number(request.query)
        asked, now = pages.CallFilter(room_key=room_key), datetime.now(UTC)
        async with lend(self._pool, PAGE_SECONDS) as conn:
            rooms, _ = await pages.list_rooms(conn, limit=1, room_key=room_key)
            if not rooms:
                raise InputError("There is no such room, or no RTC event was seen in it.")
            entries = await pages.load_ledger(conn, room_key, limit=PAGE, offset=PAGE * (number - 1))
            calls, _ = await pages.list_calls(conn, asked, limit=PAGE, offset=0, now=now)
            findings = await load_of_rooms(conn, room_key=room_key, newest=PAGE)
        listed = rooms[0]
        place = _place(number, listed.keys_standing + listed.keys_redacted)
        return _page(
            "room.html",
            request,
            names,
            title="Room",
            listed=listed,
            entries=entries,
            calls=calls,
            findings=findings[::-1],
            kept={},
            **place,
        )

    async def _health(self, request: web.Request, names: Names) -> str:
        why = await why_not_ready(self._ready)
        now = datetime.now(UTC)
        if why is not None:
            return _page("health.html", request, names, title="Health", why=why, now=now, condition=None)
        async with lend(self._pool, PAGE_SECONDS) as conn:
            condition = await load_condition(conn, now)
            streams = {stream.homeserver: stream for stream in await pages.load_streams(conn)}
            pending = await outbox.pending(conn)
        return _page(
            "health.html",
            request,
            names,
            title="Health",
            why=None,
            now=now,
            condition=condition,
            streams=streams,
            pending=pending,
        )

    async def _homeservers(self) -> dict[str, int]:
        async with lend(self._pool, PAGE_SECONDS) as conn:
            return {str(name): number for name, number in (await load_homeservers(conn)).items()}


def _overview_page(request: web.Request, names: Names, counted: Overview, choice: Mapping[str, Any]) -> str:
    """Give the page; it does not touch the database, so another thread may draw its plots."""
    labels, span = [f"{period.begin:%m-%d}" for period in counted.periods], "week" if counted.by_week else "day"
    bars = stacked_bars(
        labels,
        {verdict: [period.by_verdict.get(verdict, 0) for period in counted.periods] for verdict in Verdict},
        f"Calls by {span} and verdict; the table below has the numbers.",
    )
    line = share_line(
        labels,
        "all by to-device",
        [period.share for period in counted.periods],
        f"Share of calls that are all by to-device, by {span}; the table below has the numbers.",
    )
    shown = {"counted": counted, "bars": bars, "line": line}
    return _page("overview.html", request, names, title="Overview", **shown, **choice)


def _page(template: str, request: web.Request, names: Names, *, title: str, **values: Any) -> str:
    return render(template, names, title=title, path=request.path, **values)


def _place(number: int, total: int) -> dict[str, int]:
    """Give where a page of a list stands: its number, and how many pages and entries there are."""
    return {"number": number, "last": max(1, -(-total // PAGE)), "total": total}


def _number(query: Mapping[str, str]) -> int:
    text = query.get("page", "")
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 9 else 1


def _day(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text or "", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
