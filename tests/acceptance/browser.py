"""A headless Chromium, and what the tests of the pages do with it; it blocks, so `in_browser` keeps the loop free."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from axe_core_python.selenium import Axe
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from tests.require import require

_T = TypeVar("_T")

THEMES = ("light", "dark")

#: Pages with more stops than this are not walked to the end.
_TABS = 300
#: Everything Tab should stop at, in the order of the document; a control for a date has several stops inside.
_FOCUSABLE = "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, [tabindex=\"0\"]')]"
_ACTIVE = (
    f"const all = {_FOCUSABLE}, e = document.activeElement, r = e.getBoundingClientRect();"
    "return [all.length, all.indexOf(e), e.innerText || e.getAttribute('aria-label') || e.name, r.top + scrollY,"
    " e.closest('main') !== null, getComputedStyle(e).outlineStyle !== 'none', e === document.body]"
)


class Stop(NamedTuple):
    """Where Tab came to."""

    place: int  #: in the order of the document, among all that can be stopped at
    name: str
    top: float  #: pixels from the top of the page
    inside: bool  #: in the content, not in the navigation
    seen: bool  #: an outline shows where it is


def start(folder: Path, *, script: bool = True) -> Chrome:
    """Start a Chromium with its profile in `folder`."""
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


async def in_browser(do: Callable[..., _T], *arguments: object) -> _T:
    """Let the browser do something while this loop serves its pages."""
    return await asyncio.to_thread(do, *arguments)


def open_page(browser: Chrome, url: str, theme: str = "light", width: int = 1280) -> None:
    """Open a page in a theme and a width, in pixels."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    if width != 1280:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")  # type: ignore[no-untyped-call]  # what an earlier page said
    browser.get(url)


def text_of(browser: Chrome) -> str:
    """Give what a reader sees of the page."""
    return browser.find_element(By.TAG_NAME, "body").text


def complaints(browser: Chrome) -> list[str]:
    """Give what the browser itself has to complain of, since the page was opened."""
    return [line["message"] for line in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def take_picture(browser: Chrome, path: Path) -> None:
    """Write a picture of the whole page."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = browser.execute_script("return document.documentElement.clientWidth")
    metrics = {"width": width, "height": max(height, 400), "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.save_screenshot(str(path))


def violations(browser: Chrome) -> list[str]:
    """Give what axe finds: rule, how bad, and the elements."""
    found: dict[str, Any] = Axe().run(browser)
    return [
        f"{rule['id']} ({rule['impact']}): {', '.join(str(node['html']) for node in rule['nodes'])}"
        for rule in found["violations"]
    ]


def walk(browser: Chrome) -> tuple[int, list[Stop]]:
    """Press Tab to the end of the page; give how much there is to stop at, and the stops in the order they came."""
    stops: list[Stop] = []
    for _ in range(_TABS):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        count, place, name, top, inside, seen, is_end = browser.execute_script(_ACTIVE)
        if is_end:
            return count, stops
        if not stops or stops[-1].place != place:
            stops.append(Stop(place, name, top, inside, seen))
    raise AssertionError("Tab never came to the end")
