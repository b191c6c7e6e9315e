"""Observations are taken exactly once, whatever comes twice, at once, or half."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from rtc_appservice.core.observed import HeldEnvelope, Observation, OlmEnvelope, Redaction, RoomState
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import DeviceId, EventId, RoomId, ServerName, UserId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.store.observations import Recorded, load_room, record
from rtc_appservice.store.pool import Connection, Pool, open_pool, store_errors
from rtc_appservice.store.rooms import RoomCache, watched_rooms
from rtc_appservice.store.streams import heartbeat, open_stream

HOMESERVER = ServerName("lab.test")
ROOM = RoomId("!room:lab.test")
OTHER = RoomId("!other:lab.test")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ALICE = UserId("@alice:lab.test")


def seconds(count: float) -> datetime:
    """Give a time after noon."""
    return NOON + timedelta(seconds=count)


def redaction(identity: str, at: datetime = NOON, room_id: RoomId = ROOM) -> Observation:
    """Give an observation under an identity."""
    return Observation(
        homeserver=HOMESERVER,
        room_id=room_id,
        identity=identity,
        event_at=at,
        received_at=at,
        body=Redaction(sender=ALICE, redacts=EventId("$key")),
    )


def envelope(identity: str, at: datetime = NOON) -> HeldEnvelope:
    """Give an envelope from alice to bob under an identity."""
    body = OlmEnvelope(
        sender=ALICE,
        recipient=UserId("@bob:lab.test"),
        recipient_device=DeviceId("BOB"),
        olm_type=0,
        body_length=1400,
        sender_key_id="00",
    )
    return HeldEnvelope(homeserver=HOMESERVER, identity=identity, received_at=at, body=body)


async def test_new_and_duplicates(conn: Connection) -> None:
    """What comes again, alone or among news, or twice in one transaction, is counted and not stored."""
    stream = await open_stream(conn, HOMESERVER)
    rooms = RoomCache()
    first = Intake(observations=[redaction("$a"), redaction("$b")], envelopes=[envelope("e1")], rtc_rooms={ROOM})
    second = Intake(
        observations=[redaction("$c", room_id=OTHER), redaction("$b"), redaction("$c", room_id=OTHER)],
        envelopes=[envelope("e1"), envelope("e2")],
        rtc_rooms={ROOM, OTHER},
    )

    results = [await record(conn, stream.homeserver_id, intake, rooms) for intake in (first, first, second)]

    assert [Recorded(3, 0), Recorded(0, 3), Recorded(2, 3)] == results
    stored = await conn.fetch("SELECT room_id, identity FROM observation JOIN room USING (room_key) ORDER BY 2")
    expected = [(ROOM, "$a"), (ROOM, "$b"), (OTHER, "$c")]
    assert expected == [tuple(row) for row in stored]
    held = await conn.fetch("SELECT identity, sender, recipient_device FROM held_envelope ORDER BY 1")
    assert [tuple(row) for row in held] == [("e1", ALICE, "BOB"), ("e2", ALICE, "BOB")]
    assert {ROOM, OTHER} == await watched_rooms(conn, stream.homeserver_id)


async def test_marks_only_rooms_with_news(conn: Connection) -> None:
    """A room is marked once a transaction that brought it something new, with the oldest new event."""
    stream = await open_stream(conn, HOMESERVER)
    rooms = RoomCache()
    intake = Intake(observations=[redaction("$b", seconds(5)), redaction("$a", seconds(2))])

    await record(conn, stream.homeserver_id, intake, rooms)
    await record(conn, stream.homeserver_id, intake, rooms)

    marks = await conn.fetch("SELECT event_at FROM dirty_room")
    assert [seconds(2)] == [row["event_at"] for row in marks]


async def test_watermark_never_goes_back(conn: Connection) -> None:
    """The stream keeps its greatest watermark, from transactions and heartbeats, also over a reopening."""
    stream = await open_stream(conn, HOMESERVER)
    assert stream.watermark_at is None
    rooms = RoomCache()

    await record(conn, stream.homeserver_id, Intake(observations=[redaction("$a")], newest_at=seconds(9)), rooms)
    await record(conn, stream.homeserver_id, Intake(observations=[redaction("$b")], newest_at=seconds(3)), rooms)
    await heartbeat(conn, stream.homeserver_id, seconds(20), seconds(8))
    await record(conn, stream.homeserver_id, Intake(observations=[redaction("$c", seconds(4))]), rooms)

    state = await open_stream(conn, HOMESERVER)
    expected = (stream.homeserver_id, seconds(9), seconds(4), seconds(20))
    assert expected == (
        state.homeserver_id,
        state.watermark_at,
        state.last_transaction_at,
        state.last_heartbeat_at,
    )


async def test_two_connections_with_the_same_transaction(pool: Pool) -> None:
    """The same transaction on many connections at once, rooms unknown to all, is stored once; none deadlocks."""
    async with pool.acquire() as conn:
        homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id

    async def send(turn: int) -> Recorded:
        observations = [redaction(f"${i}", room_id=(ROOM, OTHER)[i % 2]) for i in range(50)]
        if turn % 2:
            observations.reverse()
        async with pool.acquire() as conn:
            return await record(conn, homeserver_id, Intake(observations=observations), RoomCache())

    results = await asyncio.gather(*(send(turn) for turn in range(16)))

    assert (sum(r.new for r in results), sum(r.duplicates for r in results)) == (50, 50 * 15)
    async with pool.acquire() as conn:
        assert await conn.fetchval("SELECT count(*) FROM observation") == 50
        assert await conn.fetchval("SELECT count(*) FROM room") == 2


async def test_crash_before_commit_leaves_nothing(pool: Pool) -> None:
    """A connection lost before its commit leaves nothing; the same transaction again is all new."""
    async with pool.acquire() as conn:
        homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    rooms = RoomCache()
    intake = Intake(observations=[redaction("$a")], rtc_rooms={ROOM})
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await record(conn, homeserver_id, intake, rooms)
        conn.terminate()

    async with pool.acquire() as conn:
        assert rooms.get(ROOM) is None  # a key that was never committed is not remembered
        assert Recorded(1, 0) == await record(conn, homeserver_id, intake, rooms)
        assert rooms.get(ROOM) is not None


async def test_a_locked_stream_does_not_block(pool: Pool) -> None:
    """While another transaction of the homeserver is being committed, this one commits too."""
    async with pool.acquire() as conn:
        homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    rooms = RoomCache()
    async with pool.acquire() as slow, slow.transaction(), pool.acquire() as quick:
        await record(slow, homeserver_id, Intake(observations=[redaction("$a")], newest_at=NOON), rooms)
        other = Intake(observations=[redaction("$b", room_id=OTHER)], newest_at=NOON)
        async with asyncio.timeout(10):
            assert Recorded(1, 0) == await record(quick, homeserver_id, other, rooms)


async def test_load_room_gives_the_window_and_earlier_state(conn: Connection) -> None:
    """A room is read from a time on, with the state set before it, in order; members from before are left out."""
    stream = await open_stream(conn, HOMESERVER)
    rooms = RoomCache()

    def state(identity: str, event_type: str, at: datetime) -> Observation:
        body = RoomState(sender=ALICE, event_type=event_type, state_key="", value="v")
        return Observation(
            homeserver=HOMESERVER, room_id=ROOM, identity=identity, event_at=at, received_at=at, body=body
        )

    observations = [
        redaction("$d", seconds(20)),
        redaction("$c", seconds(10)),
        redaction("$b", seconds(2)),
        state("$a", "m.room.create", seconds(1)),
        state("$m", "m.room.member", seconds(1)),
        redaction("$elsewhere", seconds(15), OTHER),
    ]
    await record(conn, stream.homeserver_id, Intake(observations=observations), rooms)
    room = rooms.get(ROOM)
    assert room is not None

    loaded = await load_room(conn, HOMESERVER, ROOM, room.room_key, seconds(10))

    assert [observations[3], observations[1], observations[0]] == loaded


async def test_a_row_without_partition_goes_to_the_default(conn: Connection) -> None:
    """No time is without a partition."""
    stream = await open_stream(conn, HOMESERVER)

    await record(conn, stream.homeserver_id, Intake(observations=[redaction("$a")]), RoomCache())

    assert await conn.fetchval("SELECT count(*) FROM observation_default") == 1


async def test_driver_errors_say_nothing_of_the_row(conn: Connection) -> None:
    """Whatever the driver says about values is gone from the whole chain of errors; the SQLSTATE stays."""
    for statement, arguments in (
        ("INSERT INTO homeserver (homeserver_id, name) OVERRIDING SYSTEM VALUE VALUES (1, $1), (1, $1)", ["planted"]),
        ("INSERT INTO homeserver (name) VALUES ($1)", [b"planted"]),
        ("SELECT $1::text::jsonb", ['{"planted": planted}']),
    ):
        with pytest.raises(StoreUnavailable) as caught, store_errors():
            await conn.execute(statement, *arguments)

        error: BaseException | None = caught.value
        while error is not None:
            assert "planted" not in f"{error} {error!r} {vars(error)}"
            error = error.__cause__ or error.__context__


async def test_no_database_is_store_unavailable() -> None:
    """A database that is not there is our error, not the driver's."""
    with pytest.raises(StoreUnavailable):
        await open_pool("postgresql://postgres@/postgres?host=/nonexistent", 1)
