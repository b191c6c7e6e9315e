"""The pages over HTTP, with recordings behind them: what they say, and who is shown what."""

import re
from base64 import b64encode
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from rtc_appservice.core.model import Settings
from rtc_appservice.core.wire import Intake
from rtc_appservice.errors import SchemaBehind
from rtc_appservice.store import sessions, totals
from rtc_appservice.store.pool import Pool
from tests.core.build import Scene, at
from tests.test_projector import Service
from tests.view.page_server import SCENARIOS, TOKEN, fill, fill_live, serving

PATHS = ("/", "/calls", "/rooms", "/health")


async def get(server: TestServer, path: str, **headers: str) -> tuple[int, str]:
    """Give status and text of a page."""
    async with aiohttp.ClientSession() as client, client.get(server.make_url(path), headers=headers) as answer:
        return answer.status, await answer.text()


async def call_path(pool: Pool, cause: str) -> str:
    """Give the path of the page of a call in which a device fell back for a cause."""
    async with pool.acquire() as conn:
        calls = await sessions.load_calls(conn)
    return f"/calls/{next(call.call_id for call in calls for each in call.fallbacks if each.cause == cause)}"


@pytest.fixture
async def filled(pool: Pool) -> AsyncIterator[TestServer]:
    """Serve the pages with recordings behind them."""
    await fill(pool)
    async with serving(pool) as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
async def test_pages_of_an_empty_database(pool: Pool, path: str) -> None:
    """Nothing was seen yet, and each page says so instead of failing."""
    async with serving(pool) as server:
        status, text = await get(server, path)

    assert 200 == status
    assert re.search(r"No call was seen|No such call|No room|No homeserver has sent", text)


async def test_overview_names_the_target(pool: Pool) -> None:
    """It is the operator's."""
    await fill(pool, ["todevice-only"])
    async with serving(pool, settings=Settings(readiness_target=0.9)) as server:
        _, text = await get(server, "/?days=90")

    assert "target 90.0%" in text


async def test_overview_says_readiness_first(filled: TestServer) -> None:
    """In words, then the numbers with their evidence."""
    _, text = await get(filled, "/?days=90")

    order = [
        "NOT READY",
        "Calls over time",
        "Blockers by client generation",
        "Why devices",
        "What could be seen",
        "Gaps",
    ]
    assert sorted(order, key=text.index) == order
    assert "room_only_client" in text
    assert "R1" in text


async def test_gaps_are_told_in_words(filled: TestServer, pool: Pool) -> None:
    """Also where nobody knows when they began, or they have not ended."""
    await pool.execute(
        """
        INSERT INTO gap (homeserver_id, gap_id, reason, started_at, ended_at, room_key)
        SELECT homeserver_id, 'a', 'room_joined_late', NULL, now(), min(room_key) FROM room GROUP BY homeserver_id
        UNION ALL SELECT homeserver_id, 'b', 'backlog', now(), NULL, NULL FROM homeserver
        """
    )
    _, text = await get(filled, "/")

    shown = text[text.index('id="gaps"') :]
    assert "room_joined_late: encrypted before the service&#39;s device came" in shown
    assert "backlog: the homeserver was behind; events came late" in shown
    assert 1 == shown.count("not known") == shown.count("not ended")


async def test_calls_are_filtered_and_sorted(filled: TestServer) -> None:
    """A filter leaves the calls that fit, a sorted column says so; nonsense in the address is taken as nothing."""
    _, every = await get(filled, "/calls")
    _, mixed = await get(filled, "/calls?verdict=mixed&sort=length&order=ascending")
    _, later = await get(filled, "/calls?since=2999-01-01")
    _, nonsense = await get(filled, "/calls?verdict=x&sort=y;drop&page=-1&since=z&homeserver=q")

    links = [len(re.findall(r'<a href="/calls/[0-9a-f]+">', text)) for text in (every, mixed, later, nonsense)]
    assert [len(SCENARIOS), 2, 0, len(SCENARIOS)] == links
    assert 'aria-sort="ascending"' in mixed
    assert 'aria-sort="descending"' in every
    assert "No such call was seen" in later


async def test_overview_says_what_could_not_be_read(filled: TestServer, pool: Pool) -> None:
    """In words, with the reasons, where coverage is told."""
    async with pool.acquire() as conn:
        opened = ("events_decrypted", {"when": "at_once"}, 95)
        unread = ("events_undecryptable", {"reason": "withheld"}, 5)
        await totals.add(conn, 1, [opened, unread])
    _, text = await get(filled, "/")

    assert "could not read 5 of 100 encrypted events (5.0%)" in text
    assert "5 withheld by the sender." in text


@pytest.mark.parametrize("sort", ["started", "length", "devices", "fallbacks", "findings"])
async def test_every_column_sorts(filled: TestServer, sort: str) -> None:
    """Downwards is upwards turned round."""
    found = []
    for order in ("", "&order=ascending"):
        status, text = await get(filled, f"/calls?sort={sort}{order}")
        found.append(re.findall(r"/calls/([0-9a-f]{8})", text))
        assert 200 == status

    assert sorted(found[0]) == sorted(found[1])
    if sort in ("started", "length"):  # nothing equal
        assert found[0] == found[1][::-1]


async def test_a_call_in_full(filled: TestServer, pool: Pool) -> None:
    """The drawing, the matrix, fallbacks with their cause, and all that happened."""
    status, text = await get(filled, await call_path(pool, "followed"))

    assert 200 == status
    assert "@alice:lab.test" in text
    assert 'class="timeline"' in text
    assert {"delivered", "unconfirmed"} <= set(re.findall(r'outcome-(\w+)">', text))
    assert "followed: another device was first" in text
    assert "live.js" not in text


async def test_a_call_whose_observations_are_gone(filled: TestServer, pool: Pool) -> None:
    """Its report is shown, and that it is all there is."""
    path = await call_path(pool, "followed")
    async with pool.acquire() as conn:
        await conn.execute("DELETE FROM observation")
    status, text = await get(filled, path)

    assert 200 == status
    assert "gone by retention" in text
    assert "followed: another device was first" in text


async def test_a_call_that_goes_on_can_update_itself(pool: Pool) -> None:
    """By a script of ours, which can be switched off."""
    await fill_live(pool)
    async with serving(pool) as server, pool.acquire() as conn:
        (call,) = await sessions.load_calls(conn)
        _, live = await get(server, f"/calls/{call.call_id}")
        _, still = await get(server, f"/calls/{call.call_id}?live=off")

    assert "going on" in live
    assert "live.js" in live
    assert "live.js" not in still


async def test_rooms_and_their_ledger(filled: TestServer) -> None:
    """Rooms with the most keys first; a room lists each key event that stands in its history."""
    _, rooms = await get(filled, "/rooms")
    paths = re.findall(r'"(/rooms/\d+)"', rooms)
    _, room = await get(filled, paths[0])

    assert len(SCENARIOS) == len(paths)
    assert "stands in history" in room
    assert "@carol:lab.test" in room


async def test_a_room_s_findings_outside_calls(pool: Pool) -> None:
    """Who sent what while no call went on, and how much; behind a proxy under pseudonyms."""
    service, scene = await Service.open(pool), Scene()
    for number in range(3):
        scene.room_key("mallory", number)
    await service.take(Intake(observations=scene.observations, newest_at=at(3), rtc_rooms={scene.room_id}))
    await service.project()

    async with serving(pool) as server:
        _, seen = await get(server, "/rooms/1")
        _, hidden = await get(server, "/rooms/1", **{"X-Forwarded-For": "192.0.2.1"})
    for text in (seen, hidden):
        _, _, section = text.partition("Findings outside calls")
        assert "stray_key" in section and '<td class="number">3</td>' in section
    assert "@mallory:lab.test" in seen
    assert "mallory" not in hidden


@pytest.mark.parametrize("path", ["/calls/none", "/calls/%25", "/rooms/999", "/?homeserver=other.org"])
async def test_what_is_not_there(filled: TestServer, path: str) -> None:
    """A page says so, with the way back."""
    status, text = await get(filled, path)

    assert 404 == status
    assert "<h1>Not found</h1>" in text


async def test_health_says_why_it_is_not_ready(pool: Pool) -> None:
    """In the words of the probe."""

    async def behind() -> None:
        raise SchemaBehind

    async with serving(pool, ready=behind) as server:
        status, text = await get(server, "/health")

    assert 200 == status
    assert "rtc-appservice db upgrade" in text


async def test_a_database_that_is_gone(pool: Pool) -> None:
    """Is said, and nothing else of the error."""
    await pool.close()
    async with serving(pool) as server:
        status, text = await get(server, "/calls")

    assert 503 == status
    assert "The database does not answer." in text


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}, {"Host": "elsewhere.example:29332"}],
    ids=lambda headers: next(iter(headers)),
)
async def test_pseudonyms_behind_a_proxy_and_under_other_names(
    filled: TestServer, pool: Pool, headers: dict[str, str]
) -> None:
    """No id of a user, device or room is on any page that was not asked for from this machine."""
    _, rooms = await get(filled, "/rooms")
    calls = [await call_path(pool, cause) for cause in ("followed", "room_only_client")]
    for path in (*PATHS, "/?days=90", *calls, *re.findall(r'"(/rooms/\d+)"', rooms)):
        status, text = await get(filled, path, **headers)

        assert 200 == status
        assert [] == re.findall(r"@[a-z]+:|![\w-]{8,}|[A-Z]{8,}|\$[\w-]{8,}", text)
        assert "pseudonyms" in text


async def test_a_path_that_is_not_there(pool: Pool) -> None:
    """A browser gets a page, a probe a line of text, and neither touches what is there."""
    paths = ("/nowhere", "/rooms/x", "/rooms/1/2", "/calls/a/b")
    async with serving(pool) as server:
        browser = [await get(server, path, Accept="text/html,*/*;q=0.8") for path in paths]
        probe = [await get(server, path) for path in paths]
        there = [
            (await get(server, path, Accept="text/html"))[0] for path in ("/live", "/metrics", "/static/style.css")
        ]
    async with serving(pool, host="0.0.0.0") as server:
        refused = await get(server, "/nowhere", Accept="text/html")

    assert {404} == {status for status, _ in (*browser, *probe)}
    assert all("There is no such page." in text and "<nav" in text for _, text in browser)
    assert {"404: Not Found"} == {text for _, text in probe}
    assert [200, 200, 200] == there
    assert 403 == refused[0]


async def test_elsewhere_the_token_is_needed(pool: Pool) -> None:
    """As bearer token, or as a browser gives a password; probes need none."""
    await fill(pool, ["smart-switch"])
    password = b64encode(f"me:{TOKEN}".encode()).decode()
    async with serving(pool, host="0.0.0.0", token=TOKEN) as server:
        path = await call_path(pool, "followed")
        refused = [
            (await get(server, path))[0],
            (await get(server, path, Authorization="Bearer wrong"))[0],
            (await get(server, path, Authorization="Basic !"))[0],
        ]
        given = [
            await get(server, path, Authorization=f"Bearer {TOKEN}"),
            await get(server, path, Authorization=f"Basic {password}", **{"X-Forwarded-For": "192.0.2.1"}),
        ]
        probes = [(await get(server, probe))[0] for probe in ("/live", "/ready", "/metrics")]

    assert [401, 401, 401] == refused
    assert [200, 200] == [status for status, _ in given]
    assert all("@alice:lab.test" in text for _, text in given)
    assert [200, 200, 200] == probes


async def test_elsewhere_without_a_token_there_are_no_pages(pool: Pool) -> None:
    """And what to configure is said."""
    async with serving(pool, host="0.0.0.0") as server:
        status, text = await get(server, "/")

    assert 403 == status
    assert "metrics.token" in text


async def test_pages_take_nothing_from_elsewhere(filled: TestServer, pool: Pool) -> None:
    """Neither script nor style stands in a page, nothing is loaded from other hosts, and the browser is told so."""
    for path in (*PATHS, await call_path(pool, "followed")):
        async with aiohttp.ClientSession() as client, client.get(filled.make_url(path)) as answer:
            text, headers = await answer.text(), answer.headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "no-store" == headers["Cache-Control"]
        assert [] == re.findall(r"<style|<script(?! src=)|\sstyle=|\son\w+=|(?:src|href)=\"(?!/|#|\?)", text)
