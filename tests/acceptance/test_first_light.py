import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import jsonschema  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from selenium.webdriver import Chrome

from rtc_appservice.core.model import CallReport, Report
from rtc_appservice.core.words import Verdict
from rtc_appservice.demo.players import PlayLog
from rtc_appservice.demo.plays import PLAYS, Play, Role, compare, expected, perform
from rtc_appservice.demo.run import served, settled_report
from rtc_appservice.demo.stage import Stage, set_up
from rtc_appservice.demo.wire import Generation
from rtc_appservice.view import words

from ..export.expected_events import by_call, expected_events, in_order
from ..export.test_events import schema
from .browser import THEMES, complaints, in_browser, open_page, take_picture, text_of, violations, walk

#: The verdicts on the plays, in their order.
PLAYED = (Verdict.TO_DEVICE, Verdict.MIXED, Verdict.ROOM_EVENT)
#: One player sends its first key as a room event and notes it as to-device.
LIE = Play(
    title="a player that lies",
    cast=(Role("olivia", "OLIVIA1", Generation.MODERN), Role("peggy", "PEGGY1", Generation.MODERN)),
    exits=("olivia", "peggy"),
    liar="olivia",
)
#: The pages that show an evening: those of the navigation, one call of each verdict that was played, one room.
PAGES = ("overview", "calls", "rooms", "health", "room", *(verdict.value for verdict in PLAYED))
#: How many pixels of the page's tables cannot be seen without scrolling sideways.
HIDDEN = "return Math.max(0, ...[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth))"


class Evening(Struct):
    """All that was played on one stage, and what came of it."""

    stage: Stage
    logs: list[PlayLog]
    lie: PlayLog
    report: Report


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def evening() -> AsyncIterator[Evening]:
    """Play the demo's calls, and one with a liar, against a real Synapse, the service and a PostHog stand-in."""
    async with set_up(print) as stage:
        logs = [await perform(stage.synapse.address, play, print) for play in PLAYS]
        lie = await perform(stage.synapse.address, LIE, print)
        report = await settled_report(stage, [*logs, lie])
        yield Evening(stage, logs, lie, report)


def test_report_says_what_was_played(evening: Evening) -> None:
    """Verdicts, participants, fallbacks with causes and room keys agree with the players' notes."""
    rooms = {log.room_id for log in evening.logs}
    calls = [call for call in evening.report.calls if call.room_id in rooms]

    assert [*PLAYED] == [call.verdict for call in calls]
    assert [0, 3, 3] == [len(call.fallbacks) for call in calls]
    assert all(text.startswith(evening.lie.title) or "history" in text for text in differences(evening))


def test_a_lie_is_found(evening: Evening) -> None:
    """A player that sends otherwise than it notes makes the comparison fail."""
    assert any(text.startswith(f"{evening.lie.title}: verdict") for text in differences(evening))


def differences(evening: Evening) -> list[str]:
    """Compare the report with all notes."""
    return compare(evening.report, [*evening.logs, evening.lie])


def test_players_read_every_key_that_was_sent(evening: Evening) -> None:
    """The Olm messages are real: each was decrypted by the device it was for."""
    assert [expected(log).to_device_messages for log in evening.logs] == [len(log.received) for log in evening.logs]


def test_posthog_got_the_events(evening: Evening) -> None:
    """Exactly the events that each call's report asks for, each valid and sent once, and no identifier in clear."""
    events = evening.stage.posthog.events
    everything = json.dumps(list(evening.stage.posthog.bodies))
    identifiers = [
        identifier
        for log in evening.logs
        for identifier in (log.room_id, *(name for device in log.generations for name in device))
    ]

    assert in_order(map(expected_events, evening.report.calls)) == in_order(by_call(events).values())
    for event in events:
        jsonschema.Draft202012Validator(schema(event["event"])).validate(event["properties"])
    assert len({event["uuid"] for event in events}) == len(events)
    assert [] == [identifier for identifier in identifiers if identifier in everything]


async def test_metrics_count_the_calls(evening: Evening) -> None:
    """The metrics page has each settled call under its verdict."""
    async with aiohttp.ClientSession() as session, session.get(f"{evening.stage.admin_address}/metrics") as response:
        page = await response.text()
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "rtc_appservice_calls_ended_total":
                counted[sample.labels["verdict"]] += int(sample.value)

    assert Counter(call.verdict.value for call in evening.report.calls) == counted


async def test_what_it_serves_is_there(evening: Evening) -> None:
    """Each address the demo names at its end answers; the last is that of the overview page."""
    addresses = [re.search(r"http://\S+", line)[0] for line in served(evening.stage)]  # type: ignore[index]
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        pages = [await (await session.get(address)).text() for address in addresses]

    assert "<h1>Can the room-event backup go?</h1>" in pages[-1]


def words_of(call: CallReport, log: PlayLog) -> set[str]:
    """Give what the page of a call must say of it: its verdict, who took part, and why each device fell back."""
    wanted = expected(log)
    devices = {name for device in wanted.participants for name in device}
    causes = {f"{cause}: {words.CAUSES[cause]}" for _, cause, _ in wanted.fallbacks}
    return {words.VERDICTS[wanted.verdict], log.room_id, call.call_id, *devices, *causes}


async def page_of(evening: Evening, name: str) -> tuple[str, set[str]]:
    """Give the address of a page, and what it must say of the evening."""
    base = evening.stage.admin_address
    calls = {call.room_id: call for call in evening.report.calls}
    logs = [*evening.logs, evening.lie]
    keys = {log.room_id: expected(log).room_keys for log in evening.logs}
    if name == "overview":
        causes = {str(fallback.cause) for call in calls.values() for fallback in call.fallbacks}
        return f"{base}/", {"NOT READY", f"of {len(logs)} judged calls", *PLAYED, *causes}
    if name == "calls":
        return f"{base}/calls", {f"{len(logs)} calls", *PLAYED, *calls}
    if name == "rooms":
        return f"{base}/rooms", {f"{len(logs)} rooms", *calls}
    if name == "health":
        return f"{base}/health", {"The service does its work.", evening.report.calls[0].homeserver}
    log = evening.logs[PLAYED.index(Verdict.MIXED if name == "room" else Verdict(name))]
    address = f"{base}/calls/{calls[log.room_id].call_id}"
    if name != "room":
        return address, words_of(calls[log.room_id], log)
    async with aiohttp.ClientSession() as session, session.get(address) as response:
        (path,) = set(re.findall(r'href="(/rooms/\d+)"', await response.text()))
    senders = {sent.sender[1] for sent in log.sent}
    return f"{base}{path}", {log.room_id, f"Keys in history\n{keys[log.room_id]}", "stands in history", *senders}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PAGES)
async def test_pages_show_what_was_played(
    evening: Evening, browser: Chrome, pictures: Path, name: str, theme: str
) -> None:
    """
    Each page says what comes of the evening, in both themes; axe and the browser have nothing to complain of.

    On a screen of 1280 pixels no table needs to be scrolled sideways, and Tab goes through all there is.
    """
    url, wanted = await page_of(evening, name)

    def look() -> tuple[str, list[str], list[str], int, list[int], int]:
        open_page(browser, url, theme)
        text, hidden = text_of(browser), browser.execute_script(HIDDEN)
        count, stops = walk(browser) if theme == "light" else (0, [])
        found = violations(browser)
        said = complaints(browser)
        take_picture(browser, pictures / f"demo-{name}-{theme}.png")
        return text, said, found, count, [stop.place for stop in stops], hidden

    text, said, found, count, stops, hidden = await in_browser(look)

    assert [] == [word for word in wanted if word not in text]
    assert ([], []) == (said, found)
    assert list(range(count)) == stops
    assert 0 == hidden
