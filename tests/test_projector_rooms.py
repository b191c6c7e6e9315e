"""Findings of rooms outside calls, and floods, through projector and PostgreSQL."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest

from rtc_appservice.core.model import Projected, RoomFinding, RoomHistory
from rtc_appservice.core.observed import Observation
from rtc_appservice.core.report import room_finding
from rtc_appservice.core.rollup import FINDINGS
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import FindingKind
from rtc_appservice.projector import replay
from rtc_appservice.store import findings, outbox, totals
from rtc_appservice.store.pool import Pool
from rtc_appservice.view.stored import read_report

from .core.build import HOMESERVER, NOON, Scene, at
from .core.test_room_findings import DAY, flooded, rejected
from .test_projector import Service

#: Two minutes after the midnight after noon.
SETTLED = DAY / 2 + 120


def strange() -> Scene:
    """Give a room without a call, with a stray key and malformed events on two days."""
    scene = Scene()
    scene.room_key("mallory", 0)
    scene.add(10, rejected())
    scene.add(20, rejected(field="content.other"))
    scene.room_key("mallory", DAY)
    return scene


def each(scene: Scene) -> list[Intake]:
    """Give a transaction for each observation of a room."""
    return [brought([one]) for one in scene.observations]


def brought(observations: Sequence[Observation], *, rtc: bool = True) -> Intake:
    """Give a transaction."""
    rooms = {one.room_id for one in observations} if rtc else set()
    return Intake(
        observations=list(observations), newest_at=max(one.received_at for one in observations), rtc_rooms=rooms
    )


async def stored(service: Service) -> list[RoomFinding]:
    """Give the findings of rooms as stored."""
    async with service.pool.acquire() as conn:
        return await findings.load_of_rooms(conn)


def pure(scene: Scene, until: float) -> Projected:
    """Give the room as the pure pipeline sees it."""
    return RoomProjection().project(scene.history(until))


def named(projected: Projected, history: RoomHistory) -> list[RoomFinding]:
    """Give a room's own findings with its name, as they are read from the store."""
    found = [room_finding(one, history.homeserver, history.room_id) for one in projected.findings]
    return msgspec.json.decode(msgspec.json.encode(found), type=list[RoomFinding])


async def counted(pool: Pool) -> dict[str, int]:
    """Give the totals of findings by kind."""
    async with pool.acquire() as conn:
        return {one.labels["kind"]: one.value for one in await totals.load(conn) if one.name == FINDINGS.name}


@pytest.mark.parametrize("seed", range(4))
async def test_stored_as_found(pool: Pool, seed: int) -> None:
    """Whatever the order of arrival, and whenever it is projected."""
    service, scene = await Service.open(pool), strange()
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    intakes = each(scene)
    if seed:
        rng.shuffle(intakes)
    for intake in intakes:
        await service.take(intake)
        if rng.random() < 0.5:
            await service.project()
    await service.project()

    assert await stored(service) == named(pure(scene, DAY), scene.history(DAY))


async def test_settled_once_and_replay_changes_nothing(pool: Pool) -> None:
    """A day's findings are open till its end, then counted, once; nothing is sent, for they are of no call."""
    service, scene = await Service.open(pool), strange()
    for intake in each(scene)[:-1]:
        await service.take(intake)
        await service.project()
    await service.advance(at(SETTLED - 1))
    await service.project()
    assert [False] * 4 == [one.settled for one in await stored(service)]
    assert await counted(pool) == {}

    await service.advance(at(SETTLED))
    await service.project()
    assert [True] * 4 == [one.settled for one in await stored(service)]
    first_day = {"stray_key": 1, "key_in_clear": 1, "key_readable_in_history": 1, "malformed": 1}
    assert await counted(pool) == first_day
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM projection WHERE due_at IS NOT NULL") == 0
        assert (await outbox.pending(conn)).pending == 0

    await service.take(each(scene)[-1])
    await service.advance(at(DAY + SETTLED))
    await service.project()
    assert await counted(pool) == {kind: 1 if kind == "malformed" else 2 for kind in first_day}
    before = await service.dump()
    assert (await replay(pool, service.projector, service.now)).failed == 0
    assert await service.dump() == before


async def test_known_later(pool: Pool) -> None:
    """What comes for a day that is over stands beside what was counted; reports show it."""
    service, scene = await Service.open(pool), strange()
    for intake in each(scene)[:-1]:
        await service.take(intake)
    await service.advance(at(SETTLED))
    await service.project()
    totals_before = await counted(pool)

    scene.add(30, rejected(), late=True)
    await service.take(brought(scene.observations[-1:]))
    await service.project()

    report = await read_report(pool, since=None, homeserver=None, now=service.now)
    (malformed,) = [one for one in report.findings if one.kind is FindingKind.MALFORMED]
    assert malformed.details["count"] == 3
    assert await counted(pool) == totals_before


async def test_a_day_that_is_only_partly_looked_at(pool: Pool) -> None:
    """News of later days are projected with what came shortly before: a day of which that is a part stays as told."""
    service, scene = await Service.open(pool), Scene()
    for seconds in (3600, 41400, 3 * DAY):  # 13:00 and 23:30, and noon three days later
        scene.room_key("mallory", seconds)
    *earlier, last = each(scene)
    for intake in earlier:
        await service.take(intake)
    for seconds in (2 * DAY, 3 * DAY):
        await service.advance(at(seconds))
        await service.project()
    await service.take(last)
    await service.project()

    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM finding WHERE revision IS NOT NULL") == 0
    first = [one.details["count"] for one in await stored(service) if one.at < at(DAY)]
    assert first
    assert set(first) == {2}


async def test_a_call_that_turns_up(pool: Pool) -> None:
    """What looked stray is of a call after all: the open finding goes, and the call's own comes."""
    service, scene = await Service.open(pool), Scene()
    scene.room_key("mallory", 0)
    await service.take(brought(scene.observations))
    await service.project()
    assert len(await stored(service)) == 3

    scene.join("mallory", 5)
    await service.take(brought(scene.observations[-1:]))
    await service.project()

    assert await stored(service) == []
    (call,) = await service.calls()
    assert call.findings != ()


async def test_a_room_that_a_stranger_only_names(pool: Pool) -> None:
    """A to-device message names any room it likes: one in which no RTC event was seen has no findings."""
    service, scene = await Service.open(pool), Scene()
    scene.read_key("mallory", "alice", 0, encrypted=False)
    await service.take(brought(scene.observations, rtc=False))
    await service.project()
    assert await stored(service) == []

    scene.add(1, rejected())
    await service.take(brought(scene.observations[-1:]))
    await service.project()
    assert {"key_in_clear", "malformed"} == {one.kind for one in await stored(service)}


async def test_reports_choose(pool: Pool) -> None:
    """By time and homeserver."""
    service, scene = await Service.open(pool), strange()
    for intake in each(scene):
        await service.take(intake)
    await service.project()

    both = await read_report(pool, since=None, homeserver=HOMESERVER, now=service.now)
    later = await read_report(pool, since=NOON + timedelta(seconds=DAY), homeserver=HOMESERVER, now=service.now)
    assert (len(both.findings), len(later.findings)) == (7, 3)


@pytest.mark.parametrize("pieces", [1, 7])
async def test_floods(pool: Pool, pieces: int) -> None:
    """Of a day, 1,000 findings and the flood are stored, sent and counted, however it comes and is projected."""
    service, scene = await Service.open(pool), flooded()
    service.projector = replace(service.projector, events=lambda *_: ())
    arriving = sorted(scene.observations, key=lambda one: one.received_at)
    size = len(arriving) // pieces + 1
    for begin in range(0, len(arriving), size):
        await service.take(brought(arriving[begin : begin + size]))
        await service.project()
    for seconds in (5000, 20000, SETTLED, 2 * DAY):
        await service.advance(at(seconds))
        await service.project()

    wanted = pure(scene, 2 * DAY)
    assert await stored(service) == named(wanted, scene.history(2 * DAY))
    assert [len(one.findings) for one in await service.calls()] == [len(one.report.findings) for one in wanted.calls]
    assert sum((await counted(pool)).values()) == 1001
    before = await service.dump()
    await replay(pool, service.projector, service.now)
    assert await service.dump() == before
