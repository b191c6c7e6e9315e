"""Stage 3: how things stand now: the totals, what goes on, and what waits. Read by the metrics page."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec import Struct, field

from rtc_appservice.core.words import ServerName
from rtc_appservice.store import outbox, totals
from rtc_appservice.store.outbox import Pending
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.totals import Rollup


class HomeserverStanding(Struct, frozen=True, kw_only=True):
    """How one homeserver stands."""

    homeserver: ServerName
    totals: tuple[Rollup, ...] = ()
    calls_active: Mapping[str, int] = field(default_factory=dict)  #: calls going on, by verdict so far
    rooms_watched: int = 0
    gaps: int = 0  #: that reach past the time asked for


class Standing(Struct, frozen=True, kw_only=True):
    """How everything stands."""

    homeservers: tuple[HomeserverStanding, ...]
    outbox: Pending


async def load_standing(conn: Connection, gaps_since: datetime) -> Standing:
    """Give how everything stands; gaps are counted that reach past `gaps_since`."""
    rows = await conn.fetch(
        """
        SELECT name,
            (SELECT jsonb_object_agg(verdict, calls) FROM (
                SELECT verdict, count(*) AS calls FROM call_session c
                WHERE c.homeserver_id = h.homeserver_id AND ended_at IS NULL GROUP BY verdict
             ) live) AS calls_active,
            (SELECT count(*) FROM room WHERE room.homeserver_id = h.homeserver_id AND rtc_seen_at IS NOT NULL)
                AS rooms_watched,
            (SELECT count(*) FROM gap WHERE gap.homeserver_id = h.homeserver_id
                AND (ended_at IS NULL OR ended_at >= $1)) AS gaps
        FROM homeserver h ORDER BY name
        """,
        gaps_since,
    )
    rollups: dict[str, list[Rollup]] = defaultdict(list)
    for rollup in await totals.load(conn):
        rollups[rollup.homeserver].append(rollup)
    homeservers = tuple(
        HomeserverStanding(
            homeserver=ServerName(row["name"]),
            totals=tuple(rollups[row["name"]]),
            calls_active=msgspec.json.decode(row["calls_active"] or "{}", type=dict[str, int]),
            rooms_watched=row["rooms_watched"],
            gaps=row["gaps"],
        )
        for row in rows
    )
    return Standing(homeservers=homeservers, outbox=await outbox.pending(conn))
