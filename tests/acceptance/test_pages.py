"""
The pages in a real browser: with and without script, in light and dark, by keyboard, on a narrow screen.

With SCREENSHOTS=FOLDER in the environment, pictures of every page are left there.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp.test_utils import TestServer
from axe_core_python.selenium import Axe
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import url_contains
from selenium.webdriver.support.wait import WebDriverWait

from rtc_appservice.store import sessions
from rtc_appservice.store.pool import Pool
from tests.require import require
from tests.view.page_server import fill, fill_live, serving

_T = TypeVar("_T")

THEMES = ("light", "dark")
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
}
UPDATE_SECONDS = 20
#: A line of a call's page that is gone once the room keys are.
KEY_EVENT = "sent key 0 as room event"


def _start(folder: Path, *, script: bool = True) -> Chrome:
    options = ChromeOptions()
    options.binary_location = require("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",  # tests may run as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--window-size=1280,900",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    if not script:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=Service(require("chromedriver")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Give a Chromium that runs script."""
    driver = _start(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
async def server(pool: Pool) -> AsyncIterator[TestServer]:
    """Serve the pages with recordings behind them."""
    await fill(pool)
    async with serving(pool) as server:
        yield server


async def _in_browser(do: Callable[..., _T], *arguments: object) -> _T:
    """Let the browser do something while this loop serves its pages."""
    return await asyncio.to_thread(do, *arguments)


async def _url(server: TestServer, pool: Pool, path: str) -> str:
    async with pool.acquire() as conn:
        calls = await sessions.load_calls(conn)
        room = await conn.fetchval("SELECT max(room_key) FROM history_ledger")
    ids = {str(call.verdict): call.call_id for call in calls}
    return str(server.make_url(path.format(**ids, room=room)))


def _open(browser: Chrome, url: str, theme: str = "light", width: int = 1280) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    if width != 1280:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")  # type: ignore[no-untyped-call]  # what an earlier page said
    browser.get(url)


def _text(browser: Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def _take_picture(browser: Chrome, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        height = browser.execute_script("return document.documentElement.scrollHeight")
        width = browser.execute_script("return document.documentElement.clientWidth")
        metrics = {"width": width, "height": max(height, 400), "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def _violations(browser: Chrome) -> list[str]:
    """Give what axe finds: rule, how bad, and the elements."""
    found: dict[str, Any] = Axe().run(browser)
    return [
        f"{rule['id']} ({rule['impact']}): {', '.join(str(node['html']) for node in rule['nodes'])}"
        for rule in found["violations"]
    ]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PAGES)
async def test_axe_finds_nothing(server: TestServer, pool: Pool, browser: Chrome, name: str, theme: str) -> None:
    """Contrast, landmarks, headings, tables, names of controls; and the browser has nothing to complain of."""
    path, words = PAGES[name]
    url = await _url(server, pool, path)

    def look() -> tuple[str, list[str], list[str]]:
        _open(browser, url, theme)
        text = _text(browser)
        _take_picture(browser, f"{name}-{theme}")
        said = [line["message"] for line in browser.get_log("browser")]  # type: ignore[no-untyped-call]
        return text, said, _violations(browser)

    text, said, violations = await _in_browser(look)

    assert words in text
    assert [] == [line for line in said if "404" not in line or name != "not-found"]
    assert [] == violations


@pytest.mark.parametrize("name", PAGES)
async def test_a_narrow_screen(server: TestServer, pool: Pool, browser: Chrome, name: str) -> None:
    """At 360 pixels the page itself does not scroll sideways; wide tables do, in their own frame."""
    url = await _url(server, pool, PAGES[name][0])

    def look() -> tuple[int, int]:
        _open(browser, url, width=360)
        script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        scroll, client = browser.execute_script(script)
        _take_picture(browser, f"{name}-narrow")
        return scroll, client

    scroll, client = await _in_browser(look)

    assert scroll <= client


@pytest.mark.parametrize("name", ["overview", "calls", "call"])
async def test_keyboard(server: TestServer, pool: Pool, browser: Chrome, name: str) -> None:
    """Tab goes to the skip link, the pages, then through the content in order; where it is can always be seen."""
    url = await _url(server, pool, PAGES[name][0])
    where = (
        "const e = document.activeElement, r = e.getBoundingClientRect();"
        "return [e.innerText || e.getAttribute('aria-label') || e.name, r.top + scrollY, e.closest('main') !== null,"
        " getComputedStyle(e).outlineStyle !== 'none', e === document.body]"
    )

    def walk() -> list[tuple[str, float, bool, bool, bool]]:
        _open(browser, url)
        stops: list[tuple[str, float, bool, bool, bool]] = []
        for _ in range(200):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            stop = browser.execute_script(where)
            if stop[4]:
                return stops
            stops.append(tuple(stop))
        raise AssertionError("Tab never came to the end")

    stops = await _in_browser(walk)

    assert ["Skip to content", "Overview", "Calls", "Rooms", "Health"] == [stop[0] for stop in stops[:5]]
    inside = [stop[1] for stop in stops if stop[2]]
    assert len(stops) - 5 == len(inside) > 3
    # Things of one line may differ by some pixels, and a column of the filter stands beside another.
    assert all(later >= earlier - 40 for earlier, later in pairwise(inside))
    assert [] == [stop[0] for stop in stops if not stop[3]]


async def test_skip_link(server: TestServer, browser: Chrome) -> None:
    """Enter on the skip link goes past the navigation."""

    def skip() -> str:
        _open(browser, str(server.make_url("/calls")))
        ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()
        focused: str = browser.execute_script("return document.activeElement.id")
        return focused

    assert "main" == await _in_browser(skip)


async def test_without_script(server: TestServer, pool: Pool, tmp_path: Path) -> None:
    """Every page says all it has to, filter and links work."""
    urls = {name: await _url(server, pool, path) for name, (path, _) in PAGES.items()}

    def look() -> dict[str, str]:
        without = _start(tmp_path, script=False)
        try:
            texts = {}
            for name, url in urls.items():
                without.get(url)
                texts[name] = _text(without)
            without.get(urls["calls"])
            without.find_element(By.NAME, "verdict").send_keys("to_device")
            without.find_element(By.TAG_NAME, "button").click()
            WebDriverWait(without, 10).until(url_contains("verdict=to_device"))
            without.find_element(By.CSS_SELECTOR, "tbody a").click()
            texts["followed"] = _text(without)
            return texts
        finally:
            without.quit()

    texts = await _in_browser(look)

    assert [] == [name for name, (_, words) in PAGES.items() if words not in texts[name]]
    assert "all media keys by to-device" in texts["followed"]


async def test_a_call_that_goes_on_updates_itself(pool: Pool, browser: Chrome) -> None:
    """What is new in the database comes to the page by itself."""
    await fill_live(pool)
    async with serving(pool) as server, pool.acquire() as conn:
        (call,) = await sessions.load_calls(conn)
        url = str(server.make_url(f"/calls/{call.call_id}"))

        def look() -> str:
            _open(browser, url)
            _take_picture(browser, "call-live")
            return _text(browser)

        before = await _in_browser(look)
        await conn.execute("DELETE FROM observation WHERE kind = 'room_key'")
        async with asyncio.timeout(UPDATE_SECONDS):
            while KEY_EVENT in (after := await _in_browser(_text, browser)):
                await asyncio.sleep(0.2)

    assert KEY_EVENT in before
    assert "going on" in after
