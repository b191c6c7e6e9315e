"""What the homeserver says of call devices: whom to ask, what is kept, what a report makes of it."""

from datetime import UTC, datetime, timedelta

import pytest

from rtc_appservice.core.words import Device, DeviceId, Platform, ServerName, UserId
from rtc_appservice.store import partitions
from rtc_appservice.store.device_facts import DeviceFact, due_devices, load_platforms, write_facts
from rtc_appservice.store.pool import Connection

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOMESERVER = ServerName("lab.test")
ANN: Device = (UserId("@ann:lab.test"), DeviceId("PHONE"))
BEN: Device = (UserId("@ben:lab.test"), DeviceId("LAPTOP"))


@pytest.fixture
async def homeserver_id(conn: Connection) -> int:
    """Give a homeserver whose calls two devices took part in, one of them twice."""
    number: int = await conn.fetchval("INSERT INTO homeserver (name) VALUES ($1) RETURNING homeserver_id", HOMESERVER)
    await conn.executemany(
        "INSERT INTO stint (room_key, call_id, user_id, device_id, joined_at, homeserver_id, slot_id)"
        " VALUES (1, $1, $2, $3, $4, $5, 's')",
        [(call, *device, NOON, number) for call, device in (("1", ANN), ("2", ANN), ("2", BEN))],
    )
    return number


def fact(device: Device, platform: Platform, cross_signed: bool | None = None) -> DeviceFact:
    """Give a fact."""
    return DeviceFact(user_id=device[0], device_id=device[1], platform=platform, cross_signed=cross_signed)


async def test_each_device_is_asked_for_once_a_day(conn: Connection, homeserver_id: int) -> None:
    """Whoever was never asked for comes first; then whoever was asked for longest ago."""
    assert [ANN, BEN] == await due_devices(conn, homeserver_id, NOON - DAY, 10)

    await write_facts(conn, homeserver_id, [fact(ANN, Platform.UNKNOWN)], NOON)

    assert [BEN] == await due_devices(conn, homeserver_id, NOON - DAY, 10)
    assert [BEN, ANN] == await due_devices(conn, homeserver_id, NOON + timedelta(seconds=1), 10)
    assert [BEN] == await due_devices(conn, homeserver_id, NOON + timedelta(seconds=1), 1)
    assert [] == await due_devices(conn, homeserver_id + 1, NOON, 10)


async def test_what_is_not_told_any_more_stays(conn: Connection, homeserver_id: int) -> None:
    """A device that logged out keeps its platform; a new name replaces it."""
    await write_facts(conn, homeserver_id, [fact(ANN, Platform.IOS, True), fact(BEN, Platform.WEB, True)], NOON)
    await write_facts(
        conn, homeserver_id, [fact(ANN, Platform.UNKNOWN), fact(BEN, Platform.DESKTOP, False)], NOON + DAY
    )

    rows = await conn.fetch("SELECT platform, cross_signed, fetched_at FROM device_fact ORDER BY user_id")
    assert [("ios", True, NOON + DAY), ("desktop", False, NOON + DAY)] == [tuple(row) for row in rows]


async def test_platforms_by_homeserver(conn: Connection, homeserver_id: int) -> None:
    """A device is known to each homeserver by itself."""
    await write_facts(conn, homeserver_id, [fact(ANN, Platform.IOS), fact(BEN, Platform.OTHER)], NOON)

    known = await load_platforms(conn)

    assert {(HOMESERVER, *ANN): Platform.IOS, (HOMESERVER, *BEN): Platform.OTHER} == known
    assert known == await load_platforms(conn, homeserver_id)
    assert {} == await load_platforms(conn, homeserver_id + 1)


async def test_facts_end(conn: Connection, homeserver_id: int) -> None:
    """What was not asked for again is dropped when no report needs it."""
    await write_facts(conn, homeserver_id, [fact(ANN, Platform.IOS)], NOON - partitions.DEVICE_FACT_RETENTION - DAY)
    await write_facts(conn, homeserver_id, [fact(BEN, Platform.WEB)], NOON)

    await partitions.maintain(conn, NOON)

    assert {(HOMESERVER, *BEN): Platform.WEB} == await load_platforms(conn)
