"""
The pages in a real browser: with and without script, in light and dark, by keyboard, on a narrow screen.

With SCREENSHOTS=FOLDER in the environment, pictures of every page are left there.
"""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import url_contains
from selenium.webdriver.support.wait import WebDriverWait

from rtc_appservice.store import sessions
from rtc_appservice.store.pool import Pool
from tests.view.page_server import fill, fill_live, serving

from .browser import THEMES, Stop, complaints, in_browser, open_page, start, take_picture, text_of, violations, walk

#: Page by name: its path, with the call and room of the recordings filled in, and words that must be on it.
PAGES = {
    "overview": ("/?days=90", "NOT READY"),
    "calls": ("/calls", "Keys as room events"),
    "call": ("/calls/{mixed}", "Who owed whom a key"),
    "call-to-device": ("/calls/{to_device}", "all media keys by to-device"),
    "rooms": ("/rooms", "Keys in history"),
    "room": ("/rooms/{room}", "stands in history"),
    "health": ("/health", "The service does its work."),
    "not-found": ("/calls/none", "Not found"),
    "nowhere": ("/nowhere", "There is no such page."),
}
UPDATE_SECONDS = 20
#: A line of a call's page that is gone once the room keys are.
KEY_EVENT = "sent key 0 as room event"


@pytest.fixture
async def server(pool: Pool) -> AsyncIterator[TestServer]:
    """Serve the pages with recordings behind them."""
    await fill(pool)
    async with serving(pool) as server:
        yield server


async def _url(server: TestServer, pool: Pool, path: str) -> str:
    async with pool.acquire() as conn:
        calls = await sessions.load_calls(conn)
        room = await conn.fetchval("SELECT max(room_key) FROM history_ledger")
    ids = {str(call.verdict): call.call_id for call in calls}
    return str(server.make_url(path.format(**ids, room=room)))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PAGES)
async def test_axe_finds_nothing(
    server: TestServer, pool: Pool, browser: Chrome, pictures: Path, name: str, theme: str
) -> None:
    """Contrast, landmarks, headings, tables, names of controls; and the browser has nothing to complain of."""
    path, words = PAGES[name]
    url = await _url(server, pool, path)

    def look() -> tuple[str, list[str], list[str]]:
        open_page(browser, url, theme)
        text = text_of(browser)
        take_picture(browser, pictures / f"{name}-{theme}.png")
        return text, complaints(browser), violations(browser)

    text, said, found = await in_browser(look)

    assert words in text
    assert [] == [line for line in said if "404" not in line or name not in ("not-found", "nowhere")]
    assert [] == found


@pytest.mark.parametrize("name", PAGES)
async def test_a_narrow_screen(server: TestServer, pool: Pool, browser: Chrome, pictures: Path, name: str) -> None:
    """At 360 pixels the page itself does not scroll sideways; wide tables do, in their own frame."""
    url = await _url(server, pool, PAGES[name][0])

    def look() -> tuple[int, int]:
        open_page(browser, url, width=360)
        script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        scroll, client = browser.execute_script(script)
        take_picture(browser, pictures / f"{name}-narrow.png")
        return scroll, client

    scroll, client = await in_browser(look)

    assert scroll <= client


@pytest.mark.parametrize("name", PAGES)
async def test_keyboard(server: TestServer, pool: Pool, browser: Chrome, name: str) -> None:
    """Tab goes to the skip link, the pages, then through all the content in order; where it is can always be seen."""
    url = await _url(server, pool, PAGES[name][0])

    def look() -> tuple[int, list[Stop]]:
        open_page(browser, url)
        return walk(browser)

    count, stops = await in_browser(look)

    assert ["Skip to content", "Overview", "Calls", "Rooms", "Health"] == [stop.name for stop in stops[:5]]
    assert list(range(count)) == [stop.place for stop in stops]
    tops = [stop.top for stop in stops if stop.inside]
    assert len(stops) - 5 == len(tops)
    # Things of one line may differ by some pixels, and a column of the filter stands beside another.
    assert all(later >= earlier - 40 for earlier, later in pairwise(tops))
    assert [] == [stop.name for stop in stops if not stop.seen]


async def test_skip_link(server: TestServer, browser: Chrome) -> None:
    """Enter on the skip link goes past the navigation."""

    def skip() -> str:
        open_page(browser, str(server.make_url("/calls")))
        ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()
        focused: str = browser.execute_script("return document.activeElement.id")
        return focused

    assert "main" == await in_browser(skip)


async def test_without_script(server: TestServer, pool: Pool, tmp_path: Path) -> None:
    """Every page says all it has to, filter and links work."""
    urls = {name: await _url(server, pool, path) for name, (path, _) in PAGES.items()}

    def look() -> dict[str, str]:
        without = start(tmp_path, script=False)
        try:
            texts = {}
            for name, url in urls.items():
                without.get(url)
                texts[name] = text_of(without)
            without.get(urls["calls"])
            without.find_element(By.NAME, "verdict").send_keys("to_device")
            without.find_element(By.TAG_NAME, "button").click()
            WebDriverWait(without, 10).until(url_contains("verdict=to_device"))
            without.find_element(By.CSS_SELECTOR, "tbody a").click()
            texts["followed"] = text_of(without)
            return texts
        finally:
            without.quit()

    texts = await in_browser(look)

    assert [] == [name for name, (_, words) in PAGES.items() if words not in texts[name]]
    assert "all media keys by to-device" in texts["followed"]


async def test_a_call_that_goes_on_updates_itself(pool: Pool, browser: Chrome, pictures: Path) -> None:
    """What is new in the database comes to the page by itself."""
    await fill_live(pool)
    async with serving(pool) as server, pool.acquire() as conn:
        (call,) = await sessions.load_calls(conn)
        url = str(server.make_url(f"/calls/{call.call_id}"))

        def look() -> str:
            open_page(browser, url)
            take_picture(browser, pictures / "call-live.png")
            return text_of(browser)

        before = await in_browser(look)
        await conn.execute("DELETE FROM observation WHERE kind = 'room_key'")
        async with asyncio.timeout(UPDATE_SECONDS):
            while KEY_EVENT in (after := await in_browser(text_of, browser)):
                await asyncio.sleep(0.2)

    assert KEY_EVENT in before
    assert "going on" in after
