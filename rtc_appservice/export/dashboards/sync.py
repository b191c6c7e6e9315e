"""
Dashboards in the files against those in a PostHog project: what differs, and making it the same.

What is ours is known by a mark in its description. Only what the files say is compared: the server adds to a stored
query, and colours, sharing and further tiles are the operator's own. An insight of ours that no file has any more is
deleted, softly as PostHog deletes everything. Tags are set, and never compared: a server without them ignores them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from rtc_appservice.errors import PostHogRefused
from rtc_appservice.export.dashboards.check import Dashboard, Tile, mark, marked
from rtc_appservice.export.posthog_api import Kind, Object, PostHogApi

TAGS = ["rtc-appservice"]


class Difference(Struct, frozen=True, kw_only=True):
    """One value that is not as it should be."""

    path: str
    stored: Any
    wanted: Any


class Change(Struct, frozen=True, kw_only=True):
    """What is done to one object to make it the same."""

    action: Literal["create", "update", "delete"]
    kind: Literal["dashboard", "insight", "layout"]
    slug: str
    name: str
    number: int | None = None  #: the server's; None: not made yet
    differences: tuple[Difference, ...] = ()


async def synchronise(
    api: PostHogApi, dashboards: Sequence[Dashboard], *, write: bool, tell: Callable[[str], None] = lambda text: None
) -> list[Change]:
    """
    Give what has to be done to make a project's dashboards those of the files; do it if `write`; `tell` hears how far.

    Raises:
        PostHogRefused: if the server did not do what was asked; what was done until then stays, and is not done twice.
    """
    changes: list[Change] = []
    for dashboard in dashboards:
        tell(f"{dashboard.slug}: {len(dashboard.tiles)} tiles")
        changes += await _dashboard(api, dashboard, write=write)
    return changes


async def _dashboard(api: PostHogApi, dashboard: Dashboard, *, write: bool) -> list[Change]:
    changes: list[Change] = []
    wanted = {"name": dashboard.name, "description": marked(dashboard.description, dashboard.slug)}
    stored = (await _ours(api, "dashboards", dashboard.slug)).get(dashboard.slug)
    number = stored["id"] if stored else None
    if stored is None:
        changes.append(Change(action="create", kind="dashboard", slug=dashboard.slug, name=dashboard.name))
        if write:
            number = (await api.create("dashboards", {**wanted, "pinned": False, "tags": TAGS}))["id"]
    elif found := tuple(differences(wanted, stored)):
        changes.append(_update("dashboard", dashboard.slug, dashboard.name, stored["id"], found))
        if write:
            await api.update("dashboards", stored["id"], _to_send(wanted, found))
    changes += await _insights(api, dashboard, number, write=write)
    changes += await _layout(api, dashboard, number, write=write)
    return changes


async def _insights(api: PostHogApi, dashboard: Dashboard, on: int | None, *, write: bool) -> list[Change]:
    """Make the insights of a dashboard the tiles of its file; `on` is its number, None if it is not made yet."""
    changes: list[Change] = []
    stored = await _ours(api, "insights", f"{dashboard.slug}/")
    for tile in dashboard.tiles:
        slug = f"{dashboard.slug}/{tile.slug}"
        wanted: dict[str, Any] = {
            "name": tile.name,
            "description": marked(tile.description, slug),
            "query": tile.query,
        }
        insight = stored.pop(slug, None)
        if insight is None:
            changes.append(Change(action="create", kind="insight", slug=slug, name=tile.name))
            if write:
                await api.create("insights", {**wanted, "tags": TAGS, "dashboards": [on]})
            continue
        others = _dashboards_of(insight)
        wanted["dashboards"] = others if on in others else [*others, on]  # an operator may show it elsewhere too
        found = tuple(differences(wanted, {**insight, "dashboards": others}))
        if found:
            changes.append(_update("insight", slug, tile.name, insight["id"], found))
            if write:
                await api.update("insights", insight["id"], _to_send(wanted, found))
    for slug, insight in stored.items():
        name = str(insight.get("name"))
        changes.append(Change(action="delete", kind="insight", slug=slug, name=name, number=insight["id"]))
        if write:
            await api.update("insights", insight["id"], {"deleted": True})
    return changes


async def _layout(api: PostHogApi, dashboard: Dashboard, number: int | None, *, write: bool) -> list[Change]:
    """Put the tiles where the file wants them: one request for all that stand elsewhere."""
    placed: dict[str, Object] = {}
    if number is not None:
        for placement in (await api.read("dashboards", number)).get("tiles") or []:
            slug = _slug(placement.get("insight") or {})
            if slug is not None and not placement.get("deleted"):
                placed[slug] = placement
    found: list[Difference] = []
    moves: list[Object] = []
    for tile in dashboard.tiles:
        stored = placed.get(f"{dashboard.slug}/{tile.slug}") or {}
        layouts = {"sm": _place(tile)}
        wrong = list(differences(layouts, stored.get("layouts") or {}, tile.slug))
        found += wrong
        if wrong and stored:
            moves.append({"id": stored["id"], "layouts": layouts})
    if not found:
        return []
    if write and number is not None and moves:
        await api.update("dashboards", number, {"tiles": moves})
    return [_update("layout", dashboard.slug, dashboard.name, number, tuple(found))]


async def _ours(api: PostHogApi, kind: Kind, beginning: str) -> dict[str, Object]:
    """
    Give what the server has of ours, by slug.

    Raises:
        PostHogRefused: if two of one kind bear the same mark, so that nobody can say which is meant.
    """
    found: dict[str, Object] = {}
    for each in await api.find(kind, mark(beginning)):
        slug = _slug(each)
        if slug is None or not (slug == beginning or (beginning.endswith("/") and slug.startswith(beginning))):
            continue  # the server finds more than was asked for
        if slug in found and found[slug]["id"] != each["id"]:
            numbers = f"{found[slug]['id']} and {each['id']}"
            raise PostHogRefused(f"{kind} {numbers} both end in `{mark(slug)}`; delete one of them")
        found[slug] = each
    return found


def _slug(stored: Mapping[str, Any]) -> str | None:
    """Give the slug of an object of ours, by the last line of its description; None if it is not ours."""
    last = str(stored.get("description") or "").rstrip().rpartition("\n")[2].strip()
    return last.removeprefix(mark("")) if last.startswith(mark("")) else None


def _dashboards_of(insight: Object) -> list[int]:
    """Give the dashboards an insight stands on; an old server has no `dashboard_tiles`."""
    tiles = insight.get("dashboard_tiles")
    if tiles is None:
        return list(insight.get("dashboards") or [])
    return [tile["dashboard_id"] for tile in tiles if not tile.get("deleted")]


def differences(wanted: Any, stored: Any, path: str = "") -> Iterator[Difference]:
    """Yield where `stored` is not as wanted. Keys that only the server has do not count."""
    if isinstance(wanted, Mapping) and isinstance(stored, Mapping):
        for key, value in wanted.items():
            yield from differences(value, stored.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        for position, (one, other) in enumerate(zip(wanted, stored, strict=True)):
            yield from differences(one, other, f"{path}[{position}]")
    elif wanted != stored:
        yield Difference(path=path, stored=stored, wanted=wanted)


def _to_send(wanted: Mapping[str, Any], found: Sequence[Difference]) -> dict[str, Any]:
    """Give the keys that differ somewhere, each whole."""
    differing = {each.path.replace("[", ".").partition(".")[0] for each in found}
    return {key: value for key, value in wanted.items() if key in differing}


def _update(
    kind: Literal["dashboard", "insight", "layout"],
    slug: str,
    name: str,
    number: int | None,
    found: tuple[Difference, ...],
) -> Change:
    return Change(action="update", kind=kind, slug=slug, name=name, number=number, differences=found)


def _place(tile: Tile) -> dict[str, int]:
    return {"x": tile.layout.x, "y": tile.layout.y, "w": tile.layout.w, "h": tile.layout.h}
