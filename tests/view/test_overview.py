"""What the overview counts: the database gives what the reports would, and hands over little of them."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from rtc_appservice.core.platform import with_platforms
from rtc_appservice.core.readiness import assess
from rtc_appservice.core.tally import Tally, tally
from rtc_appservice.core.words import BLOCKING_CAUSES, FindingKind, Platform, ServerName, Severity, Verdict
from rtc_appservice.store import sessions, totals
from rtc_appservice.store.device_facts import DeviceFact, load_platforms, write_facts
from rtc_appservice.store.overview import load_tally
from rtc_appservice.store.pool import Connection, Pool
from rtc_appservice.store.totals import Rollup
from rtc_appservice.view.overview import Sealed, read_overview, sealed
from tests.test_projector import HOMESERVER, SCENARIOS, Service, read
from tests.view.page_server import fill_live
from tests.view.test_report import recorded

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


async def counted_from_reports(conn: Connection, since: datetime, now: datetime) -> Tally:
    """Give the same from the reports of all calls."""
    calls = await sessions.load_calls(conn, since, 1)
    return tally(with_platforms(calls, await load_platforms(conn, 1)), now)


async def test_the_database_counts_as_the_reports_do(pool: Pool, conn: Connection) -> None:
    """Every recording, once settled, in windows with some of the calls and all, before blockers age and after."""
    service = await Service.open(pool)
    for scenario in SCENARIOS:
        intakes = read(scenario)
        for intake in intakes:
            await service.take(intake)
        await service.project()
        await service.settle(intakes)
    calls = await sessions.load_calls(conn)
    devices = sorted(
        {(each.user_id, each.device_id) for call in calls for each in call.fallbacks if each.cause in BLOCKING_CAUSES}
    )
    facts = [
        DeviceFact(user_id=user_id, device_id=device_id, platform=Platform.IOS, cross_signed=None)
        for user_id, device_id in devices[::2]
    ]
    await write_facts(conn, 1, facts, NOW)

    for since in (LONG_AGO, *(call.started_at for call in calls)):
        for now in (NOW, NOW + timedelta(days=30)):
            found = await load_tally(conn, [1], since, now)
            assert await counted_from_reports(conn, since, now) == found
    everything = await load_tally(conn, [1], LONG_AGO, NOW)
    assert {Platform.IOS, Platform.UNKNOWN} == {each.platform for each in everything.blockers}
    assert len(calls) == everything.calls
    assert Tally() == await load_tally(conn, [2], LONG_AGO, NOW)


async def test_a_call_that_goes_on_counts_however_long_ago_it_began(pool: Pool, conn: Connection) -> None:
    """It is in every window, live, and split if its findings say so."""
    await fill_live(pool)
    (call,) = await sessions.load_calls(conn)
    later = call.started_at + timedelta(days=3)

    before = await load_tally(conn, [1], later, later)
    await conn.execute(
        """
        INSERT INTO finding (room_key, homeserver_id, at, finding_id, call_id, kind, state, body)
        SELECT room_key, 1, started_at, gen_random_uuid(), call_id, 'split_call', 'open', '{}' FROM call_session
        """
    )
    after = await load_tally(conn, [1], later, later)

    assert (1, 1, 0) == (before.calls, before.live, before.split)
    assert await counted_from_reports(conn, later, later) == before
    assert replace(before, split=1) == after


def test_a_live_split_is_counted_from_reports_too() -> None:
    """Readiness reads it off the count."""
    (call,) = recorded("smart-switch").calls
    split = replace(call.findings[0], kind=FindingKind.SPLIT_CALL, severity=Severity.CRITICAL)
    live = replace(call, ended_at=None, findings=(split,), verdict=Verdict.TO_DEVICE, fallbacks=())

    assert (1, 1) == (tally([live], NOW).live, tally([live], NOW).split)
    assert "not_ready" == assess([live], NOW).verdict


def total(name: str, value: int, **labels: str) -> Rollup:
    """Give a total."""
    return Rollup(homeserver=ServerName("example.org"), name=name, labels=labels, value=value)


@pytest.mark.parametrize(
    ("rollups", "expected"),
    [
        ([], None),
        ([total("calls_ended", 3, verdict="solo", evidence="direct")], None),
        ([total("events_decrypted", 8, when="at_once")], Sealed(events=8, unread=0, reasons={})),
        (
            [
                total("events_decrypted", 90, when="at_once"),
                total("events_decrypted", 4, when="later"),
                total("events_undecryptable", 3, reason="withheld"),
                total("events_undecryptable", 7, reason="missing_session"),
            ],
            Sealed(events=100, unread=6, reasons={"missing_session": 7, "withheld": 3}),
        ),
    ],
)
def test_what_the_device_could_not_read(rollups: list[Rollup], expected: Sealed | None) -> None:
    """What was opened later is no longer unread; a device that had nothing to open has no share."""
    assert expected == sealed(rollups)


async def test_the_overview_says_what_could_not_be_read(pool: Pool, conn: Connection) -> None:
    """It stands beside the coverage of the calls."""
    await Service.open(pool)
    await totals.add(conn, 1, [("events_undecryptable", {"reason": "withheld"}, 2)])
    found = await read_overview(conn, {HOMESERVER: 1}, days=7, now=NOW)

    assert Sealed(events=2, unread=2, reasons={"withheld": 2}) == found.sealed
    assert 0 == found.calls
