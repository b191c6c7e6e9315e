"""Stage 3: gaps. What is known not to have been seen is data like everything else."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, RoomId, ServerName
from rtc_appservice.store.pool import Connection


async def record_gaps(conn: Connection, homeserver_id: int, gaps: Sequence[Gap]) -> None:
    """Write gaps as they stand: new ones are added, those known by their id get their end."""
    await conn.executemany(
        """
        INSERT INTO gap (homeserver_id, gap_id, reason, started_at, ended_at, room_key)
        VALUES ($1, $2, $3, $4, $5, (SELECT room_key FROM room WHERE homeserver_id = $1 AND room_id = $6))
        ON CONFLICT (homeserver_id, gap_id) DO UPDATE SET ended_at = coalesce(excluded.ended_at, gap.ended_at)
        """,
        [(homeserver_id, gap.gap_id, str(gap.reason), gap.started_at, gap.ended_at, gap.room_id) for gap in gaps],
    )


async def load_gaps(
    conn: Connection, homeserver_id: int | None, since: datetime | None, room_id: RoomId | None = None
) -> list[Gap]:
    """
    Give the gaps that reach past `since`, in order of start.

    Args:
        homeserver_id: of this homeserver only; None for all.
        since: None for all there ever were.
        room_id: those of this room and those of the whole homeserver; None for those of every room.
    """
    rows = await conn.fetch(
        """
        SELECT gap_id, name, reason, started_at, ended_at, room_id
        FROM gap JOIN homeserver USING (homeserver_id) LEFT JOIN room USING (room_key)
        WHERE ($1::smallint IS NULL OR gap.homeserver_id = $1)
          AND ($2::timestamptz IS NULL OR gap.ended_at IS NULL OR gap.ended_at >= $2)
          AND ($3::text IS NULL OR gap.room_key IS NULL OR room.room_id = $3)
        ORDER BY started_at NULLS FIRST, gap_id
        """,
        homeserver_id,
        since,
        room_id,
    )
    return [_gap(dict(row)) for row in rows]


async def open_gaps(conn: Connection, homeserver_id: int) -> list[Gap]:
    """Give the gaps of a whole homeserver that have not ended, in order of start."""
    rows = await conn.fetch(
        """
        SELECT gap_id, name, reason, started_at, ended_at, NULL AS room_id
        FROM gap JOIN homeserver USING (homeserver_id)
        WHERE homeserver_id = $1 AND room_key IS NULL AND ended_at IS NULL
        ORDER BY started_at NULLS FIRST, gap_id
        """,
        homeserver_id,
    )
    return [_gap(dict(row)) for row in rows]


async def cut_gaps(conn: Connection, homeserver_id: int, reason: GapReason, since: datetime) -> None:
    """Take back what gaps of a whole homeserver say of the time from `since` on, for one reason."""
    await conn.execute(
        """
        WITH taken_back AS (
            DELETE FROM gap
            WHERE homeserver_id = $1 AND room_key IS NULL AND reason = $2 AND started_at >= $3
        )
        UPDATE gap SET ended_at = $3
        WHERE homeserver_id = $1 AND room_key IS NULL AND reason = $2 AND started_at < $3 AND ended_at > $3
        """,
        homeserver_id,
        str(reason),
        since,
    )


async def newest_gaps(
    conn: Connection, homeserver_ids: Sequence[int], since: datetime, limit: int
) -> tuple[list[Gap], int]:
    """Give the newest of the gaps that reach past `since`, the newest first, and how many there are in all."""
    rows = await conn.fetch(
        """
        SELECT gap_id, name, reason, started_at, ended_at, room_id, count(*) OVER () AS total
        FROM gap JOIN homeserver USING (homeserver_id) LEFT JOIN room USING (room_key)
        WHERE gap.homeserver_id = ANY($1::smallint[]) AND (gap.ended_at IS NULL OR gap.ended_at >= $2)
        ORDER BY started_at DESC NULLS LAST, gap_id DESC LIMIT $3
        """,
        homeserver_ids,
        since,
        limit,
    )
    return [_gap(dict(row)) for row in rows], rows[0]["total"] if rows else 0


def _gap(row: Mapping[str, Any]) -> Gap:
    return Gap(
        gap_id=row["gap_id"],
        homeserver=ServerName(row["name"]),
        reason=GapReason(row["reason"]),
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        room_id=None if row["room_id"] is None else RoomId(row["room_id"]),
    )
