"""Partitions are made ahead and dropped after their time; rows that came before their partition move into it."""

import asyncio
from datetime import UTC, datetime, timedelta

from rtc_appservice.core.observed import Observation, RoomState
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId, ServerName, UserId
from rtc_appservice.store.observations import load_room, record
from rtc_appservice.store.partitions import maintain
from rtc_appservice.store.pool import Connection, Pool
from rtc_appservice.store.rooms import RoomCache
from rtc_appservice.store.streams import open_stream

HOMESERVER = ServerName("lab.test")
ROOM = RoomId("!room:lab.test")
#: A Monday.
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def state(identity: str, event_type: str, at: datetime) -> Observation:
    """Give an observation of the room's state."""
    body = RoomState(sender=UserId("@a:lab.test"), event_type=event_type, state_key="", value="v")
    return Observation(homeserver=HOMESERVER, room_id=ROOM, identity=identity, event_at=at, received_at=at, body=body)


async def partition_of(conn: Connection, identity: str) -> str | None:
    """Give the partition an observation lies in."""
    found: str | None = await conn.fetchval(
        "SELECT tableoid::regclass::text FROM observation WHERE identity = $1", identity
    )
    return found


async def test_partitions_are_made_ahead_once(conn: Connection) -> None:
    """The partitions of now and the next four weeks are there after the first round; the second has nothing to do."""
    first = await maintain(conn, NOW)
    second = await maintain(conn, NOW)

    assert first == [
        "observation_p20261123",
        "observation_p20261130",
        "observation_p20261207",
        "observation_p20261214",
        "observation_p20261221",
        "call_session_p20261101",
        "call_session_p20261201",
        "finding_p20261101",
        "finding_p20261201",
    ]
    assert second == []


async def test_rows_move_from_the_default(conn: Connection) -> None:
    """A row stored before its partition existed lies in it afterwards, and is found as before."""
    homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    rooms = RoomCache()
    early, other = state("$early", "m.room.member", NOW), state("$other", "m.room.member", NOW - timedelta(days=7))
    await record(conn, homeserver_id, Intake(observations=[early, other]), rooms)
    before = await partition_of(conn, "$early")

    await maintain(conn, NOW)

    assert before == "observation_default"
    assert await partition_of(conn, "$early") == "observation_p20261123"
    assert await partition_of(conn, "$other") == "observation_default"
    room = rooms.get(ROOM)
    assert room is not None
    assert await load_room(conn, HOMESERVER, ROOM, room.room_key, NOW - timedelta(days=8)) == [other, early]


async def test_retention_drops_partitions_but_not_the_rooms_state(conn: Connection) -> None:
    """After 35 days a week of observations is dropped; that a room was created and encrypted is still known."""
    homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    rooms = RoomCache()
    await maintain(conn, NOW)
    create, member = state("$create", "m.room.create", NOW), state("$member", "m.room.member", NOW)
    await record(conn, homeserver_id, Intake(observations=[create, member]), rooms)

    kept = await maintain(conn, NOW + timedelta(days=41))
    dropped = await maintain(conn, NOW + timedelta(days=42))

    assert "observation_p20261123" not in kept
    assert "observation_p20261123" in dropped
    room = rooms.get(ROOM)
    assert room is not None
    assert await load_room(conn, HOMESERVER, ROOM, room.room_key, NOW + timedelta(days=40)) == [create]
    assert await load_room(conn, HOMESERVER, ROOM, room.room_key, NOW - timedelta(days=40)) == [create]
    assert await conn.fetchval("SELECT count(*) FROM observation_identity") == 0


async def test_default_partition_is_pruned(conn: Connection) -> None:
    """Rows that never had a partition do not outlive retention either."""
    homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    await record(conn, homeserver_id, Intake(observations=[state("$member", "m.room.member", NOW)]), RoomCache())

    await maintain(conn, NOW + timedelta(days=36))

    assert await conn.fetchval("SELECT count(*) FROM observation") == 0


async def test_many_at_once_and_a_reader(pool: Pool) -> None:
    """Replicas that maintain at once, beside an open reader, neither fail nor wait for ever."""
    async with pool.acquire() as reader, reader.transaction():
        await reader.fetchval("SELECT count(*) FROM observation WHERE event_at > $1", NOW + timedelta(days=1))

        async def work() -> list[str]:
            async with pool.acquire() as conn:
                return await maintain(conn, NOW)

        async with asyncio.timeout(120):
            await asyncio.gather(*(work() for _ in range(3)))

    async with pool.acquire() as conn:
        await maintain(conn, NOW)
        assert await maintain(conn, NOW) == []


async def test_attaching_does_not_fail_a_transaction_under_way(pool: Pool) -> None:
    """Transactions recorded while the partition of their time is attached are all taken, once."""
    async with pool.acquire() as conn:
        homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    rooms = RoomCache()

    async def send(turn: int) -> None:
        for n in range(50):
            intake = Intake(observations=[state(f"${turn}-{n}", "m.room.member", NOW)])
            async with pool.acquire() as conn:
                await record(conn, homeserver_id, intake, rooms)

    async def attach() -> None:
        async with pool.acquire() as conn:
            await maintain(conn, NOW)

    await asyncio.gather(send(1), send(2), attach(), send(3), send(4))

    async with pool.acquire() as conn:
        await maintain(conn, NOW)
        assert await conn.fetchval("SELECT count(*) FROM observation_p20261123") == 200
