"""Stage 3: partitions made ahead, and dropped when their time is over. Retention deletes no row of a large table."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asyncpg
from msgspec import Struct

from rtc_appservice.store.pool import Connection

log = logging.getLogger(__name__)

OBSERVATION_RETENTION = timedelta(days=35)
CALL_RETENTION = timedelta(days=400)
#: Stints serve the placing of envelopes, which looks 24 h back.
STINT_RETENTION = timedelta(days=3)
#: Detection asks for the last 30 days.
TO_DEVICE_RETENTION = timedelta(days=35)
#: As long as what they are asked about is of use: readiness looks back 28 days.
DEVICE_FACT_RETENTION = timedelta(days=35)
#: How far ahead partitions are made: a service that is down for less than that never misses one.
AHEAD = timedelta(days=28)
#: A lock that is not had soon is tried for again in the next round, not queued for.
LOCK_TIMEOUT = "500ms"
#: Any number, as long as it stays.
MAINTENANCE_LOCK = int.from_bytes(b"rtc-part")


class _Partitioned(Struct, frozen=True):
    table: str
    column: str
    begin: Callable[[datetime], datetime]  #: start of the partition that holds a time
    retention: timedelta
    #: Rows that outlive their partition, in the default one; a condition in SQL.
    keep: str | None = None


def _week(at: datetime) -> datetime:
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


def _month(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


TABLES = (
    _Partitioned(
        "observation",
        "event_at",
        _week,
        OBSERVATION_RETENTION,
        # A call in an old room still needs the room's encryption, its visibility, and that it was seen from its start.
        keep="kind = 'room_state' AND body ->> 'event_type' <> 'm.room.member'",
    ),
    _Partitioned("call_session", "started_at", _month, CALL_RETENTION),
    _Partitioned("finding", "at", _month, CALL_RETENTION),
)


async def maintain(conn: Connection, now: datetime) -> list[str]:
    """
    Make the partitions of the next weeks, drop those past retention, and give the names of both.

    Safe to run anywhere and often: one process at a time does it. What cannot get its lock at once is left to the
    next round, so that no reader or writer waits behind it. An account that may not make or drop partitions goes on
    without.
    """
    changed: list[str] = []
    for partitioned in TABLES:
        try:
            await _turn(conn, partitioned, now, changed)
        except asyncpg.InsufficientPrivilegeError:
            log.warning(
                "the database account may not make or drop partitions; rows stay in the default one",
                extra={"table": partitioned.table},
            )
        await _prune_default(conn, partitioned, now)
    await conn.execute("DELETE FROM observation_identity WHERE event_at < $1", now - OBSERVATION_RETENTION)
    await conn.execute("DELETE FROM stint WHERE left_at < $1", now - STINT_RETENTION)
    await conn.execute("DELETE FROM to_device_history WHERE at < $1", now - TO_DEVICE_RETENTION)
    await conn.execute("DELETE FROM device_fact WHERE fetched_at < $1", now - DEVICE_FACT_RETENTION)
    return changed


async def _turn(conn: Connection, partitioned: _Partitioned, now: datetime, changed: list[str]) -> None:
    """Make the partitions of one table that are due, drop those that are over, and add the names of both."""
    begin = partitioned.begin(now)
    while begin <= now + AHEAD:
        end = partitioned.begin(begin + timedelta(days=32)) if partitioned.begin is _month else begin + _WEEK
        if await _attempt(conn, _create, partitioned, begin, end):
            changed.append(_name(partitioned, begin))
        begin = end
    for name, end in await _existing(conn, partitioned):
        if end <= now - partitioned.retention and await _attempt(conn, _drop, partitioned, name, end):
            changed.append(name)


_WEEK = timedelta(days=7)


def _name(partitioned: _Partitioned, begin: datetime) -> str:
    return f"{partitioned.table}_p{begin:%Y%m%d}"


async def _attempt(
    conn: Connection, change: Callable[..., object], partitioned: _Partitioned, *arguments: object
) -> bool:
    """Make one change in a transaction of its own; False if it was made already or must wait."""
    try:
        async with conn.transaction():
            await conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            if not await conn.fetchval("SELECT pg_try_advisory_xact_lock($1)", MAINTENANCE_LOCK):
                return False
            return bool(await change(conn, partitioned, *arguments))  # type: ignore[misc]
    except asyncpg.LockNotAvailableError:
        log.info("partition maintenance waits", extra={"table": partitioned.table})
        return False


async def _create(conn: Connection, partitioned: _Partitioned, begin: datetime, end: datetime) -> bool:
    """Attach a partition made beforehand with a matching CHECK: nothing is scanned, and no reader holds it up."""
    name = _name(partitioned, begin)
    if await conn.fetchval("SELECT to_regclass($1)", name) is not None:
        return False
    names = (name, partitioned.table, partitioned.column, begin.isoformat(), end.isoformat())
    await _run(conn, "CREATE TABLE %1$I (LIKE %2$I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)", *names)
    await _run(conn, "ALTER TABLE %1$I ADD CONSTRAINT bounds CHECK (%3$I >= %4$L AND %3$I < %5$L)", *names)
    # Rows that came before their partition move into it; nobody may add one meanwhile.
    await _run(conn, "LOCK TABLE %1$I IN SHARE ROW EXCLUSIVE MODE", f"{partitioned.table}_default")
    default = (name, f"{partitioned.table}_default", *names[2:])
    await _run(conn, "INSERT INTO %1$I SELECT * FROM %2$I WHERE %3$I >= %4$L AND %3$I < %5$L", *default)
    await _run(conn, "DELETE FROM %2$I WHERE %3$I >= %4$L AND %3$I < %5$L", *default)
    await _run(conn, "ALTER TABLE %2$I ATTACH PARTITION %1$I FOR VALUES FROM (%4$L) TO (%5$L)", *names)
    await _run(conn, "ALTER TABLE %1$I DROP CONSTRAINT bounds", *names)
    return True


async def _run(conn: Connection, statement: str, *names: str) -> None:
    """Run a statement whose names and literals the server itself puts in, as its `format` does."""
    await conn.execute(await conn.fetchval("SELECT format($1::text, VARIADIC $2::text[])", statement, names))


async def _existing(conn: Connection, partitioned: _Partitioned) -> list[tuple[str, datetime]]:
    """Give the partitions of a table, the default one left out, with the end of each."""
    rows = await conn.fetch(
        """
        SELECT child.relname AS name,
               substring(pg_get_expr(child.relpartbound, child.oid) FROM $$TO \\('([^']+)'\\)$$)::timestamptz AS upto
        FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
        WHERE inhparent = $1::text::regclass AND pg_get_expr(child.relpartbound, child.oid) <> 'DEFAULT'
        ORDER BY upto
        """,
        partitioned.table,
    )
    return [(row["name"], row["upto"]) for row in rows]


async def _drop(conn: Connection, partitioned: _Partitioned, name: str, _end: datetime) -> bool:
    await _run(conn, "ALTER TABLE %1$I DETACH PARTITION %2$I", partitioned.table, name)
    if partitioned.keep is not None:
        keep = "INSERT INTO %1$I SELECT * FROM %2$I WHERE "
        await _run(conn, keep + partitioned.keep, partitioned.table, name)
    await _run(conn, "DROP TABLE %1$I", name)
    return True


async def _prune_default(conn: Connection, partitioned: _Partitioned, now: datetime) -> None:
    """Delete from the default partition, which is small, what is past retention."""
    keep = "" if partitioned.keep is None else f" AND NOT ({partitioned.keep})"
    before = (now - partitioned.retention).isoformat()
    delete = "DELETE FROM %1$I WHERE %2$I < %3$L"
    await _run(conn, delete + keep, f"{partitioned.table}_default", partitioned.column, before)
