"""Stage 1: what the homeserver said of call devices, kept apart from what was observed. No display name is in here."""

from collections.abc import Collection
from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.platform import KnownDevice
from rtc_appservice.core.words import Device, DeviceId, Platform, ServerName, UserId
from rtc_appservice.store.pool import Connection


class DeviceFact(Struct, frozen=True, kw_only=True):
    """What is kept of one device."""

    user_id: UserId
    device_id: DeviceId
    platform: Platform
    cross_signed: bool | None  #: its user's self-signing key signed it, checked; None if that could not be told


async def due_devices(conn: Connection, homeserver_id: int, before: datetime, limit: int) -> list[Device]:
    """Give devices of recent calls that were not asked for since `before`, those never asked for first."""
    rows = await conn.fetch(
        """
        SELECT user_id, device_id
        FROM (SELECT DISTINCT homeserver_id, user_id, device_id FROM stint WHERE homeserver_id = $1) AS seen
        LEFT JOIN device_fact USING (homeserver_id, user_id, device_id)
        WHERE fetched_at IS NULL OR fetched_at < $2
        ORDER BY fetched_at NULLS FIRST, user_id, device_id LIMIT $3
        """,
        homeserver_id,
        before,
        limit,
    )
    return [(UserId(row["user_id"]), DeviceId(row["device_id"])) for row in rows]


async def write_facts(conn: Connection, homeserver_id: int, facts: Collection[DeviceFact], at: datetime) -> None:
    """
    Write facts as of now. What is not told any more stays: a device that logged out was what it was.

    Of a device that is in no recent call nothing is written: its user was forgotten while the homeserver was asked.
    """
    # In one order everywhere, so that two replicas that write the same devices wait and never deadlock.
    ordered = sorted(facts, key=lambda fact: (fact.user_id, fact.device_id))
    await conn.execute(
        """
        INSERT INTO device_fact AS known (homeserver_id, user_id, device_id, platform, cross_signed, fetched_at)
        SELECT $1, told.*, $2 FROM unnest($3::text[], $4::text[], $5::text[], $6::boolean[])
            AS told (user_id, device_id, platform, cross_signed)
        WHERE EXISTS (
            SELECT FROM stint WHERE homeserver_id = $1 AND stint.user_id = told.user_id
                AND stint.device_id = told.device_id
        )
        ON CONFLICT (homeserver_id, user_id, device_id) DO UPDATE
        SET platform = CASE excluded.platform WHEN 'unknown' THEN known.platform ELSE excluded.platform END,
            cross_signed = coalesce(excluded.cross_signed, known.cross_signed), fetched_at = excluded.fetched_at
        """,
        homeserver_id,
        at,
        [fact.user_id for fact in ordered],
        [fact.device_id for fact in ordered],
        [str(fact.platform) for fact in ordered],
        [fact.cross_signed for fact in ordered],
    )


async def load_platforms(conn: Connection, homeserver_id: int | None = None) -> dict[KnownDevice, Platform]:
    """Give the platforms of the devices of one homeserver's calls, or of all (None)."""
    rows = await conn.fetch(
        """
        SELECT name, user_id, device_id, platform FROM device_fact JOIN homeserver USING (homeserver_id)
        WHERE $1::smallint IS NULL OR homeserver_id = $1
        """,
        homeserver_id,
    )
    return {
        (ServerName(row["name"]), UserId(row["user_id"]), DeviceId(row["device_id"])): Platform(row["platform"])
        for row in rows
    }
