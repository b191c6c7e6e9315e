"""Stage 3: how far each homeserver's stream of transactions has come."""

from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.words import ServerName
from rtc_appservice.store.pool import Connection


class StreamState(Struct, frozen=True, kw_only=True):
    """Where a homeserver's stream stands in the database."""

    homeserver_id: int
    watermark_at: datetime | None
    last_transaction_at: datetime | None
    last_heartbeat_at: datetime | None


async def open_stream(conn: Connection, homeserver: ServerName) -> StreamState:
    """Give the state of a homeserver's stream; a homeserver seen for the first time gets its id and an empty one."""
    # Asked first, because a conflict uses up a number of the small id all the same.
    await conn.execute(
        """
        INSERT INTO homeserver (name) SELECT $1 WHERE NOT EXISTS (SELECT FROM homeserver WHERE name = $1)
        ON CONFLICT DO NOTHING
        """,
        homeserver,
    )
    await conn.execute(
        """
        INSERT INTO stream (homeserver_id) SELECT homeserver_id FROM homeserver WHERE name = $1
        ON CONFLICT DO NOTHING
        """,
        homeserver,
    )
    row = await conn.fetchrow(
        """
        SELECT homeserver_id, watermark_at, last_transaction_at, last_heartbeat_at
        FROM stream JOIN homeserver USING (homeserver_id) WHERE name = $1
        """,
        homeserver,
    )
    return StreamState(**dict(row or {}))


async def heartbeat(conn: Connection, homeserver_id: int, at: datetime, watermark_at: datetime | None) -> None:
    """Note that the service lives, and how far it has come; neither ever goes back."""
    await conn.execute(
        """
        UPDATE stream SET last_heartbeat_at = greatest(last_heartbeat_at, $2),
                          watermark_at = greatest(watermark_at, $3)
        WHERE homeserver_id = $1
        """,
        homeserver_id,
        at,
        watermark_at,
    )
