"""Rooms kept in memory between two looks: what is written is what a projection from the start writes, at every look."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from rtc_appservice import projector as projector_module
from rtc_appservice.core.live_rooms import Basis, LiveRoom, LiveRooms
from rtc_appservice.core.model import RoomHistory, Settings
from rtc_appservice.core.observed import Gap, Membership, RoomState
from rtc_appservice.core.room_facts import room_left, state_read
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import CallId, DeviceId, FallbackCause, GapReason, RoomId, ServerName, UserId
from rtc_appservice.store import findings, sessions, streams
from rtc_appservice.store.gaps import record_gaps
from rtc_appservice.store.observations import load_room
from rtc_appservice.store.pool import Connection, Pool

from .core.build import history_of, project_room
from .fleet.plans import play
from .fleet.test_incremental import with_strangers
from .test_projector import HOMESERVER, PROJECTED, SCENARIOS, SECRET, Service, expected, read

FOLLOWED = (
    *PROJECTED,
    "SELECT (room_key, due_at, version)::text FROM projection ORDER BY 1",
    "SELECT (room_key, identity)::text FROM observation ORDER BY 1",
    "SELECT identity FROM held_envelope ORDER BY 1",
)
OURS = UserId("@rtc-auditor-device:lab.test")
Dump = list[list[tuple[Any, ...]]]


class Forgetful(LiveRooms):
    """Keeps no room, so that each is projected from its start at every look."""

    def keep(self, room_key: int, room: LiveRoom) -> None:
        """Forget it."""


@dataclass(frozen=True)
class Step:
    """What happens before a look, and who looks."""

    intakes: Sequence[Intake]
    turn: int  #: of the two projectors
    restarts: bool
    advances: float | None
    gap: Gap | None
    loses: float | None  #: the observation at this share of all is removed, as one that was read after all is


def played(seed: int, *, rough: bool) -> tuple[ServerName, list[Intake]]:
    """Give a played room as intake would read it."""
    room = play(seed, rough=rough)
    server = ServerName(room.simulator.truth.server)
    reader = TransactionReader(server, SECRET)
    watched: set[RoomId] = set()
    watermark_at: datetime | None = None
    intakes = []
    for transaction in room.transactions:
        received_at = datetime.fromtimestamp(transaction.received_at / 1000, UTC)
        intake = reader.read(transaction.body, received_at=received_at, watched=watched, watermark_at=watermark_at)
        watched |= intake.rtc_rooms
        if intake.newest_at is not None:
            watermark_at = max(intake.newest_at, watermark_at or intake.newest_at)
        intakes.append(intake)
    return server, intakes


def read_as_found(server: ServerName, intakes: Sequence[Intake], seed: int) -> list[Intake]:
    """Take the rooms' creation away, and have the device read their state and leave now and then."""
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    found = []
    for number, intake in enumerate(intakes):
        observations = [o for o in intake.observations if not (isinstance(o.body, RoomState) and o.body.value == "")]
        for one in intake.observations[:1]:
            if rng.random() < 0.1:
                observations.append(state_read(server, one.room_id, OURS, one.received_at))
            if rng.random() < 0.05:
                observations.append(room_left(server, one.room_id, OURS, one.received_at, f"$left{number}"))
        found.append(msgspec.structs.replace(intake, observations=observations))
    return found


def steps_of(server: ServerName, intakes: Sequence[Intake], seed: int) -> list[Step]:
    """Cut a room's transactions in random pieces, a little out of order, with whatever may come between."""
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    slack = rng.choice([0, 0, 3, 30])
    order = sorted(range(len(intakes)), key=lambda n: n + rng.uniform(0, slack))
    sizes = rng.choice([[1, 2, 5], [5, 20, 60]])
    steps = []
    at = 0
    while at < len(order):
        size = rng.choice(sizes)
        taken = [intakes[n] for n in order[at : at + size]]
        at += size
        times = [intake.newest_at for intake in taken if intake.newest_at is not None]
        gap = None
        if times and rng.random() < 0.05:
            until = rng.choice([None, times[-1]])
            gap = Gap(
                gap_id=rng.choice("ab"),
                homeserver=server,
                reason=rng.choice([GapReason.SERVICE_DOWN, GapReason.TO_DEVICE_LOST]),
                started_at=times[0],
                ended_at=until,
            )
        steps.append(
            Step(
                intakes=taken + rng.sample(intakes, 2),
                turn=rng.choice([0, 0, 0, 0, 1]),
                restarts=rng.random() < 0.05,
                advances=rng.choice([None, None, 3.0, 130.0]),
                gap=gap,
                loses=rng.random() if rng.random() < 0.1 else None,
            )
        )
    return steps


async def lose(conn: Connection, share: float) -> None:
    """Remove an observation and mark its room, as is done with one that was sealed and is read after all."""
    await conn.execute(
        """
        WITH chosen AS (
            SELECT * FROM observation ORDER BY event_at, identity
            OFFSET (SELECT floor($1::float * count(*))::int FROM observation) LIMIT 1
        ), dropped AS (
            DELETE FROM observation AS o USING chosen AS c
            WHERE (o.room_key, o.event_at, o.identity) = (c.room_key, c.event_at, c.identity)
            RETURNING o.room_key, o.homeserver_id, o.event_at, o.identity
        ), marked AS (
            INSERT INTO dirty_room (room_key, homeserver_id, event_at)
            SELECT room_key, homeserver_id, event_at FROM dropped
        )
        DELETE FROM observation_identity USING dropped WHERE observation_identity.identity = dropped.identity
        """,
        share,
    )


async def follow(
    pool: Pool, server: ServerName, steps: Sequence[Step], intakes: Sequence[Intake], *, keep: bool
) -> list[Dump]:
    """Play steps on an empty database and give what is stored after each."""
    async with pool.acquire() as conn:
        tables = await conn.fetchval(
            """
            SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema') AND tablename <> 'alembic_version'
            """
        )
        await conn.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
        service = Service(pool, (await streams.open_stream(conn, server)).homeserver_id)
    rooms = LiveRooms if keep else Forgetful
    projectors = [dataclasses.replace(service.projector, homeserver=server, rooms=rooms()) for _ in range(2)]
    dumps: list[Dump] = []
    for step in steps:
        for intake in step.intakes:
            await service.take(intake)
        async with pool.acquire() as conn:
            if step.advances is not None:
                reached_at = await conn.fetchval("SELECT max(watermark_at) FROM stream")
                if reached_at is not None:
                    await service.advance(reached_at + timedelta(seconds=step.advances))
            if step.gap is not None:
                await record_gaps(conn, service.homeserver_id, [step.gap])
            if step.loses is not None:
                await lose(conn, step.loses)
        if step.restarts:
            projectors[step.turn] = dataclasses.replace(projectors[step.turn], rooms=rooms())
        service.projector = projectors[step.turn]
        await service.project()
        dumps.append(await dump(pool))
    await service.settle(intakes)
    return [*dumps, await dump(pool)]


async def dump(pool: Pool) -> Dump:
    """Give everything projected."""
    async with pool.acquire() as conn:
        return [[tuple(row) for row in await conn.fetch(query)] for query in FOLLOWED]


async def assert_same_as_from_the_start(pool: Pool, server: ServerName, intakes: Sequence[Intake], seed: int) -> None:
    """Follow a room with rooms kept and without."""
    steps = steps_of(server, intakes, seed)

    live = await follow(pool, server, steps, intakes, keep=True)
    from_the_start = await follow(pool, server, steps, intakes, keep=False)

    for mine, reference in zip(live, from_the_start, strict=True):
        for query, found, wanted in zip(FOLLOWED, mine, reference, strict=True):
            assert found == wanted, query


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_recordings(pool: Pool, scenario: str) -> None:
    """Recorded calls."""
    await assert_same_as_from_the_start(pool, HOMESERVER, read(scenario), SCENARIOS.index(scenario))


@pytest.mark.parametrize("seed", [*range(3), *range(1000, 1004)])
async def test_played_rooms(pool: Pool, seed: int) -> None:
    """Played calls of all generations."""
    await assert_same_as_from_the_start(pool, *played(seed, rough=seed >= 1000), seed)


async def test_rooms_whose_state_is_read(pool: Pool) -> None:
    """A room's state is read, and the room left, before, within and after calls; whether they began unseen follows."""
    server, intakes = played(1, rough=False)
    await assert_same_as_from_the_start(pool, server, read_as_found(server, intakes, 1), 1)


@pytest.mark.parametrize("scenario", ["smart-switch", "leave-rejoin"])
async def test_what_belongs_to_no_call(pool: Pool, scenario: str) -> None:
    """Keys and events outside the calls of a room, before, between and after them."""
    history = history_of(scenario)
    known = {one.identity for one in history.observations}
    strange = [
        Intake(observations=[one], newest_at=one.received_at, rtc_rooms={one.room_id})
        for one in with_strangers(history, random.Random(1)).observations  # noqa: S311 - no secrets here
        if one.identity not in known
    ]
    intakes = [intake for intake in (*read(scenario), *strange) if intake.newest_at is not None]
    intakes.sort(key=lambda intake: intake.newest_at or history.watermark_at)
    await assert_same_as_from_the_start(pool, HOMESERVER, intakes, 3)

    async with pool.acquire() as conn:
        found = await findings.load_of_rooms(conn)
    assert {"stray_key", "malformed", "forged_membership"} <= {one.kind for one in found}


@pytest.mark.parametrize(("position", "seen"), [(0.0, True), (0.5, False)])
async def test_whether_the_state_was_read_before_the_call(pool: Pool, position: float, seen: bool) -> None:
    """Read while the call goes on, it does not make the beginning seen; the projection takes it as it comes."""
    service = await Service.open(pool)
    intakes = [
        msgspec.structs.replace(
            intake, observations=[o for o in intake.observations if not isinstance(o.body, RoomState)]
        )
        for intake in read("smart-switch")
    ]
    observed = [intake for intake in intakes if intake.observations]
    first = observed[0].observations[0]
    after = observed[int(position * len(observed))]
    at = first.event_at - timedelta(seconds=1) if position == 0 else after.observations[0].received_at
    after.observations.append(state_read(HOMESERVER, first.room_id, OURS, at))
    for intake in intakes:
        await service.take(intake)
        await service.project()
    (call,) = await service.calls()
    service.projector.rooms.clear()
    await service.settle(intakes)
    (settled,) = await service.calls()

    assert seen is call.beginning_seen
    assert seen is settled.beginning_seen


async def test_a_call_that_goes_on_is_read_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projected after every transaction, a room is read from its start a few times only."""
    service = await Service.open(pool)
    reads: list[int] = []

    async def counted(*arguments: Any) -> Any:
        found = await load_room(*arguments)
        reads.append(len(found))
        return found

    monkeypatch.setattr(projector_module, "load_room", counted)
    intakes = read("smart-switch")
    for intake in intakes:
        await service.take(intake)
        await service.project()

    assert len(reads) < len(intakes) / 2


async def test_to_device_history_that_comes_late(pool: Pool) -> None:
    """A cause follows what comes to light of other calls, though the call goes on: who switched before gave up."""
    service = await Service.open(pool)
    intakes = read("legacy-only")
    (call,) = expected("legacy-only")
    half = len(intakes) // 2
    for intake in intakes[:half]:
        await service.take(intake)
        await service.project()

    async with pool.acquire() as conn:
        earlier = call.started_at - timedelta(days=1)
        seen = {(found.user_id, found.device_id, CallId("earlier")): earlier for found in call.fallbacks}
        await sessions.write_to_device_seen(conn, service.homeserver_id, seen)
    for intake in intakes[half:]:
        await service.take(intake)
        await service.project()

    (found,) = await service.calls()
    assert {fallback.cause for fallback in call.fallbacks} == {FallbackCause.ROOM_ONLY_CLIENT}
    assert {fallback.cause for fallback in found.fallbacks} == {FallbackCause.GAVE_UP}


async def test_a_failed_projection_is_forgotten(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A room whose projection was rolled back after it had taken the news is read from its start again."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    for intake in intakes[:-1]:
        await service.take(intake)
    await service.project()
    assert any(service.projector.rooms.take(room_key) is not None for room_key in range(10))
    await service.take(intakes[-1])

    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise RuntimeError("planted")

        patched.setattr(projector_module, "history_ledger", fail)
        assert await service.project() == 0
    assert all(service.projector.rooms.take(room_key) is None for room_key in range(10))


async def test_a_settled_room_is_not_kept(pool: Pool) -> None:
    """Nothing is kept of a room whose calls are over."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    for intake in intakes:
        await service.take(intake)
    await service.project()

    await service.settle(intakes)

    assert all(service.projector.rooms.take(room_key) is None for room_key in range(10))


def room(size: int) -> LiveRoom:
    """Give a room of so many observations, as projected."""
    (_, intakes) = played(0, rough=False)
    observations = [found for intake in intakes for found in intake.observations][:size]
    at = observations[-1].event_at
    history = RoomHistory(homeserver=HOMESERVER, room_id=RoomId("!a"), observations=(), watermark_at=at, envelopes=True)
    live = LiveRoom(Basis(from_at=observations[0].event_at, settings=Settings(), history=history), RoomProjection())
    live.take(observations)
    return live


def test_anything_unusual_begins_anew() -> None:
    """A room goes on only from the projection it is of, with all but the watermark as it was."""
    live = room(20)
    basis, history = live.basis, live.basis.history
    at, first, second = history.watermark_at, basis.from_at, timedelta(seconds=1)
    gap = Gap(gap_id="a", homeserver=HOMESERVER, reason=GapReason.SERVICE_DOWN, started_at=at, ended_at=None)
    later = msgspec.structs.replace(history, watermark_at=at + second)

    assert live.goes_on(dataclasses.replace(basis, history=later), 0, at)
    assert live.goes_on(dataclasses.replace(basis, history=later), 0, None)
    assert not live.goes_on(basis, 1, at), "another replica projected it"
    assert not live.goes_on(basis, 0, first), "all of it is news: a replay"
    assert not live.goes_on(dataclasses.replace(basis, from_at=first - second), 0, at)
    assert not live.goes_on(dataclasses.replace(basis, settings=Settings(grace_seconds=1)), 0, at)
    for changed in (
        msgspec.structs.replace(history, watermark_at=at - second),
        msgspec.structs.replace(history, gaps=(gap,)),
        msgspec.structs.replace(history, envelopes=False),
        msgspec.structs.replace(history, watched_since=at),
        msgspec.structs.replace(history, witnesses=frozenset({(UserId("@a:b"), DeviceId("A"))})),
    ):
        assert not live.goes_on(dataclasses.replace(basis, history=changed), 0, at)


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_to_device_history_by_call(seed: int) -> None:
    """What was seen before one call decides of it what it would decide as the history of the whole room."""
    server, intakes = played(seed, rough=True)
    observations = tuple(found for intake in intakes for found in intake.observations)
    history = RoomHistory(
        homeserver=server,
        room_id=next(found.room_id for found in observations if isinstance(found.body, Membership)),
        observations=observations,
        watermark_at=max(found.event_at for found in observations) + timedelta(hours=5),
        envelopes=True,
    )
    calls = project_room(history)
    seen = {
        call.report.call_id: {
            (fallback.user_id, fallback.device_id): call.report.started_at - timedelta(days=1)
            for fallback in call.report.fallbacks
        }
        for call in calls
    }

    at_once = project_room(msgspec.structs.replace(history, to_device_history_of=seen))

    for number, call in enumerate(calls):
        alone = project_room(msgspec.structs.replace(history, to_device_history=seen[call.report.call_id]))
        assert at_once[number] == alone[number]


def test_rooms_kept_are_bounded() -> None:
    """Those looked at longest ago make way, all of them for one that is too large."""
    rooms = LiveRooms(10)
    for room_key in range(3):
        rooms.keep(room_key, room(4))
    kept = rooms.take(1)
    assert kept is not None
    assert rooms.take(0) is None
    rooms.keep(1, kept)
    rooms.keep(3, room(4))
    assert rooms.take(2) is None
    assert rooms.take(1) is kept
    rooms.keep(3, room(4))
    rooms.keep(4, room(11))
    assert rooms.take(3) is None
    assert rooms.take(4) is not None
