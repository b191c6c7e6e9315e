"""The dashboards: fit for PostHog and for our events, put there once, and changed no more than needed."""

import copy
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from rtc_appservice.core.readiness import TARGET, wilson_interval
from rtc_appservice.core.words import BLOCKING_CAUSES
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.errors import InputError, PostHogRefused
from rtc_appservice.export.dashboards.check import SENT, Dashboard, check, check_query, load, mark
from rtc_appservice.export.dashboards.sync import Change, differences, synchronise
from rtc_appservice.export.posthog_api import WAIT_LIMIT_SECONDS, PostHogApi, open_api

from .posthog_rest_standin import KEY, PROJECT, PostHogRestStandIn

DASHBOARDS = load()


@pytest.fixture
async def server() -> AsyncIterator[PostHogRestStandIn]:
    """Give a PostHog stand-in that listens."""
    standin = PostHogRestStandIn()
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def api(server: PostHogRestStandIn) -> AsyncIterator[PostHogApi]:
    """Give the API of its project."""
    async with open_api(server.address, PROJECT, KEY) as opened:
        yield opened


def renamed(dashboards: list[Dashboard], slug: str, **changes: Any) -> list[Dashboard]:
    """Give the dashboards with one tile of the first changed."""
    first, *rest = dashboards
    tiles = [replace(tile, **changes) if tile.slug == slug else tile for tile in first.tiles]
    assert tiles != first.tiles
    return [replace(first, tiles=tiles), *rest]


# --- offline ----------------------------------------------------------------------------------


def test_ours_are_fit() -> None:
    """Each shipped dashboard names only events, properties, values and keys that exist, and has room on the grid."""
    assert check(DASHBOARDS) == []
    assert {dashboard.slug for dashboard in DASHBOARDS} == {"rollout", "engineering"}


def test_every_event_is_on_a_dashboard() -> None:
    """An event nobody looks at need not be sent."""
    text = str([tile.query for dashboard in DASHBOARDS for tile in dashboard.tiles])

    assert [event for event in SENT if event not in text] == []


def tile_query(slug: str) -> dict[str, Any]:
    """Give a copy of a tile's query."""
    (found,) = (tile for dashboard in DASHBOARDS for tile in dashboard.tiles if tile.slug == slug)
    return copy.deepcopy(dict(found.query))


def altered(slug: str, path: str, value: Any) -> dict[str, Any]:
    """Give a tile's query with one value put at a path of keys and positions."""
    query = tile_query(slug)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = query
    for part in parents:
        place = place[part]
    place[last] = value
    return query


@pytest.mark.parametrize(
    ("slug", "path", "value", "fault"),
    [
        ("causes", "source.trendsFilter.dispaly", "BoldNumber", "unknown field `dispaly`"),
        ("causes", "source.trendsFilter.display", "ActionsPonies", "ActionsPonies"),
        ("causes", "source.kind", "TrendQuery", "TrendQuery"),
        ("causes", "sorce", {}, "unknown field `sorce`"),
        ("causes", "source.series", [], "length >= 1"),
        ("causes", "source.dateRange.date_from", "yesterday", "date_from"),
        ("causes", "source.series.0.event", "RtcFallback", "no event RtcFallback is sent"),
        ("causes", "source.breakdownFilter.breakdown", "reason", "RtcKeyFallback has no property reason"),
        ("causes", "source.breakdownFilter.breakdown_type", None, "breakdown needs breakdown_type"),
        ("causes", "source.series.0.math", "p95", "math p95 with math_property None"),
        ("causes", "source.series.0.math_hogql", "uniq(properties.sender)", "RtcKeyFallback has no property sender"),
        ("causes", "source.series.0.math_hogql", "uniq(uuid", "brackets do not match"),
        ("blockers", "source.series.0.properties.0.key", "blocks", "RtcKeyFallback has no property blocks"),
        ("blockers", "source.series.0.properties.0.value", ["yes"], "RtcKeyFallback.isBlocker is never yes"),
        ("share", "source.series.0.properties.0.value", ["todevice"], "RtcCallEnded.verdict is never todevice"),
        ("share", "source.trendsFilter.formulaNodes.0.formula", "A / C", "formula A / C: there is no series C"),
        ("wait", "source.series.0.math_property", "waited", "RtcKeyNotReceived has no property waited"),
        ("started-ended", "source.series", [{"kind": "EventsNode", "event": "RtcCallEnded"}], "length >= 2"),
        ("leaders", "source.query", "SELECT properties.cuse FROM events WHERE event = 'RtcKeyFallback'", "cuse"),
        ("leaders", "source.query", "SELECT 1 FROM events WHERE event = 'RtcFallback'", "no event RtcFallback"),
        ("leaders", "source.query", "SELECT 1 FROM events", "names no event of ours"),
        ("leaders", "source.query", "SELECT (1 FROM events WHERE event = 'RtcKeyFallback'", "brackets"),
        ("leaders", "source.query", "SELECT 1 FROM events WHERE event = 'RtcKeyFallback", "does not end"),
        (
            "leaders",
            "source.query",
            "SELECT 1 FROM events WHERE event = 'RtcKeyFallback' AND properties.cause IN ('stray', 'wandering')",
            "RtcKeyFallback.cause is never wandering",
        ),
    ],
)
def test_faults_are_found_offline(slug: str, path: str, value: Any, fault: str) -> None:
    """What PostHog would refuse, or answer with an empty graph, is said with its place."""
    assert check_query(tile_query(slug)) == []
    assert any(fault in found for found in check_query(altered(slug, path, value)))


def test_faults_of_the_grid_and_the_texts() -> None:
    """Two tiles in one place, one beyond the edge, a slug used twice and a text too long are said."""
    first = DASHBOARDS[0]
    one, two, *rest = first.tiles
    layout = replace(one.layout, x=8, w=6)
    spoilt = replace(first, tiles=[replace(one, layout=layout), replace(two, slug=one.slug, description="x" * 400)])

    faults = "\n".join(check([spoilt, replace(first, tiles=rest)]))

    for expected in ("wider than the grid", "lies on", "two tiles are called", "characters", "two dashboards have"):
        assert expected in faults


def test_a_file_of_another_form(tmp_path: Any) -> None:
    """A file that is no dashboard is named, with the place."""
    (tmp_path / "a.json").write_text('{"slug": "A b", "name": "x", "description": "x", "tiles": []}')
    with pytest.raises(InputError, match=r"a\.json: .* at `\$\.slug`"):
        load(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json"):
        load(tmp_path)


def test_readiness_agrees_with_the_report() -> None:
    """The blocking causes and the arithmetic of the interval are those of the report."""
    query = tile_query("readiness")["source"]["query"]
    for cause in BLOCKING_CAUSES:
        assert f"'{cause}'" in query
    lower, upper = query.split("round((")[1:3]
    for text, index in ((lower, 0), (upper, 1)):
        formula = "(" + text.partition(", 4)")[0].replace("nullIf(judged, 0)", "judged")
        for clean, judged in ((381, 381), (3, 7), (0, 5)):
            value = eval(formula, {"sqrt": lambda x: x**0.5, "clean": clean, "judged": judged})  # noqa: S307  # our own
            assert value == pytest.approx(wilson_interval(clean, judged)[index], abs=1e-4)
    (goal,) = tile_query("share-by-day")["source"]["trendsFilter"]["goalLines"]
    assert goal["value"] == TARGET


# --- against the stand-in ---------------------------------------------------------------------


def kinds(changes: list[Change]) -> Counter[tuple[str, str]]:
    """Count changes by what they do to what."""
    return Counter((change.action, change.kind) for change in changes)


async def test_push_twice(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """The first push makes everything where it belongs; the second changes nothing and sends no change."""
    tiles = sum(len(dashboard.tiles) for dashboard in DASHBOARDS)

    first = await synchronise(api, DASHBOARDS, write=True)
    written = len(server.writes)
    second = await synchronise(api, DASHBOARDS, write=True)

    assert kinds(first) == {("create", "dashboard"): 2, ("create", "insight"): tiles, ("update", "layout"): 2}
    assert written == 2 + tiles + 2
    assert second == []
    assert len(server.writes) == written
    for dashboard in DASHBOARDS:
        stored = server.of_name("dashboards", dashboard.name)
        assert stored["description"].splitlines()[-1] == f"managed-by: rtc-appservice/{dashboard.slug}"
        for tile in dashboard.tiles:
            insight = server.of_name("insights", tile.name)
            (placed,) = (each for each in server.tiles.values() if each["insight"] == insight["id"])
            assert placed["dashboard_id"] == stored["id"]
            assert placed["layouts"] == {
                "sm": {"x": tile.layout.x, "y": tile.layout.y, "w": tile.layout.w, "h": tile.layout.h}
            }


async def test_diff_writes_nothing(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """A diff says what a push would do, and does none of it."""
    told = await synchronise(api, DASHBOARDS, write=False)

    assert server.writes == []
    assert kinds(told) == kinds(await synchronise(api, DASHBOARDS, write=True))
    assert await synchronise(api, DASHBOARDS, write=False) == []


@pytest.mark.parametrize(
    ("changes", "kind", "sent"),
    [
        ({"name": "Another title"}, "insight", {"name"}),
        ({"description": "Other words."}, "insight", {"description"}),
        ({"query": tile_query("causes")}, "insight", {"query"}),
        ({"layout": replace(DASHBOARDS[0].tiles[-1].layout, h=9)}, "layout", {"tiles"}),
    ],
)
async def test_one_change_changes_one_object(
    api: PostHogApi, server: PostHogRestStandIn, changes: dict[str, Any], kind: str, sent: set[str]
) -> None:
    """A changed title, text, query or place is one request for one object, with what changed and nothing else."""
    await synchronise(api, DASHBOARDS, write=True)
    server.writes.clear()
    changed = renamed(DASHBOARDS, DASHBOARDS[0].tiles[-1].slug, **changes)

    (told,) = await synchronise(api, changed, write=False)
    (done,) = await synchronise(api, changed, write=True)

    assert told == done
    assert (done.action, done.kind) == ("update", kind)
    ((method, _, content),) = server.writes
    assert (method, set(content)) == ("PATCH", sent)
    assert await synchronise(api, changed, write=True) == []


async def test_a_changed_dashboard_title(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """The title of a dashboard is one request too."""
    await synchronise(api, DASHBOARDS, write=True)
    server.writes.clear()

    (done,) = await synchronise(api, [replace(DASHBOARDS[0], name="Another"), *DASHBOARDS[1:]], write=True)

    assert [(each.path, each.wanted) for each in done.differences] == [("name", "Another")]
    assert [content for _, _, content in server.writes] == [{"name": "Another"}]


async def test_a_tile_that_is_gone_is_deleted(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """An insight no file has any more is deleted softly; when it is back in the file, it is made anew."""
    await synchronise(api, DASHBOARDS, write=True)
    first = DASHBOARDS[0]
    gone = first.tiles[-1]

    (done,) = await synchronise(api, [replace(first, tiles=first.tiles[:-1]), *DASHBOARDS[1:]], write=True)

    assert (done.action, done.slug) == ("delete", f"{first.slug}/{gone.slug}")
    assert [each["name"] for each in server.stored["insights"].values() if each["deleted"]] == [gone.name]
    again = await synchronise(api, DASHBOARDS, write=True)
    assert kinds(again) == {("create", "insight"): 1, ("update", "layout"): 1}


async def test_the_operators_own_stays(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """What bears no mark of ours is not touched; an insight of ours may stand on the operator's dashboard too."""
    ours = mark(DASHBOARDS[0].slug)
    other = await api.create("dashboards", {"name": "Mine", "description": f"Made after {ours}\n\nby hand"})
    await api.create("insights", {"name": "Mine", "description": f"{ours}/mine, copied", "dashboards": [other["id"]]})
    await synchronise(api, DASHBOARDS, write=True)
    shared = server.of_name("insights", DASHBOARDS[0].tiles[0].name)
    await api.update("insights", shared["id"], {"dashboards": [other["id"]]})
    server.writes.clear()

    (done,) = await synchronise(api, DASHBOARDS, write=True)

    assert (done.action, done.number) == ("update", shared["id"])
    ((_, _, content),) = server.writes
    assert set(content["dashboards"]) == {other["id"], server.of_name("dashboards", DASHBOARDS[0].name)["id"]}
    assert len(server.live("dashboards")) == 3


async def test_a_deleted_dashboard_comes_back(api: PostHogApi, server: PostHogRestStandIn) -> None:
    """A dashboard somebody deleted is made anew, with the insights that are there still."""
    await synchronise(api, DASHBOARDS, write=True)
    await api.update("dashboards", server.of_name("dashboards", DASHBOARDS[0].name)["id"], {"deleted": True})

    done = await synchronise(api, DASHBOARDS, write=True)

    assert kinds(done) == {
        ("create", "dashboard"): 1,
        ("update", "insight"): len(DASHBOARDS[0].tiles),
        ("update", "layout"): 1,
    }
    assert await synchronise(api, DASHBOARDS, write=True) == []


async def test_two_with_one_mark(api: PostHogApi) -> None:
    """Which of two is meant nobody can say: nothing is guessed."""
    for _ in range(2):
        await api.create("dashboards", {"name": "x", "description": mark(DASHBOARDS[0].slug)})

    with pytest.raises(PostHogRefused, match="delete one of them"):
        await synchronise(api, DASHBOARDS, write=True)


async def test_rate_limit_and_errors_are_waited_out(server: PostHogRestStandIn) -> None:
    """429 waits as long as the server says, also for what makes something; 5xx waits longer each time."""
    waits: list[float] = []
    said: list[str] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as client:
        api = PostHogApi(client, host=server.address, project=PROJECT, sleep=sleep, tell=said.append)
        server.refusals = [(429, "30"), (500, None), (503, None)]
        await api.find("dashboards", "x")
        server.refusals = [(429, "7")]
        await api.create("dashboards", {"name": "x"})

        assert waits == [30.0, 2.0, 4.0, 7.0]
        assert len(said) == 4
        server.refusals = [(502, None)]
        with pytest.raises(PostHogRefused, match="HTTP 502"):
            await api.create("dashboards", {"name": "y"})
        server.refusals = [(429, str(int(WAIT_LIMIT_SECONDS) + 1))]
        with pytest.raises(PostHogRefused, match="HTTP 429, after 1 attempts"):
            await api.find("dashboards", "x")
        server.refusals = [(500, None)] * 6
        with pytest.raises(PostHogRefused, match="after 6 attempts"):
            await api.find("dashboards", "x")
        assert [each["name"] for each in server.live("dashboards")] == ["x"]


async def test_refusals_say_what_to_do(server: PostHogRestStandIn) -> None:
    """A wrong key, project, host or value is said with what to do, and never with the key."""
    cases = [
        (server.address, PROJECT, "phx_wrong", "dashboard:write"),
        (server.address, "8", KEY, "number of the project"),
    ]
    for host, project, key, words in cases:
        async with open_api(host, project, key) as api:
            with pytest.raises(PostHogRefused, match=words) as caught:
                await api.find("dashboards", "x")
            assert key not in str(caught.value)
    events_host = PostHogStandIn()
    try:
        async with open_api(f"{await events_host.start()}/events?", PROJECT, KEY) as api:
            with pytest.raises(PostHogRefused, match="is this the app host"):
                await api.find("dashboards", "x")
    finally:
        await events_host.stop()
    async with open_api(server.address, PROJECT, KEY) as api:
        with pytest.raises(PostHogRefused, match="no more than 400 characters"):
            await api.create("dashboards", {"name": "x" * 401})


@pytest.mark.parametrize(
    ("wanted", "stored", "paths"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, ["a.b[1].c"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a"]),
        ({"a": None}, {}, []),
        ({"a": {}}, {"a": None}, ["a"]),
        ({"a": 0.5}, {"a": "0.5"}, ["a"]),
    ],
)
def test_only_what_was_sent_is_compared(wanted: Any, stored: Any, paths: list[str]) -> None:
    """Keys the server added do not count; everything else does, with its path."""
    assert [each.path for each in differences(wanted, stored)] == paths
