"""What is read from the database for a reader, beside what was projected: the platforms of devices."""

import pytest

from rtc_appservice.core.model import Settings
from rtc_appservice.core.words import FallbackCause, Platform
from rtc_appservice.store.device_facts import DeviceFact, write_facts
from rtc_appservice.store.pool import Pool
from rtc_appservice.view.report import render_text
from rtc_appservice.view.stored import read_report
from rtc_appservice.view.stored_call import explain_call

from ..test_projector import Service, read


@pytest.fixture
async def service(pool: Pool) -> Service:
    """Give a database in which a call is projected that a room-only device turned to room events."""
    service = await Service.open(pool)
    for intake in read("smart-switch"):
        await service.take(intake)
    await service.project()
    return service


async def test_platforms_are_joined_when_a_call_is_read(service: Service) -> None:
    """Report, blockers and the one call name the platform as it is known by then; what is stored stays as it was."""
    before = await service.dump()
    (stored,) = await service.calls()
    culprit = next(each for each in stored.fallbacks if each.cause is FallbackCause.ROOM_ONLY_CLIENT)
    fact = DeviceFact(
        user_id=culprit.user_id, device_id=culprit.device_id, platform=Platform.ANDROID, cross_signed=None
    )
    async with service.pool.acquire() as conn:
        await write_facts(conn, service.homeserver_id, [fact], service.now)

    report = await read_report(service.pool, since=None, homeserver=None, now=stored.started_at)
    told = await explain_call(service.pool, stored.call_id, Settings())

    (call,) = report.calls
    platforms = {each.device_id: each.platform for each in call.participants}
    assert {Platform.UNKNOWN, Platform.ANDROID} == set(platforms.values())
    assert Platform.ANDROID == platforms[culprit.device_id]
    assert platforms == {each.device_id: each.platform for each in told.call.participants}
    assert ["android"] == [each["platform"] for each in report.readiness.blockers]
    assert ", android" in render_text(report)
    assert before == await service.dump()
