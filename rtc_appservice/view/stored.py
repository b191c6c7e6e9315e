"""Stage 7: the report over what is in the database."""

import asyncio
from datetime import datetime

from rtc_appservice.core.model import Report
from rtc_appservice.core.platform import with_platforms
from rtc_appservice.core.readiness import TARGET
from rtc_appservice.core.report import build_report
from rtc_appservice.core.words import ServerName
from rtc_appservice.errors import InputError
from rtc_appservice.store.device_facts import load_platforms
from rtc_appservice.store.findings import load_of_rooms
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.homeservers import load_homeservers
from rtc_appservice.store.pool import Pool, store_errors
from rtc_appservice.store.sessions import load_calls
from rtc_appservice.store.totals import room_keys_in_history


async def read_report(
    pool: Pool, *, since: datetime | None, homeserver: str | None, now: datetime, target: float = TARGET
) -> Report:
    """
    Give the report over the calls and gaps since a time (None: all there are) and the room keys in history now.

    `target` is the share of calls that must be all to-device to be ready.

    Raises:
        InputError: if no transaction ever came from the homeserver that is asked for (None asks for all).
    """
    with store_errors():
        async with pool.acquire() as conn:
            known = await load_homeservers(conn)
            if homeserver is not None and homeserver not in known:
                names = ", ".join(known) or "none yet"
                raise InputError(f"There is nothing from {homeserver} in the database; homeservers seen: {names}")
            homeserver_id = None if homeserver is None else known[ServerName(homeserver)]
            calls = await load_calls(conn, since, homeserver_id)
            calls = with_platforms(calls, await load_platforms(conn, homeserver_id))
            gaps = await load_gaps(conn, homeserver_id, since)
            findings = await load_of_rooms(conn, since, homeserver_id)
            standing = await room_keys_in_history(conn, homeserver_id)
    # Weeks of calls take a while to go through; intake goes on meanwhile.
    return await asyncio.to_thread(
        build_report, calls, gaps=gaps, room_keys_in_history=standing, now=now, findings=findings, target=target
    )
