"""Stage 7: what the web pages list: calls page by page, rooms with their history ledgers, and the streams."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from rtc_appservice.core.model import CallReport, LedgerEntry
from rtc_appservice.core.words import DeviceId, EventId, RoomId, ServerName, UserId, Verdict
from rtc_appservice.store.pool import Connection

#: What calls can be sorted by.
SORTS = ("started", "length", "devices", "fallbacks", "findings")

_decoder = msgspec.json.Decoder(CallReport)


class CallFilter(Struct, frozen=True, kw_only=True):
    """Which calls, in which order; None of a filter takes all."""

    verdict: Verdict | None = None
    homeserver_id: int | None = None
    room_key: int | None = None
    since: datetime | None = None
    sort: str = "started"  #: one of `SORTS`
    ascending: bool = False


class ListedCall(Struct, frozen=True, kw_only=True):
    """A call, and the number that stands for its room."""

    room_key: int
    report: CallReport


class ListedRoom(Struct, frozen=True, kw_only=True):
    """A room in which an RTC event was seen, with what its history holds."""

    room_key: int
    room_id: RoomId
    homeserver: ServerName
    rtc_seen_at: datetime
    calls: int
    keys_standing: int  #: room key events that stand in room history
    keys_redacted: int
    last_key_at: datetime | None


class Stream(Struct, frozen=True, kw_only=True):
    """When a homeserver was last heard."""

    homeserver: ServerName
    last_transaction_at: datetime | None
    last_heartbeat_at: datetime | None


async def list_calls(
    conn: Connection, asked: CallFilter, *, limit: int, offset: int, now: datetime
) -> tuple[list[ListedCall], int]:
    """Give a page of the calls asked for, and how many there are in all; one that goes on lasts until now."""
    chosen = (None if asked.verdict is None else str(asked.verdict), asked.homeserver_id, asked.room_key, asked.since)
    total: int = await conn.fetchval(
        """
        SELECT count(*) FROM call_session
        WHERE ($1::text IS NULL OR verdict = $1) AND ($2::smallint IS NULL OR homeserver_id = $2)
          AND ($3::bigint IS NULL OR room_key = $3) AND ($4::timestamptz IS NULL OR started_at >= $4)
        """,
        *chosen,
    )
    rows = await conn.fetch(
        """
        SELECT room_key, report FROM call_session
        WHERE ($1::text IS NULL OR verdict = $1) AND ($2::smallint IS NULL OR homeserver_id = $2)
          AND ($3::bigint IS NULL OR room_key = $3) AND ($4::timestamptz IS NULL OR started_at >= $4)
        ORDER BY $6 * CASE $5::text
                     WHEN 'length' THEN extract(epoch FROM coalesce(ended_at, $7::timestamptz) - started_at)::float8
                     WHEN 'devices' THEN (report ->> 'max_participants')::float8
                     WHEN 'fallbacks' THEN jsonb_array_length(report -> 'fallbacks')::float8
                     WHEN 'findings' THEN jsonb_array_length(report -> 'findings')::float8
                     ELSE extract(epoch FROM started_at)::float8 END,
                 started_at DESC, call_id
        LIMIT $8 OFFSET $9
        """,
        *chosen,
        asked.sort,
        1.0 if asked.ascending else -1.0,
        now,
        limit,
        offset,
    )
    return [ListedCall(room_key=row["room_key"], report=_decoder.decode(row["report"])) for row in rows], total


async def list_rooms(
    conn: Connection, *, limit: int, offset: int = 0, room_key: int | None = None
) -> tuple[list[ListedRoom], int]:
    """Give a page of the rooms with RTC events, most keys in history first, and how many there are in all."""
    rows = await conn.fetch(
        """
        SELECT room.room_key, room_id, name AS homeserver, rtc_seen_at,
            (SELECT count(*) FROM call_session WHERE call_session.room_key = room.room_key) AS calls,
            coalesce(ledger.standing, 0) AS keys_standing, coalesce(ledger.redacted, 0) AS keys_redacted,
            ledger.last_at AS last_key_at, count(*) OVER () AS total
        FROM room JOIN homeserver USING (homeserver_id) LEFT JOIN (
            SELECT room_key, count(*) FILTER (WHERE redacted_at IS NULL) AS standing,
                   count(*) FILTER (WHERE redacted_at IS NOT NULL) AS redacted, max(at) AS last_at
            FROM history_ledger WHERE $3::bigint IS NULL OR room_key = $3 GROUP BY room_key
        ) AS ledger USING (room_key)
        WHERE rtc_seen_at IS NOT NULL AND ($3::bigint IS NULL OR room.room_key = $3)
        ORDER BY keys_standing DESC, rtc_seen_at DESC, room_key LIMIT $1 OFFSET $2
        """,
        limit,
        offset,
        room_key,
    )
    listed = [
        ListedRoom(
            room_key=row["room_key"],
            room_id=RoomId(row["room_id"]),
            homeserver=ServerName(row["homeserver"]),
            rtc_seen_at=row["rtc_seen_at"],
            calls=row["calls"],
            keys_standing=row["keys_standing"],
            keys_redacted=row["keys_redacted"],
            last_key_at=row["last_key_at"],
        )
        for row in rows
    ]
    return listed, rows[0]["total"] if rows else 0


async def load_ledger(conn: Connection, room_key: int, *, limit: int, offset: int) -> list[LedgerEntry]:
    """Give a page of a room's history ledger, the newest first."""
    rows = await conn.fetch(
        """
        SELECT event_id, at, sender, device_id, keys, redacted_at FROM history_ledger
        WHERE room_key = $1 ORDER BY at DESC, event_id LIMIT $2 OFFSET $3
        """,
        room_key,
        limit,
        offset,
    )
    return [
        LedgerEntry(
            event_id=EventId(row["event_id"]),
            at=row["at"],
            sender=UserId(row["sender"]),
            device_id=DeviceId(row["device_id"]),
            keys=row["keys"],
            redacted_at=row["redacted_at"],
        )
        for row in rows
    ]


async def load_streams(conn: Connection) -> Sequence[Stream]:
    """Give when each homeserver was last heard."""
    rows = await conn.fetch(
        """
        SELECT name AS homeserver, last_transaction_at, last_heartbeat_at
        FROM homeserver LEFT JOIN stream USING (homeserver_id) ORDER BY name
        """
    )
    return [Stream(**dict(row)) for row in rows]
