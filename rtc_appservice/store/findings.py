"""Stage 5: findings. Open ones follow the projection; a settled one never changes, later knowledge stands beside it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from msgspec import Struct

from rtc_appservice.core.model import Finding, RoomFinding
from rtc_appservice.core.report import room_finding
from rtc_appservice.core.words import CallId, RoomId, ServerName
from rtc_appservice.store.pool import Connection

#: A finding of a day can begin before the call it is told with.
REACH = timedelta(days=1)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Finding)


class _Known(Struct, frozen=True):
    settled: bool
    body: Finding
    revision: Finding | None


class _Changes(Struct, frozen=True, kw_only=True):
    outdated: Sequence[UUID]  #: to be removed: they are found no more, or otherwise
    fresh: Sequence[UUID]  #: to be written
    revised: Sequence[tuple[UUID, Finding | None]]  #: settled, and what is known of them by now; None: as it was


async def write_findings(
    conn: Connection,
    homeserver_id: int,
    room_key: int,
    since: datetime,
    found: Mapping[CallId | None, Sequence[Finding]],
    gone: Collection[CallId] = (),
    *,
    days_since: datetime,
) -> dict[CallId | None, list[Finding]]:
    """
    Write findings as they are projected now; give those that settled with this projection, by call.

    Those of the room itself, told of whole days, stand under None.

    Open findings of these calls that are not found any more are removed, settled ones stay. One that two calls
    tell (those of a room and day) is told with the first.

    Args:
        since: no call of these began earlier.
        gone: calls that are not projected any more.
        days_since: from when on the findings of the room are all given.
    """
    reach = min(since - REACH, days_since)
    now: dict[UUID, Finding] = {}
    calls: dict[UUID, CallId | None] = {}
    for call_id, each in found.items():
        for finding in each:
            if now.setdefault(UUID(finding.finding_id), finding) is finding:
                calls[UUID(finding.finding_id)] = call_id
    call_ids = [call_id for call_id in (*found, *gone) if call_id is not None]
    changes = _changes(await _load(conn, room_key, reach, list(now), call_ids, days_since), now)
    await _remove(conn, room_key, reach, changes.outdated)
    await _insert(conn, homeserver_id, room_key, [(calls[finding_id], now[finding_id]) for finding_id in changes.fresh])
    for finding_id, revision in changes.revised:
        await _revise(conn, room_key, reach, finding_id, revision)
    settled: dict[CallId | None, list[Finding]] = {}
    for finding_id in changes.fresh:
        if now[finding_id].settled:
            settled.setdefault(calls[finding_id], []).append(now[finding_id])
    return settled


def _changes(known: Mapping[UUID, _Known], now: Mapping[UUID, Finding]) -> _Changes:
    """Compare findings as stored with those projected now: an open one follows, a settled one stays."""
    outdated = [finding_id for finding_id, before in known.items() if not before.settled and finding_id not in now]
    fresh: list[UUID] = []
    revised: list[tuple[UUID, Finding | None]] = []
    for finding_id, finding in now.items():
        before = known.get(finding_id)
        if before is None:
            fresh.append(finding_id)
            continue
        seen = _as_stored(finding)
        if before.settled:
            revision = None if seen == before.body else seen
            if revision != before.revision:
                revised.append((finding_id, revision))
        elif seen != before.body:
            outdated.append(finding_id)
            fresh.append(finding_id)
    return _Changes(outdated=outdated, fresh=fresh, revised=revised)


async def _remove(conn: Connection, room_key: int, since: datetime, finding_ids: Sequence[UUID]) -> None:
    if finding_ids:
        await conn.execute(
            "DELETE FROM finding WHERE room_key = $1 AND at >= $2 AND finding_id = ANY($3::uuid[]) AND state = 'open'",
            room_key,
            since,
            finding_ids,
        )


async def _insert(
    conn: Connection, homeserver_id: int, room_key: int, rows: Sequence[tuple[CallId | None, Finding]]
) -> None:
    if rows:
        await conn.execute(
            """
            INSERT INTO finding (room_key, homeserver_id, at, finding_id, call_id, kind, state, body)
            SELECT $1, $2, * FROM unnest($3::timestamptz[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::jsonb[])
            """,
            room_key,
            homeserver_id,
            [finding.at for _, finding in rows],
            [UUID(finding.finding_id) for _, finding in rows],
            [call_id for call_id, _ in rows],
            [str(finding.kind) for _, finding in rows],
            ["settled" if finding.settled else "open" for _, finding in rows],
            [_encoder.encode(finding).decode() for _, finding in rows],
        )


async def _revise(conn: Connection, room_key: int, since: datetime, finding_id: UUID, revision: Finding | None) -> None:
    await conn.execute(
        "UPDATE finding SET revision = $4::jsonb WHERE room_key = $1 AND at >= $2 AND finding_id = $3",
        room_key,
        since,
        finding_id,
        None if revision is None else _encoder.encode(revision).decode(),
    )


async def oldest_open_of_room(conn: Connection, room_key: int, since: datetime) -> datetime | None:
    """Give the time of the oldest finding of a room itself, from `since` on, that something due can still change."""
    at: datetime | None = await conn.fetchval(
        """
        SELECT min(at) FROM finding WHERE room_key = $1 AND at >= $2 AND call_id IS NULL AND state = 'open'
        """,
        room_key,
        since,
    )
    return at


async def load_of_rooms(
    conn: Connection,
    since: datetime | None = None,
    homeserver_id: int | None = None,
    *,
    room_key: int | None = None,
    newest: int | None = None,
) -> list[RoomFinding]:
    """Give the findings of rooms themselves, or the newest of them, as they are known now, in order of time."""
    rows = await conn.fetch(
        """
        SELECT homeserver.name AS homeserver, room_id, coalesce(revision, body) AS body
        FROM finding JOIN room USING (room_key) JOIN homeserver ON homeserver.homeserver_id = finding.homeserver_id
        WHERE call_id IS NULL AND ($1::timestamptz IS NULL OR at >= $1)
          AND ($2::smallint IS NULL OR finding.homeserver_id = $2) AND ($3::bigint IS NULL OR finding.room_key = $3)
        ORDER BY at DESC, finding_id DESC LIMIT $4
        """,
        since,
        homeserver_id,
        room_key,
        newest,
    )
    return [
        room_finding(_decoder.decode(row["body"]), ServerName(row["homeserver"]), RoomId(row["room_id"]))
        for row in reversed(rows)
    ]


async def _load(
    conn: Connection,
    room_key: int,
    since: datetime,
    finding_ids: list[UUID],
    call_ids: list[CallId],
    days_since: datetime,
) -> dict[UUID, _Known]:
    rows = await conn.fetch(
        """
        SELECT finding_id, state, body, revision FROM finding
        WHERE room_key = $1 AND at >= $2
          AND (finding_id = ANY($3::uuid[]) OR call_id = ANY($4::text[]) OR (call_id IS NULL AND at >= $5))
        """,
        room_key,
        since,
        finding_ids,
        call_ids,
        days_since,
    )
    return {
        UUID(int=row["finding_id"].int): _Known(
            row["state"] == "settled",
            _decoder.decode(row["body"]),
            None if row["revision"] is None else _decoder.decode(row["revision"]),
        )
        for row in rows
    }


def _as_stored(finding: Finding) -> Finding:
    """Give a finding as it would be read back, to compare it with one that was."""
    return _decoder.decode(_encoder.encode(finding))
