"""How the work is going, as the metrics page tells it."""

from datetime import UTC, datetime, timedelta

import pytest

from rtc_appservice.core.words import ServerName
from rtc_appservice.store.condition import HomeserverCondition, PartitionCondition, covered_until, load_condition
from rtc_appservice.store.partitions import TABLES, maintain
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.streams import heartbeat, open_stream

#: A Monday.
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOMESERVER = ServerName("lab.test")


def day(number: int) -> datetime:
    """Give a day relative to now."""
    return NOW + timedelta(days=number)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([], None),
        ([(-2, -1)], None),
        ([(1, 2)], None),
        ([(-1, 0)], None),
        ([(0, 1)], 1),
        ([(-1, 1), (1, 2)], 2),
        ([(1, 2), (-1, 1)], 2),
        ([(-3, -1), (-1, 1), (2, 3)], 1),
    ],
)
def test_reach_ends_at_the_first_hole(bounds: list[tuple[int, int]], expected: int | None) -> None:
    """What counts is how far partitions follow each other from now on, whatever their order in the catalogue."""
    found = covered_until([(day(begin), day(end)) for begin, end in bounds], NOW)

    assert (None if expected is None else day(expected)) == found


async def test_nothing_yet(conn: Connection) -> None:
    """A homeserver that was only opened has no watermark and no work; without partitions nothing is covered."""
    await open_stream(conn, HOMESERVER)
    found = await load_condition(conn, NOW)

    assert (HomeserverCondition(homeserver=HOMESERVER),) == found.homeservers
    assert tuple(PartitionCondition(table=each.table, covered_until=None, default_in_use=False) for each in TABLES) == (
        found.partitions
    )


async def add_observation(conn: Connection, at: datetime) -> None:
    """Write a row of `observation`."""
    await conn.execute(
        "INSERT INTO observation VALUES (1, $1, $2, 1, 'room_state', $1, false, '{}')", at, f"${at.isoformat()}"
    )


async def test_default_partition_in_use(conn: Connection) -> None:
    """A row in the default partition tells once no partition holds now; what retention keeps there never does."""
    await add_observation(conn, day(-100))
    await maintain(conn, NOW)
    ahead = await load_condition(conn, NOW)
    long_after = day(60)
    behind = await load_condition(conn, long_after)
    await add_observation(conn, long_after)
    in_use = await load_condition(conn, long_after)

    assert [datetime(2026, 12, 28, tzinfo=UTC)] + 2 * [datetime(2027, 1, 1, tzinfo=UTC)] == [
        each.covered_until for each in ahead.partitions
    ]
    assert [False] * 3 == [each.default_in_use for each in ahead.partitions]
    assert [None] * 3 == [each.covered_until for each in behind.partitions]
    assert [False] * 3 == [each.default_in_use for each in behind.partitions]
    assert [True, False, False] == [each.default_in_use for each in in_use.partitions]


async def test_work_of_a_homeserver(conn: Connection) -> None:
    """Members and splits of calls going on, rooms with news and the watermark are each homeserver's own."""
    stream = await open_stream(conn, HOMESERVER)
    await open_stream(conn, ServerName("other.test"))
    hs = stream.homeserver_id
    await heartbeat(conn, hs, NOW, day(-1))
    for call, ended_at in (("live", None), ("over", NOW)):
        await conn.execute(
            "INSERT INTO call_session VALUES (1, $1, $2, $3, 's', $4, 'mixed', 'direct', false, '{}')",
            NOW,
            call,
            hs,
            ended_at,
        )
        await conn.execute(
            """
            INSERT INTO finding VALUES (1, $1, gen_random_uuid(), $2, $3, 'split_call', 'open', '{}'),
                                       (1, $1, gen_random_uuid(), $2, $3, 'fallback', 'open', '{}')
            """,
            NOW,
            hs,
            call,
        )
        for device, left_at in (("A", None), ("B", NOW), ("C", None)):
            await conn.execute(
                "INSERT INTO stint VALUES (1, $1, '@u', $2, $3, $4, 's', $5)", call, device, NOW, hs, left_at
            )
    for room, hours in ((1, 1), (1, 3), (2, 2)):
        await conn.execute(
            "INSERT INTO dirty_room (room_key, homeserver_id, event_at) VALUES ($1, $2, $3)",
            room,
            hs,
            NOW - timedelta(hours=hours),
        )

    found = await load_condition(conn, NOW)

    assert (
        HomeserverCondition(
            homeserver=HOMESERVER,
            watermark_at=day(-1),
            rtc_members_active=2,
            calls_split_active=1,
            rooms_pending=2,
            oldest_pending_at=NOW - timedelta(hours=3),
        ),
        HomeserverCondition(homeserver=ServerName("other.test")),
    ) == found.homeservers
