"""Stage 3: observations in, exactly once. One homeserver transaction is one database transaction."""

from collections.abc import Iterable
from datetime import datetime

import asyncpg
import msgspec
from msgspec import Struct

from rtc_appservice.core.observed import Body, HeldEnvelope, Observation
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.rooms import RoomCache, allocate_rooms


class Recorded(Struct, frozen=True):
    """What became of a transaction's observations and envelopes."""

    new: int
    duplicates: int


# A round trip is what a commit costs, so a transaction is one statement. Rows come sorted by identity: two that
# bring the same ones wait for each other in one order. The stream's row is passed over while another transaction
# holds it, because commits must overlap; the heartbeat and the next transaction bring it up to date.
_RECORD = """
WITH incoming AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::timestamptz[], $4::bigint[], $5::text[], $6::timestamptz[], $7::boolean[],
                         $8::jsonb[])
    AS arrived (identity, event_at, room_key, kind, received_at, late, body)
), fresh AS (
    INSERT INTO observation_identity (homeserver_id, identity, event_at)
    SELECT $1, identity, event_at FROM incoming
    ON CONFLICT DO NOTHING
    RETURNING identity
), stored AS (
    INSERT INTO observation (room_key, event_at, identity, homeserver_id, kind, received_at, late, body)
    SELECT room_key, event_at, identity, $1, kind, received_at, late, body
    FROM incoming JOIN fresh USING (identity) WHERE room_key IS NOT NULL
    RETURNING room_key, event_at
), held AS (
    INSERT INTO held_envelope (homeserver_id, identity, received_at, sender, recipient, recipient_device, body)
    SELECT $1, identity, received_at, body ->> 'sender', body ->> 'recipient', body ->> 'recipient_device', body
    FROM incoming JOIN fresh USING (identity) WHERE room_key IS NULL
), marked AS (
    INSERT INTO dirty_room (room_key, homeserver_id, event_at)
    SELECT room_key, $1, min(event_at) FROM stored GROUP BY room_key
), idle AS MATERIALIZED (
    SELECT homeserver_id FROM stream WHERE homeserver_id = $1 FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE stream SET watermark_at = greatest(stream.watermark_at, $9),
                      last_transaction_at = greatest(stream.last_transaction_at, $10)
    FROM idle WHERE stream.homeserver_id = idle.homeserver_id
)
SELECT count(*) FROM fresh
"""

_encoder = msgspec.json.Encoder()
_body_decoder = msgspec.json.Decoder(Body)


async def record(conn: Connection, homeserver_id: int, intake: Intake, rooms: RoomCache) -> Recorded:
    """
    Write what a transaction brought and give how much of it was new; it is committed when this returns.

    Inside a transaction of the caller, it is committed with that. Driver errors pass through: see `store_errors`.
    """
    try:
        return await _record(conn, homeserver_id, intake, rooms)
    except asyncpg.CheckViolationError:
        # A row was on its way to the default partition when its own partition was attached; now it goes there.
        if conn.is_in_transaction():
            raise
        return await _record(conn, homeserver_id, intake, rooms)


async def _record(conn: Connection, homeserver_id: int, intake: Intake, rooms: RoomCache) -> Recorded:
    arrived: dict[str, Observation | HeldEnvelope] = {}
    arrived.update((observation.identity, observation) for observation in intake.observations)
    arrived.update((envelope.identity, envelope) for envelope in intake.envelopes)
    items = [arrived[identity] for identity in sorted(arrived)]
    asked = len(intake.observations) + len(intake.envelopes)
    received_at = items[0].received_at if items else intake.newest_at
    if received_at is None:
        return Recorded(0, 0)
    unknown = {observation.room_id for observation in intake.observations if rooms.get(observation.room_id) is None}
    for room_id in intake.rtc_rooms:
        known = rooms.get(room_id)
        if known is None or not known.watched:
            unknown.add(room_id)
    if not unknown:
        keys = {room_id: room.room_key for room_id in _room_ids(intake) if (room := rooms.get(room_id))}
        new = await _write(conn, homeserver_id, items, keys, intake.newest_at, received_at)
    else:
        async with conn.transaction():
            allocated = await allocate_rooms(conn, homeserver_id, unknown, intake.rtc_rooms, received_at)
            keys = {room_id: room.room_key for room_id in _room_ids(intake) if (room := rooms.get(room_id))}
            keys |= {room_id: room.room_key for room_id, room in allocated.items()}
            new = await _write(conn, homeserver_id, items, keys, intake.newest_at, received_at)
        if not conn.is_in_transaction():  # in a transaction of the caller they are not committed yet
            rooms.add(allocated)
    return Recorded(new, asked - new)


def _room_ids(intake: Intake) -> set[RoomId]:
    return {observation.room_id for observation in intake.observations}


async def _write(
    conn: Connection,
    homeserver_id: int,
    items: list[Observation | HeldEnvelope],
    keys: dict[RoomId, int],
    newest_at: datetime | None,
    received_at: datetime,
) -> int:
    columns: tuple[list[object], ...] = ([], [], [], [], [], [], [])
    identities, event_ats, room_keys, kinds, received_ats, lates, bodies = columns
    for item in items:
        observed = item if isinstance(item, Observation) else None
        identities.append(item.identity)
        event_ats.append(observed.event_at if observed else item.received_at)
        room_keys.append(keys[observed.room_id] if observed else None)
        kinds.append(kind_of(item.body))
        received_ats.append(item.received_at)
        lates.append(observed is not None and observed.late)
        bodies.append(_encoder.encode(item.body).decode())
    return int(await conn.fetchval(_RECORD, homeserver_id, *columns, newest_at, received_at))


def kind_of(body: Body) -> str:
    """Give the kind of an observation, as its body spells it in JSON."""
    return str(type(body).__struct_config__.tag)


async def load_room(
    conn: Connection, homeserver: ServerName, room_id: RoomId, room_key: int, since: datetime
) -> list[Observation]:
    """
    Give a room's observations from `since` on, and the state of the room set before that; in order of event time.

    Room members are left out of the earlier state: who left before the window takes no part in it.
    """
    rows = await conn.fetch(
        """
        SELECT identity, event_at, received_at, late, body FROM observation
        WHERE room_key = $1 AND event_at >= $2
        UNION ALL
        SELECT identity, event_at, received_at, late, body FROM observation
        WHERE room_key = $1 AND event_at < $2 AND kind = 'room_state' AND body ->> 'event_type' <> 'm.room.member'
        ORDER BY event_at, identity
        """,
        room_key,
        since,
    )
    return _read(rows, homeserver, room_id)


async def load_since(
    conn: Connection, homeserver: ServerName, room_id: RoomId, room_key: int, since: datetime
) -> list[Observation]:
    """Give a room's observations from `since` on, in order of event time."""
    rows = await conn.fetch(
        """
        SELECT identity, event_at, received_at, late, body FROM observation
        WHERE room_key = $1 AND event_at >= $2 ORDER BY event_at, identity
        """,
        room_key,
        since,
    )
    return _read(rows, homeserver, room_id)


async def load_call_members(
    conn: Connection, homeserver_id: int, homeserver: ServerName, room_id: RoomId, since: datetime
) -> list[Observation]:
    """Give what tells who is in the calls of a room, from `since` on, in order of event time."""
    rows = await conn.fetch(
        """
        SELECT identity, event_at, received_at, late, body FROM observation
        WHERE room_key = (SELECT room_key FROM room WHERE homeserver_id = $1 AND room_id = $2) AND event_at >= $3
          AND (kind IN ('membership', 'rejected')
               OR (kind = 'room_state' AND body ->> 'event_type' = 'm.room.member'))
        ORDER BY event_at, identity
        """,
        homeserver_id,
        room_id,
        since,
    )
    return _read(rows, homeserver, room_id)


def _read(rows: Iterable["asyncpg.Record"], homeserver: ServerName, room_id: RoomId) -> list[Observation]:
    return [
        Observation(
            homeserver=homeserver,
            room_id=room_id,
            identity=row["identity"],
            event_at=row["event_at"],
            received_at=row["received_at"],
            late=row["late"],
            body=_body_decoder.decode(row["body"]),
        )
        for row in rows
    ]
