"""
A stand-in for PostHog's REST API of dashboards and insights, with the habits of the real one that matter.

It adds fields to a stored query, ignores tags as a server without that feature does, deletes softly and never tells of
what is deleted unless asked by number, gives pages however large a page is asked for, and limits the rate.
"""

import copy
from typing import Any

from aiohttp import web

KEY = "phx_test"
PROJECT = "7"
MAX_TEXT = 400

Object = dict[str, Any]


class PostHogRestStandIn:
    """One project on loopback. `writes` are the requests that changed something, `asked` all that were let in."""

    def __init__(self, page: int = 3) -> None:
        """Take the size of a page."""
        self.stored: dict[str, dict[int, Object]] = {"dashboards": {}, "insights": {}}
        self.tiles: dict[int, Object] = {}
        self.writes: list[tuple[str, str, Object]] = []
        self.asked = 0
        #: Answers (status, `Retry-After`) to the next requests, before any is carried out.
        self.refusals: list[tuple[int, str | None]] = []
        self._page = page
        self._number = 100
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen on loopback; give the base address."""
        app = web.Application(middlewares=[self._admit])
        base = f"/api/projects/{PROJECT}/{{kind:dashboards|insights}}/"
        app.add_routes(
            [
                web.get(base, self._list),
                web.post(base, self._create),
                web.get(base + "{number}/", self._read),
                web.patch(base + "{number}/", self._update),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.address

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    def of_name(self, kind: str, name: str) -> Object:
        """Give the one object of a name that is not deleted."""
        (found,) = (each for each in self.stored[kind].values() if each["name"] == name and not each["deleted"])
        return found

    def live(self, kind: str) -> list[Object]:
        """Give what is not deleted."""
        return [each for each in self.stored[kind].values() if not each["deleted"]]

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"type": "authentication_error", "detail": "Invalid key."}, status=401)
        self.asked += 1
        if self.refusals:
            status, retry_after = self.refusals.pop(0)
            headers = {"Retry-After": retry_after} if retry_after else {}
            return web.json_response({"detail": "Request was throttled."}, status=status, headers=headers)
        response: web.StreamResponse = await handler(request)
        return response

    async def _list(self, request: web.Request) -> web.Response:
        kind, search = request.match_info["kind"], request.query.get("search", "").lower()
        found = [self._shown(kind, each, whole=False) for each in self.live(kind) if search in _text(each)]
        offset, limit = int(request.query.get("offset", 0)), min(int(request.query.get("limit", 100)), self._page)
        more = offset + limit < len(found)
        following = str(request.url.update_query(offset=offset + limit, limit=limit)) if more else None
        return web.json_response({"next": following, "previous": None, "results": found[offset : offset + limit]})

    async def _create(self, request: web.Request) -> web.Response:
        kind, content = request.match_info["kind"], await request.json()
        self._number += 1
        stored = self.stored[kind][self._number] = {
            "id": self._number,
            "short_id": f"s{self._number}",
            "deleted": False,
            "created_by": {"email": "someone"},
        }
        self.writes.append(("POST", kind, content))
        if problem := self._set(kind, stored, content):
            del self.stored[kind][self._number]
            return web.json_response({"type": "validation_error", "detail": problem}, status=400)
        return web.json_response(self._shown(kind, stored), status=201)

    async def _read(self, request: web.Request) -> web.Response:
        kind, stored = request.match_info["kind"], self._stored(request)
        if stored is None:
            return web.json_response({"detail": "Not found."}, status=404)
        return web.json_response(self._shown(kind, stored))

    async def _update(self, request: web.Request) -> web.Response:
        kind, stored, content = request.match_info["kind"], self._stored(request), await request.json()
        if stored is None:
            return web.json_response({"detail": "Not found."}, status=404)
        self.writes.append(("PATCH", f"{kind}/{stored['id']}", content))
        if problem := self._set(kind, stored, content):
            return web.json_response({"type": "validation_error", "detail": problem}, status=400)
        return web.json_response(self._shown(kind, stored))

    def _stored(self, request: web.Request) -> Object | None:
        stored = self.stored[request.match_info["kind"]].get(int(request.match_info["number"]))
        return None if stored is None or stored["deleted"] else stored

    def _set(self, kind: str, stored: Object, content: Object) -> str | None:
        """Take what was sent as the server takes it; give what is wrong with it."""
        for name in ("name", "description"):
            if len(content.get(name) or "") > MAX_TEXT:
                return f"{name}: Ensure this field has no more than {MAX_TEXT} characters."
        for name in ("name", "description", "pinned", "deleted"):
            if name in content:
                stored[name] = content[name]
        if "query" in content:
            stored["query"] = _as_server(copy.deepcopy(content["query"]))
        for number in content.get("dashboards", ()) if kind == "insights" else ():
            if number not in self.stored["dashboards"]:
                return "dashboards: object does not exist."
        if kind == "insights" and "dashboards" in content:
            self._put_on(stored["id"], content["dashboards"])
        for sent in content.get("tiles", ()) if kind == "dashboards" else ():
            self.tiles[sent["id"]]["layouts"].update(sent.get("layouts", {}))
        return None

    def _put_on(self, insight: int, dashboards: list[int]) -> None:
        own = {tile["dashboard_id"]: tile for tile in self.tiles.values() if tile["insight"] == insight}
        for number, tile in own.items():
            tile["deleted"] = number not in dashboards
        for number in dashboards:
            if number not in own:
                self._number += 1
                self.tiles[self._number] = {
                    "id": self._number,
                    "dashboard_id": number,
                    "insight": insight,
                    "layouts": {},
                    "color": None,
                    "deleted": False,
                }

    def _shown(self, kind: str, stored: Object, *, whole: bool = True) -> Object:
        shown = {**stored, "tags": []}
        if kind == "insights":
            shown["dashboard_tiles"] = [
                {"id": tile["id"], "dashboard_id": tile["dashboard_id"], "deleted": tile["deleted"]}
                for tile in self.tiles.values()
                if tile["insight"] == stored["id"]
            ]
            shown |= {"result": [[1, 2]], "hogql": "SELECT 1", "is_cached": True, "last_refresh": None}
        elif whole:
            shown["tiles"] = [
                {**tile, "insight": self._shown("insights", self.stored["insights"][tile["insight"]])}
                for tile in self.tiles.values()
                if tile["dashboard_id"] == stored["id"]
                and not tile["deleted"]
                and not self.stored["insights"][tile["insight"]]["deleted"]
            ]
        return shown


def _text(stored: Object) -> str:
    return f"{stored.get('name')} {stored.get('description')}".lower()


def _as_server(query: Any) -> Any:
    """Add to each node what the server adds."""
    if isinstance(query, dict):
        query = {key: _as_server(value) for key, value in query.items()}
        if "kind" in query:
            query["version"] = 2
        return query
    return [_as_server(each) for each in query] if isinstance(query, list) else query
