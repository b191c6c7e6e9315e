"""What is due is posted once, whatever fails in between."""

import asyncio
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from rtc_appservice.core.model import CallSession
from rtc_appservice.core.notices import Notice
from rtc_appservice.intake import notifications
from rtc_appservice.intake.notifications import post_due, run_notifications, transaction_id
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.sessions import write_calls
from tests.core.build import Scene, modern
from tests.view.page_server import fill

MONDAY = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Room:
    """Where notices end up; it refuses the first few."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.notices: list[Notice] = []

    async def post(self, notice: Notice) -> None:
        """Take a notice, or fail as a homeserver that is down."""
        if self.refuses:
            self.refuses -= 1
            raise aiohttp.ClientConnectionError
        self.notices.append(notice)


def going_on() -> CallSession:
    """Give a call that is split."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10, modern("bob"))
    scene.to_device("alice", "bob", 10.1, variant="to_device_40")
    scene.to_device("bob", "alice", 10.1, variant="to_device_40")
    scene.room_key("bob", 20, padded=True)
    return scene.session()


async def with_call(pool: Pool, call: CallSession) -> int:
    """Store a call as projection does, and give the homeserver's number."""
    homeserver_id: int = await pool.fetchval("INSERT INTO homeserver (name) VALUES ('hs') RETURNING homeserver_id")
    await pool.execute("INSERT INTO homeserver (name) VALUES ('other')")
    async with pool.acquire() as conn:
        await write_calls(conn, homeserver_id, 1, [call])
    return homeserver_id


async def test_once_each(pool: Pool) -> None:
    """A split is posted once, the summary once a ISO week and only where asked for; other homeservers are not told."""
    homeserver_id = await with_call(pool, going_on())
    room = Room()
    weekless = await post_due(pool, homeserver_id, room.post, MONDAY, weekly_target=None)
    counts = [
        await post_due(pool, homeserver_id, room.post, MONDAY + timedelta(days=days), weekly_target=0.99)
        for days in (0, 1, 6, 7, 8)
    ]
    of_other = await post_due(pool, homeserver_id + 1, room.post, MONDAY, weekly_target=None)

    assert (1, [1, 0, 0, 1, 0], 0) == (weekless, counts, of_other)
    kinds = [notice.notice_id.partition("/")[0] for notice in room.notices]
    assert ["split_call", "weekly", "weekly"] == kinds
    assert 3 == len({transaction_id(notice) for notice in room.notices})


async def test_the_summary_names_the_target(pool: Pool) -> None:
    """It is the operator's."""
    await fill(pool, ["todevice-only"])
    homeserver_id, started_at = await pool.fetchrow("SELECT homeserver_id, started_at FROM call_session") or (0, MONDAY)
    room = Room()
    await post_due(pool, homeserver_id, room.post, started_at, weekly_target=0.9)

    (notice,) = room.notices
    assert "target 90.0%" in notice.text


async def test_a_refused_post_is_tried_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is posted later, less and less often tried; `stop` ends it."""
    monkeypatch.setattr(notifications, "LOOK_SECONDS", 0.01)
    homeserver_id = await with_call(pool, going_on())
    room, stop = Room(refuses=3), asyncio.Event()
    posting = asyncio.ensure_future(
        run_notifications(pool, homeserver_id, room.post, stop, weekly_target=0.99, clock=lambda: MONDAY)
    )
    async with asyncio.timeout(20):
        while await pool.fetchval("SELECT count(*) FROM notice") < 2:
            await asyncio.sleep(0.01)
        stop.set()
        await posting

    assert (0, 2) == (room.refuses, len(room.notices))
