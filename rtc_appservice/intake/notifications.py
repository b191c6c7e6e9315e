"""
Stage 1: posts notices to the operator's room, as the service's own user: splits of live calls, readiness once a week.

It works on what projection stored and is waited for by nobody. What was posted is remembered in the database. Between
the post and that, a crash may fall: the Matrix transaction id derives from the notice, so a homeserver that is sent
the notice again answers with the event it has (Synapse remembers the ids in memory, for 30 minutes).
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

import aiohttp
from mautrix.api import Method, Path
from mautrix.errors import MatrixError, MNotFound
from mautrix.types import UserID

from rtc_appservice.core import notices
from rtc_appservice.core.notices import Notice
from rtc_appservice.core.platform import with_platforms
from rtc_appservice.core.readiness import assess
from rtc_appservice.errors import RtcAppserviceError, StoreUnavailable
from rtc_appservice.intake.background import wait_after, work_until
from rtc_appservice.intake.client_api import client_api, register
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.transaction import now_utc
from rtc_appservice.store.device_facts import load_platforms
from rtc_appservice.store.notices import mark_posted, posted_about, split_calls
from rtc_appservice.store.pool import WORK_SECONDS, Pool, lend
from rtc_appservice.store.sessions import load_calls

_log = logging.getLogger("rtc_appservice.intake")

LOOK_SECONDS = 5.0
#: The longest wait after failures, each of which doubles it: soon enough for who has just invited the service's user.
MAX_WAIT_SECONDS = 300.0
TIMEOUT_SECONDS = 15.0

#: Posts a notice, or fails with one of `_FAILURES` or `RoomEncrypted`.
Post = Callable[[Notice], Awaitable[None]]
_FAILURES = (StoreUnavailable, MatrixError, aiohttp.ClientError, OSError, ValueError)


class RoomEncrypted(RtcAppserviceError):
    """The room is encrypted, and the service posts in clear only."""


def posting(address: str, as_token: str, session: aiohttp.ClientSession, user_id: str, room: str) -> Post:
    """Give a function that enters a room (id or alias) as `user_id` and posts there, unless the room is encrypted."""
    plain_api = client_api(address, as_token, session)
    user_api = client_api(address, as_token, session, as_user_id=UserID(user_id))

    async def post(notice: Notice) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await register(plain_api, UserID(user_id))
            entered = await user_api.request(Method.POST, Path.v3.join[room], {})
            room_id = entered.get("room_id") if isinstance(entered, dict) else None
            if not isinstance(room_id, str):
                raise ValueError("the homeserver's answer names no room")
            with suppress(MNotFound):
                await user_api.request(Method.GET, Path.v3.rooms[room_id].state["m.room.encryption"])
                raise RoomEncrypted
            content = {"msgtype": "m.notice", "body": notice.text, "m.mentions": {}}
            path = Path.v3.rooms[room_id].send["m.room.message"][transaction_id(notice)]
            await user_api.request(Method.PUT, path, content)

    return post


def transaction_id(notice: Notice) -> str:
    """Give the Matrix transaction id of a notice, the same each time."""
    return "rtc-notice-" + hashlib.sha256(notice.notice_id.encode()).hexdigest()[:32]


async def post_due(pool: Pool, homeserver_id: int, post: Post, now: datetime, *, weekly_target: float | None) -> int:
    """
    Post what is due and was not posted before; give how many. No connection is held while posting.

    `weekly_target` is what the weekly summary of readiness is judged by; None: there is none.
    """
    async with lend(pool, WORK_SECONDS) as conn:
        calls = await split_calls(conn, homeserver_id)
        subjects = [*(call.call_id for call in calls), notices.week_of(now)]
        posted = await posted_about(conn, homeserver_id, subjects)
    due = notices.alarms(calls, posted)
    if weekly_target is not None and notices.weekly_id(now) not in posted:
        due.append(await _summary(pool, homeserver_id, now, weekly_target))
    for notice in due:
        await post(notice)
        async with lend(pool, WORK_SECONDS) as conn:
            await mark_posted(conn, homeserver_id, notice.notice_id, now)
    return len(due)


async def _summary(pool: Pool, homeserver_id: int, now: datetime, target: float) -> Notice:
    async with lend(pool, WORK_SECONDS) as conn:
        calls = await load_calls(conn, now - notices.SUMMARY_SPAN, homeserver_id)
        calls = with_platforms(calls, await load_platforms(conn, homeserver_id))
    # Weeks of calls take a while to go through; intake goes on meanwhile.
    return notices.weekly(await asyncio.to_thread(assess, calls, now, target), len(calls), now)


async def run_notifications(
    pool: Pool,
    homeserver_id: int,
    post: Post,
    stop: asyncio.Event,
    *,
    weekly_target: float | None,
    clock: Callable[[], datetime] = now_utc,
) -> None:
    """Post until `stop` is set, less and less often while it fails; a request under way is given up then."""
    await work_until(stop, _keep_looking(pool, homeserver_id, post, weekly_target, clock))


async def _keep_looking(
    pool: Pool, homeserver_id: int, post: Post, weekly_target: float | None, clock: Callable[[], datetime]
) -> None:
    failures = 0
    while True:
        seconds = LOOK_SECONDS
        try:
            await post_due(pool, homeserver_id, post, clock(), weekly_target=weekly_target)
            failures = 0
        except RoomEncrypted:
            _log.warning("notifications.room_id is an encrypted room: nothing is posted; give an unencrypted one")
            return
        except _FAILURES as error:
            seconds = wait_after(failures, first=LOOK_SECONDS, longest=MAX_WAIT_SECONDS)
            failures += 1
            hint = "is notifications.room_id a room, and is the registration's sender invited there?"
            _log.warning(
                "notices could not be posted", extra={**describe(error), "retry_seconds": seconds, "hint": hint}
            )
        await asyncio.sleep(seconds)
