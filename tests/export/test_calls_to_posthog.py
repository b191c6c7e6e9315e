"""Genuine calls all the way to PostHog: from transactions through store and projection to the stand-in."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # an independent reading of our schemas
import pytest

from rtc_appservice.core.model import CallReport
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.export.events import Terms, event_maker
from rtc_appservice.export.posthog import Answer, Post, Reply, Sender, poster
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.projector import replay
from rtc_appservice.store.pool import Pool

from ..test_projector import SCENARIOS, Service, read
from .expected_events import by_call, expected_events
from .test_events import schema

TERMS = Terms(secret=b"the secret of a deployment", app_version="1.2.3")


@pytest.fixture
async def standin() -> AsyncIterator[PostHogStandIn]:
    """Give a PostHog stand-in that listens."""
    server = PostHogStandIn()
    await server.start()
    yield server
    await server.stop()


async def played(pool: Pool, scenario: str) -> tuple[Service, list[CallReport]]:
    """Take a recording as the service does, projecting after each transaction, until all is settled; give the calls."""
    service = await Service.open(pool)
    service.projector = replace(service.projector, events=event_maker(TERMS))
    intakes = read(scenario)
    for intake in intakes:
        await service.take(intake)
        await service.project()
    await service.settle(intakes)
    return service, await service.calls()


async def drain(service: Service, post: Post) -> None:
    """Send until nothing is due."""
    sender = Sender(service.pool, post, chance=lambda: 0.0)
    while not await sender.send_due(service.now):
        pass


#: The demo plays one call of each kind; these are recordings of such calls with real clients.
DEMO_CALLS = {
    "todevice-only": {"RtcCallStarted": 1, "RtcCallEnded": 1},
    "smart-switch": {"RtcCallStarted": 1, "RtcCallEnded": 1, "RtcKeyFallback": 3},
    "legacy-only": {"RtcCallStarted": 1, "RtcCallEnded": 1, "RtcKeyFallback": 3},
}


@pytest.mark.parametrize("scenario", DEMO_CALLS)
async def test_a_call_becomes_exactly_these_events(pool: Pool, standin: PostHogStandIn, scenario: str) -> None:
    """Each kind of call gives its events and no other; the summary says what happened."""
    service, (call,) = await played(pool, scenario)
    await drain(service, poster("phc_test", standin.address))

    counted = Counter(event["event"] for event in standin.events)
    (ended,) = (event["properties"] for event in standin.events if event["event"] == "RtcCallEnded")
    causes = Counter(e["properties"]["cause"] for e in standin.events if e["event"] == "RtcKeyFallback")

    distributed = {"RtcKeyDistributed": call.distributions.room_event + call.distributions.to_device}
    assert DEMO_CALLS[scenario] | distributed == counted
    assert {"todevice-only": "to_device", "smart-switch": "mixed", "legacy-only": "room_event"}[scenario] == (
        ended["verdict"]
    )
    assert {
        "todevice-only": {},
        "smart-switch": {"room_only_client": 1, "followed": 2},
        "legacy-only": {"room_only_client": 3},
    }[scenario] == causes
    assert {"todevice-only": 0, "smart-switch": 9, "legacy-only": 6}[scenario] == ended["distributionsRoomEvent"]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_every_recording(pool: Pool, standin: PostHogStandIn, scenario: str) -> None:
    """Whatever was played, each call's events are those its report asks for, valid, and without an identifier."""
    service, calls = await played(pool, scenario)
    await drain(service, poster("phc_test", standin.address))

    assert {f"call:{Pseudonyms(TERMS.secret).call(call.call_id)}": expected_events(call) for call in calls} == by_call(
        standin.events
    )
    for event in standin.events:
        jsonschema.Draft202012Validator(schema(event["event"])).validate(event["properties"])
    sent = json.dumps(list(standin.bodies))
    for call in calls:
        devices = {(one.user_id, one.device_id) for one in call.participants}
        identifiers = {call.room_id, call.call_id, *(name for device in devices for name in device)}
        assert [name for name in identifiers if name in sent] == []


@pytest.mark.parametrize("scenario", DEMO_CALLS)
async def test_a_forced_resend(pool: Pool, standin: PostHogStandIn, scenario: str) -> None:
    """When PostHog kept a batch and its answer was lost, all of it comes again, the same to the letter."""
    service, calls = await played(pool, scenario)
    post = poster("phc_test", standin.address)
    lost: list[Reply] = []

    def answer_lost(batch: list[dict[str, Any]]) -> Reply:
        lost.append(post(batch))
        return Reply(Answer.RETRY, "ConnectionError")

    wait = await Sender(pool, answer_lost, chance=lambda: 1.0).send_due(service.now)
    first = list(standin.events)
    service.now += timedelta(seconds=wait)
    await drain(service, post)
    second = standin.events[len(first) :]

    def as_sent(events: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(event, sort_keys=True) for event in events)

    assert [Answer.OK] == [reply.answer for reply in lost]
    assert as_sent(first) == as_sent(second)
    assert len({event["uuid"] for event in second}) == len(second)
    assert list(map(expected_events, calls)) == list(by_call(second).values())


async def test_a_replay_sends_nothing(pool: Pool, standin: PostHogStandIn) -> None:
    """What was sent is not sent again when every call is projected anew."""
    service, _ = await played(pool, "smart-switch")
    post = poster("phc_test", standin.address)
    await drain(service, post)
    sent = len(standin.events)

    assert 0 < (await replay(pool, service.projector, service.now)).projected
    await drain(service, post)

    assert sent == len(standin.events) > 0
