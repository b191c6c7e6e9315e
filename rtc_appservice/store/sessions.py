"""Stages 4 and 7: projected calls, their stints, and the devices seen to distribute by to-device."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from rtc_appservice.core.model import CallReport, CallSession
from rtc_appservice.core.words import CallId, DeviceId, RoomId, UserId
from rtc_appservice.store.pool import Connection

#: A device in a call, with the first time it was seen to distribute by to-device there.
Seen = Mapping[tuple[UserId, DeviceId, CallId], datetime]

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CallReport)


async def known_calls(conn: Connection, room_key: int, since: datetime) -> dict[CallId, bool]:
    """Give the calls of a room that started at `since` or later, and whether each is settled."""
    rows = await conn.fetch(
        "SELECT call_id, settled FROM call_session WHERE room_key = $1 AND started_at >= $2", room_key, since
    )
    return {CallId(row["call_id"]): row["settled"] for row in rows}


async def write_calls(conn: Connection, homeserver_id: int, room_key: int, sessions: Sequence[CallSession]) -> None:
    """Write calls as they are projected now. What is the same already is not written; settled stays settled."""
    reports = [session.report for session in sessions]
    await conn.execute(
        """
        INSERT INTO call_session AS known (room_key, homeserver_id, started_at, call_id, slot_id, ended_at, verdict,
                                           evidence, settled, report, fallbacks, coverage)
        SELECT $1, $2, started_at, call_id, slot_id, ended_at, verdict, evidence, settled, report, fallbacks,
               string_to_array(coverage, ' ')
        FROM unnest($3::timestamptz[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[],
                    $9::boolean[], $10::jsonb[], $11::integer[], $12::text[])
            AS call (started_at, call_id, slot_id, ended_at, verdict, evidence, settled, report, fallbacks, coverage)
        ON CONFLICT (room_key, started_at, call_id) DO UPDATE
        SET ended_at = excluded.ended_at, verdict = excluded.verdict, evidence = excluded.evidence,
            settled = known.settled OR excluded.settled, report = excluded.report, fallbacks = excluded.fallbacks,
            coverage = excluded.coverage
        WHERE known.report IS DISTINCT FROM excluded.report
        """,
        room_key,
        homeserver_id,
        [report.started_at for report in reports],
        [report.call_id for report in reports],
        [report.slot_id for report in reports],
        [report.ended_at for report in reports],
        [str(report.verdict) for report in reports],
        [str(report.evidence) for report in reports],
        [report.settled for report in reports],
        [_encoder.encode(report).decode() for report in reports],
        [len(report.fallbacks) for report in reports],
        [" ".join(report.coverage) for report in reports],
    )


async def write_stints(
    conn: Connection, homeserver_id: int, room_key: int, sessions: Sequence[CallSession], gone: Collection[CallId]
) -> None:
    """Make the stints of these calls the ones projected now, and remove those of calls that are `gone`."""
    unique = {
        (session.report.call_id, stint.user_id, stint.device_id, stint.joined_at): stint
        for session in sessions
        for stint in session.stints
    }
    stints = [(call_id, stint) for (call_id, *_), stint in unique.items()]
    await conn.execute(
        """
        WITH projected AS MATERIALIZED (
            SELECT * FROM unnest($4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::text[], $9::timestamptz[])
            AS stint (call_id, user_id, device_id, joined_at, slot_id, left_at)
        ), removed AS (
            DELETE FROM stint
            WHERE room_key = $1 AND call_id = ANY($3::text[])
              AND (call_id, user_id, device_id, joined_at)
                  NOT IN (SELECT call_id, user_id, device_id, joined_at FROM projected)
        )
        INSERT INTO stint AS known (room_key, homeserver_id, call_id, user_id, device_id, joined_at, slot_id, left_at)
        SELECT $1, $2, call_id, user_id, device_id, joined_at, slot_id, left_at FROM projected
        ON CONFLICT (room_key, call_id, user_id, device_id, joined_at) DO UPDATE SET left_at = excluded.left_at
        WHERE known.left_at IS DISTINCT FROM excluded.left_at
        """,
        room_key,
        homeserver_id,
        [*gone, *(session.report.call_id for session in sessions)],
        [call_id for call_id, _ in stints],
        [stint.user_id for _, stint in stints],
        [stint.device_id for _, stint in stints],
        [stint.joined_at for _, stint in stints],
        [stint.slot_id for _, stint in stints],
        [stint.left_at for _, stint in stints],
    )


async def remove_calls(
    conn: Connection, homeserver_id: int, room_key: int, since: datetime, gone: Collection[CallId]
) -> None:
    """Remove calls that are not projected any more: an earlier event of theirs came to light and renamed them."""
    if not gone:
        return
    await conn.execute(
        "DELETE FROM call_session WHERE room_key = $1 AND started_at >= $2 AND call_id = ANY($3::text[])",
        room_key,
        since,
        list(gone),
    )
    await conn.execute(
        "DELETE FROM to_device_history WHERE homeserver_id = $1 AND call_id = ANY($2::text[])",
        homeserver_id,
        list(gone),
    )


async def write_to_device_seen(conn: Connection, homeserver_id: int, seen: Seen) -> None:
    """Keep which devices were seen to distribute by to-device, and since when, in each call."""
    ordered = sorted(seen.items())
    await conn.execute(
        """
        INSERT INTO to_device_history AS known (homeserver_id, user_id, device_id, call_id, at)
        SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[])
        ON CONFLICT (homeserver_id, user_id, device_id, call_id) DO UPDATE SET at = excluded.at
        WHERE known.at IS DISTINCT FROM excluded.at
        """,
        homeserver_id,
        [user_id for (user_id, _, _), _ in ordered],
        [device_id for (_, device_id, _), _ in ordered],
        [call_id for (_, _, call_id), _ in ordered],
        [at for _, at in ordered],
    )


async def load_to_device_seen(
    conn: Connection, homeserver_id: int, devices: Collection[tuple[UserId, DeviceId]], since: datetime
) -> dict[tuple[UserId, DeviceId, CallId], datetime]:
    """Give the calls, from `since` on, in which these devices were seen to distribute by to-device."""
    rows = await conn.fetch(
        """
        SELECT user_id, device_id, call_id, at
        FROM unnest($2::text[], $3::text[]) AS asked (user_id, device_id)
        JOIN to_device_history USING (user_id, device_id)
        WHERE homeserver_id = $1 AND at >= $4
        """,
        homeserver_id,
        [user_id for user_id, _ in devices],
        [device_id for _, device_id in devices],
        since,
    )
    return {(UserId(r["user_id"]), DeviceId(r["device_id"]), CallId(r["call_id"])): r["at"] for r in rows}


async def load_calls(
    conn: Connection, since: datetime | None = None, homeserver_id: int | None = None, room_id: RoomId | None = None
) -> list[CallReport]:
    """Give the calls that started at `since` or later, or still go on, in order of start; None asks for all."""
    rows = await conn.fetch(
        """
        SELECT report FROM call_session AS call JOIN room USING (room_key)
        WHERE ($1::timestamptz IS NULL OR call.started_at >= $1 OR call.ended_at IS NULL)
          AND ($2::smallint IS NULL OR call.homeserver_id = $2) AND ($3::text IS NULL OR room.room_id = $3)
        ORDER BY call.started_at, call.call_id
        """,
        since,
        homeserver_id,
        room_id,
    )
    return [_decoder.decode(row["report"]) for row in rows]


class StoredCall(Struct, frozen=True, kw_only=True):
    """Where a call is stored, and what it was projected with."""

    homeserver_id: int
    room_key: int
    watched_since: datetime
    watermark_at: datetime
    report: CallReport


async def find_calls(conn: Connection, prefix: str) -> list[StoredCall]:
    """Give up to two calls whose id begins with a prefix."""
    rows = await conn.fetch(
        """
        SELECT call.homeserver_id, call.room_key, room.watched_since, stream.watermark_at, call.report
        FROM call_session AS call JOIN stream USING (homeserver_id) JOIN room USING (room_key)
        WHERE starts_with(call.call_id, $1) ORDER BY call.call_id LIMIT 2
        """,
        prefix,
    )
    return [
        StoredCall(
            homeserver_id=row["homeserver_id"],
            room_key=row["room_key"],
            watched_since=row["watched_since"],
            watermark_at=row["watermark_at"],
            report=_decoder.decode(row["report"]),
        )
        for row in rows
    ]
