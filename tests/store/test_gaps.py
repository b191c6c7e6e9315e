"""Gaps are rows: they open, close, and are found by the reports they touch."""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, RoomId, ServerName
from rtc_appservice.store.gaps import load_gaps, record_gaps
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.rooms import allocate_rooms
from rtc_appservice.store.streams import open_stream

HOMESERVER = ServerName("lab.test")
ROOM = RoomId("!room:lab.test")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


async def test_gaps_open_and_close(conn: Connection) -> None:
    """A gap written again with its end is closed; written without, it does not open again."""
    homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id
    await allocate_rooms(conn, homeserver_id, {ROOM}, set(), NOON)
    down = Gap(gap_id="1", homeserver=HOMESERVER, reason=GapReason.SERVICE_DOWN, started_at=NOON, ended_at=None)
    late = Gap(
        gap_id="2",
        homeserver=HOMESERVER,
        reason=GapReason.ROOM_JOINED_LATE,
        started_at=None,
        ended_at=NOON + HOUR,
        room_id=ROOM,
    )
    closed = replace(down, ended_at=NOON + 2 * HOUR)

    await record_gaps(conn, homeserver_id, [down, late])
    opened = await load_gaps(conn, homeserver_id, None)
    await record_gaps(conn, homeserver_id, [closed])
    await record_gaps(conn, homeserver_id, [down])

    assert [late, down] == opened
    assert [late, closed] == await load_gaps(conn, None, None)
    assert [closed] == await load_gaps(conn, homeserver_id, NOON + 1.5 * HOUR)
    assert [late, closed] == await load_gaps(conn, homeserver_id, NOON, ROOM)
    assert [closed] == await load_gaps(conn, homeserver_id, NOON, RoomId("!elsewhere:lab.test"))
    assert await load_gaps(conn, homeserver_id + 1, None) == []
