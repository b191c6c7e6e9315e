"""Stage 3: the homeservers that transactions came from."""

from rtc_appservice.core.words import ServerName
from rtc_appservice.store.pool import Connection


async def load_homeservers(conn: Connection) -> dict[ServerName, int]:
    """Give every homeserver in the database with the number that stands for it, by name."""
    rows = await conn.fetch("SELECT name, homeserver_id FROM homeserver ORDER BY name")
    return {ServerName(row["name"]): row["homeserver_id"] for row in rows}
