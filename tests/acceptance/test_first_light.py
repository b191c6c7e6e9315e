import json
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import jsonschema  # type: ignore[import-untyped]
import pytest_asyncio
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from rtc_appservice.core.model import Report
from rtc_appservice.core.words import Verdict
from rtc_appservice.demo.players import PlayLog
from rtc_appservice.demo.plays import PLAYS, Play, Role, compare, expected, perform
from rtc_appservice.demo.run import settled_report
from rtc_appservice.demo.stage import Stage, set_up
from rtc_appservice.demo.wire import Generation

from ..export.expected_events import by_call, expected_events, in_order
from ..export.test_events import schema

#: One player sends its first key as a room event and notes it as to-device.
LIE = Play(
    title="a player that lies",
    cast=(Role("olivia", "OLIVIA1", Generation.MODERN), Role("peggy", "PEGGY1", Generation.MODERN)),
    exits=("olivia", "peggy"),
    liar="olivia",
)


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

    assert [Verdict.TO_DEVICE, Verdict.MIXED, Verdict.ROOM_EVENT] == [call.verdict for call in calls]
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
    async with aiohttp.ClientSession() as session, session.get(evening.stage.metrics_address) as response:
        page = await response.text()
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "rtc_appservice_calls_ended_total":
                counted[sample.labels["verdict"]] += int(sample.value)

    assert Counter(call.verdict.value for call in evening.report.calls) == counted
