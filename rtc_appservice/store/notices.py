"""Stage 1: what was posted to the operator's room, and the calls there may be something to post of."""

from collections.abc import Collection
from datetime import datetime

import msgspec

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import FindingKind
from rtc_appservice.store.pool import Connection

_decoder = msgspec.json.Decoder(CallReport)


async def split_calls(conn: Connection, homeserver_id: int) -> list[CallReport]:
    """Give the calls that go on and are split, in order of start."""
    rows = await conn.fetch(
        """
        SELECT report FROM call_session
        WHERE homeserver_id = $1 AND ended_at IS NULL
          AND report -> 'findings' @> jsonb_build_array(jsonb_build_object('kind', $2::text))
        ORDER BY started_at, call_id
        """,
        homeserver_id,
        str(FindingKind.SPLIT_CALL),
    )
    return [_decoder.decode(row["report"]) for row in rows]


async def posted_about(conn: Connection, homeserver_id: int, subjects: Collection[str]) -> set[str]:
    """Give the ids of the notices posted about these calls and weeks: the second part of a notice's id."""
    rows = await conn.fetch(
        "SELECT notice_id FROM notice WHERE homeserver_id = $1 AND split_part(notice_id, '/', 2) = ANY($2::text[])",
        homeserver_id,
        list(subjects),
    )
    return {row["notice_id"] for row in rows}


async def mark_posted(conn: Connection, homeserver_id: int, notice_id: str, at: datetime) -> None:
    """Remember that a notice was posted."""
    await conn.execute(
        "INSERT INTO notice (homeserver_id, notice_id, posted_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        homeserver_id,
        notice_id,
        at,
    )
