"""Stage 3: what `doctor` looks up; nothing is written."""

from datetime import datetime

import asyncpg

from rtc_appservice.core.words import ServerName
from rtc_appservice.store.pool import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS, Connection, reaching_errors


async def server_version(dsn: str) -> int:
    """Give the version number of a server, as 150004; raise `StoreUnavailable` if it cannot be reached."""
    with reaching_errors():
        conn = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_SECONDS, command_timeout=STATEMENT_TIMEOUT_SECONDS)
        try:
            return int(await conn.fetchval("SELECT current_setting('server_version_num')"))
        finally:
            await conn.close()


async def find_stream(conn: Connection, homeserver: ServerName) -> tuple[int, datetime | None] | None:
    """Give a homeserver's number and when the service last noted that it lives; None if it is not known yet."""
    row = await conn.fetchrow(
        "SELECT homeserver_id, last_heartbeat_at FROM stream JOIN homeserver USING (homeserver_id) WHERE name = $1",
        homeserver,
    )
    return None if row is None else (row["homeserver_id"], row["last_heartbeat_at"])


async def is_held(conn: Connection, homeserver_id: int, identity: str) -> bool:
    """Tell whether an envelope waits to be placed."""
    return bool(
        await conn.fetchval(
            "SELECT EXISTS (SELECT FROM held_envelope WHERE homeserver_id = $1 AND identity = $2)",
            homeserver_id,
            identity,
        )
    )
