"""The projector on real PostgreSQL: recordings through store and projection give what the pure pipeline gives."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5
from zlib import crc32

import pytest

from rtc_appservice import projector as projector_module
from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.model import CallReport, CallSession, Finding
from rtc_appservice.core.observed import HeldEnvelope, Observation, OlmEnvelope, Redaction
from rtc_appservice.core.rollup import CALLS_ENDED, FINDINGS, KEY_FALLBACKS
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import DeviceId, EventId, ServerName, UserId
from rtc_appservice.projector import Projector, project_once, replay, run_projector
from rtc_appservice.store import outbox, sessions, streams, totals
from rtc_appservice.store.observations import record
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.rooms import RoomCache

RECORDINGS = Path(__file__).parent / "data" / "recordings"
SCENARIOS = sorted(path.parent.name for path in RECORDINGS.glob("*/transactions.jsonl"))
HOMESERVER = ServerName("lab.test")
SECRET = b"a secret of the tests"
#: Every table the projector writes.
PROJECTED = (
    "SELECT call_session::text FROM call_session ORDER BY 1",
    "SELECT stint::text FROM stint ORDER BY 1",
    "SELECT to_device_history::text FROM to_device_history ORDER BY 1",
    "SELECT finding::text FROM finding ORDER BY 1",
    "SELECT history_ledger::text FROM history_ledger ORDER BY 1",
    "SELECT outbox::text FROM outbox ORDER BY 1",
    "SELECT rollup::text FROM rollup ORDER BY 1",
    "SELECT room_key::text FROM dirty_room ORDER BY 1",
)


def events(call: CallSession, newly_settled: Sequence[Finding], first_time: bool) -> list[OutboxRow]:
    """Give one row a start, settled finding and end, as an exporter would, but never the same one twice."""
    names = [f"{finding.kind}/{finding.finding_id}" for finding in newly_settled]
    names += ["started"] * first_time + ["ended"] * call.report.settled
    return [
        OutboxRow(
            uuid=uuid5(NAMESPACE_OID, f"{call.report.call_id}/{name}"),
            event=name.partition("/")[0],
            distinct_id=call.report.call_id,
            timestamp=call.report.started_at,
            properties={},
        )
        for name in names
    ]


class Service:
    """What intake and projector do with a recording, without HTTP."""

    def __init__(self, pool: Pool, homeserver_id: int) -> None:
        self.pool = pool
        self.homeserver_id = homeserver_id
        self.rooms = RoomCache()
        self.projector = Projector(homeserver=HOMESERVER, homeserver_id=homeserver_id, envelopes=True, events=events)
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    @classmethod
    async def open(cls, pool: Pool) -> "Service":
        """Open the stream of the homeserver."""
        async with pool.acquire() as conn:
            return cls(pool, (await streams.open_stream(conn, HOMESERVER)).homeserver_id)

    async def take(self, intake: Intake) -> None:
        """Store a transaction."""
        async with self.pool.acquire() as conn:
            await record(conn, self.homeserver_id, intake, self.rooms)

    async def advance(self, at: datetime) -> None:
        """Let the stream reach a time."""
        async with self.pool.acquire() as conn:
            await streams.heartbeat(conn, self.homeserver_id, at, at)

    async def project(self) -> int:
        """Project until there is nothing to do."""
        total = 0
        while worked := await project_once(self.pool, self.projector, self.now):
            total += worked
        return total

    async def settle(self, intakes: Sequence[Intake]) -> None:
        """Let so much time pass, step by step, that every membership has expired and every deadline is over."""
        last = max(intake.newest_at for intake in intakes if intake.newest_at is not None)
        for minutes in (1, 2, 5, 60, 300, 305, 310):
            await self.advance(last + timedelta(minutes=minutes))
            await self.project()

    async def calls(self) -> list[CallReport]:
        """Give the calls as stored."""
        async with self.pool.acquire() as conn:
            return await sessions.load_calls(conn)

    async def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Give everything projected, in no order of writing."""
        async with self.pool.acquire() as conn:
            return {query: [tuple(row) for row in await conn.fetch(query)] for query in PROJECTED}


def lines_of(scenario: str) -> list[RecordedTransaction]:
    """Give a recording's transactions."""
    lines = [json.loads(line) for line in (RECORDINGS / scenario / "transactions.jsonl").read_text().splitlines()]
    return [RecordedTransaction(datetime.fromtimestamp(line["recv_ts"] / 1000, UTC), line["body"]) for line in lines]


def read(scenario: str) -> list[Intake]:
    """Give a recording as intake would read it."""
    reader = TransactionReader(HOMESERVER, SECRET)
    watched: set[Any] = set()
    watermark_at: datetime | None = None
    intakes = []
    for line in lines_of(scenario):
        intake = reader.read(line.body, received_at=line.received_at, watched=watched, watermark_at=watermark_at)
        watched |= intake.rtc_rooms
        if intake.newest_at is not None:
            watermark_at = max(watermark_at or intake.newest_at, intake.newest_at)
        intakes.append(intake)
    return intakes


def expected(scenario: str) -> list[CallReport]:
    """Give the calls of a recording as the pure pipeline sees them."""
    return list(audit(lines_of(scenario), homeserver=HOMESERVER, scope="users", secret=SECRET).calls)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_live_projection_is_the_audit(pool: Pool, scenario: str) -> None:
    """Projected after every transaction, a recording ends as the calls that an audit of the whole gives."""
    service = await Service.open(pool)

    for intake in read(scenario):
        await service.take(intake)
        await service.project()

    assert await service.calls() == expected(scenario)


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_and_duplicates(pool: Pool, seed: int) -> None:
    """Transactions taken in any order, some twice, and projected at any moments, give the same calls."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    order = sorted(range(len(intakes)), key=lambda n: crc32(f"{seed} {n}".encode()))
    order += order[:5]

    for turn, n in enumerate(order):
        await service.take(intakes[n])
        if turn % 4 == seed:
            await service.project()
    await service.project()

    assert await service.calls() == expected("smart-switch")


async def test_two_projectors_at_once(pool: Pool) -> None:
    """Two projectors on one database together do what one does, each thing once."""
    service = await Service.open(pool)
    for scenario in ("smart-switch", "legacy-only", "todevice-only"):
        for intake in read(scenario):
            await service.take(intake)

    await asyncio.gather(service.project(), service.project(), service.project())

    calls = [call for scenario in ("smart-switch", "legacy-only", "todevice-only") for call in expected(scenario)]
    assert {call.call_id for call in calls} == {call.call_id for call in await service.calls()}
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM outbox WHERE event = 'started'") == 3


async def test_settled_once_and_replay_changes_nothing(pool: Pool) -> None:
    """What settled is exported and counted once, however often it is projected; a replay changes no row at all."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    for intake in intakes:
        await service.take(intake)
        await service.project()
    await service.settle(intakes)
    before = await service.dump()

    replayed = await replay(pool, service.projector, service.now)

    assert await service.dump() == before
    rooms = len({observation.room_id for intake in intakes for observation in intake.observations})
    assert (rooms, 0) == (replayed.projected, replayed.failed)
    (call,) = await service.calls()
    assert call.settled
    async with pool.acquire() as conn:
        states = {row["state"] for row in await conn.fetch("SELECT state FROM finding")}
        assert states == {"settled"}
        sent = await outbox.lease(conn, 1000, 60, service.now)
        assert len(sent) == len(call.findings) + 2
        # Sent rows leave the table, and a replay must not send them again.
        await outbox.done(conn, [leased.row.uuid for leased in sent])
        rollups = await totals.load(conn)
    by_name = {name: sum(r.value for r in rollups if r.name == name) for name in {r.name for r in rollups}}
    assert by_name[CALLS_ENDED.name] == 1
    assert by_name[FINDINGS.name] == len(call.findings)
    assert by_name[KEY_FALLBACKS.name] == len(call.fallbacks)
    await replay(pool, service.projector, service.now)
    async with pool.acquire() as conn:
        assert (await outbox.pending(conn)).pending == 0


async def test_later_knowledge_is_a_revision(pool: Pool) -> None:
    """A settled finding's body stays as it was exported; what is known later stands beside it."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    for intake in intakes:
        await service.take(intake)
    await service.settle(intakes)
    async with pool.acquire() as conn:
        before = await conn.fetch("SELECT finding_id, body FROM finding ORDER BY 1")
        # A room key of carol's turns up that had been lost: her fallback rests on one key more.
        await conn.execute(
            """
            WITH lost AS (
                SELECT * FROM observation WHERE kind = 'room_key' AND body ->> 'sender' LIKE '@carol:%'
                ORDER BY event_at LIMIT 1
            ), mark AS (INSERT INTO dirty_room (room_key, homeserver_id, event_at)
                        SELECT room_key, homeserver_id, event_at FROM lost)
            INSERT INTO observation (room_key, event_at, identity, homeserver_id, kind, received_at, late, body)
            SELECT room_key, event_at + interval '1 ms', '$late', homeserver_id, kind, received_at, late, body FROM lost
            """
        )
        await outbox.done(conn, [leased.row.uuid for leased in await outbox.lease(conn, 1000, 60, service.now)])
        rollups = await totals.load(conn)

    await service.project()

    async with pool.acquire() as conn:
        assert await conn.fetch("SELECT finding_id, body FROM finding ORDER BY 1") == before
        assert await conn.fetchval("SELECT count(*) FROM finding WHERE revision IS NOT NULL") >= 1
        assert (await outbox.pending(conn)).pending == 0
        assert await totals.load(conn) == rollups


async def test_crash_in_projection_changes_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection that fails half-way leaves no trace and keeps the news; the next one does it all."""
    service = await Service.open(pool)
    for intake in read("smart-switch"):
        await service.take(intake)
    before = await service.dump()

    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise RuntimeError("planted")

        patched.setattr(projector_module, "history_ledger", fail)
        assert await service.project() == 0
    assert await service.dump() == before

    await service.project()
    assert await service.calls() == expected("smart-switch")


async def test_envelopes_outside_calls_leave_no_trace(pool: Pool) -> None:
    """Olm envelopes between users without a call are deleted after two minutes of the stream, identities too."""
    service = await Service.open(pool)
    noon = service.now

    def envelope(identity: str, at: datetime) -> HeldEnvelope:
        body = OlmEnvelope(
            sender=UserId("@a:lab.test"),
            recipient=UserId("@b:lab.test"),
            recipient_device=DeviceId("B"),
            olm_type=1,
            body_length=1400,
            sender_key_id="k",
        )
        return HeldEnvelope(homeserver=HOMESERVER, identity=identity, received_at=at, body=body)

    await service.take(Intake(envelopes=[envelope("e1", noon), envelope("e2", noon + timedelta(seconds=1))]))
    await service.advance(noon + timedelta(seconds=120.5))
    await service.project()

    async with pool.acquire() as conn:
        rows = await conn.fetch(
            "SELECT identity FROM held_envelope UNION ALL SELECT identity FROM observation_identity"
        )
        assert [row["identity"] for row in rows] == ["e2", "e2"]


async def test_redaction_closes_an_old_ledger_row(pool: Pool) -> None:
    """A room key is in the ledger until it is redacted, also long after its call."""
    service = await Service.open(pool)
    intakes = read("legacy-only")
    for intake in intakes:
        await service.take(intake)
    await service.settle(intakes)
    async with pool.acquire() as conn:
        standing = await totals.room_keys_in_history(conn)
        key = await conn.fetchrow("SELECT event_id, room_id FROM history_ledger JOIN room USING (room_key) LIMIT 1")
    assert key is not None
    at = service.now + timedelta(days=5)
    body = Redaction(sender=UserId("@a:lab.test"), redacts=EventId(key["event_id"]))
    redaction = Observation(
        homeserver=HOMESERVER, room_id=key["room_id"], identity="$r", event_at=at, received_at=at, body=body
    )

    await service.take(Intake(observations=[redaction], newest_at=at))
    await service.project()

    async with pool.acquire() as conn:
        assert await totals.room_keys_in_history(conn) == standing - 1


async def test_run_projector_until_stopped(pool: Pool) -> None:
    """The loop makes partitions, projects what comes, and ends when told."""
    service = await Service.open(pool)
    stop, started = asyncio.Event(), asyncio.Event()

    def tell(_call: CallSession, _settled: Sequence[Finding], _first_time: bool) -> Sequence[OutboxRow]:
        started.set()
        return ()

    projector = replace(service.projector, events=tell)
    task = asyncio.create_task(run_projector(pool, projector, stop, lambda: service.now))
    for intake in read("legacy-only"):
        await service.take(intake)
    async with asyncio.timeout(30):
        await started.wait()
        stop.set()
        await task

    assert len(await service.calls()) == 1
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM observation_default") == 0
        assert await conn.fetchval("SELECT count(*) FROM observation") > 0


async def test_replay_tells_how_many_rooms_failed(pool: Pool) -> None:
    """A room with an observation that cannot be read does not count as projected, and stops nothing."""
    service = await Service.open(pool)
    for scenario in ("smart-switch", "legacy-only"):
        for intake in read(scenario):
            await service.take(intake)
        await service.project()
    whole = await replay(pool, service.projector, service.now)
    await pool.execute("UPDATE observation SET body = '{}' WHERE room_key = (SELECT min(room_key) FROM observation)")
    broken = await replay(pool, service.projector, service.now)

    assert 0 == whole.failed
    assert (whole.projected - 1, 1) == (broken.projected, broken.failed)
