"""Stage 4: Olm envelopes that wait to be placed in a room; what is no call's is deleted, its identity too."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from rtc_appservice.core.envelope import ENVELOPE_SLACK, KEY_AFTER_STINT
from rtc_appservice.core.model import StintSpan
from rtc_appservice.core.observed import HeldEnvelope, OlmEnvelope
from rtc_appservice.core.words import DeviceId, RoomId, ServerName, UserId
from rtc_appservice.store.pool import Connection

#: An envelope waits this long for the memberships that explain it.
HELD_FOR = timedelta(seconds=120)

_decoder = msgspec.json.Decoder(OlmEnvelope)


async def placeable(conn: Connection, homeserver_id: int, homeserver: ServerName) -> list[HeldEnvelope]:
    """Give, and lock, the held envelopes between users with stints about that time, in order of arrival."""
    rows = await conn.fetch(
        """
        SELECT identity, received_at, body FROM held_envelope AS held
        WHERE homeserver_id = $1 AND EXISTS (
            SELECT FROM stint
            WHERE homeserver_id = $1 AND user_id = held.recipient AND device_id = held.recipient_device
              AND joined_at <= held.received_at + $2::interval
              AND (left_at IS NULL OR left_at >= held.received_at - $2::interval)
        ) AND EXISTS (
            SELECT FROM stint
            WHERE homeserver_id = $1 AND user_id = held.sender
              AND joined_at <= held.received_at + $2::interval
              AND (left_at IS NULL OR left_at >= held.received_at - $3::interval)
        )
        ORDER BY received_at, identity FOR UPDATE SKIP LOCKED
        """,
        homeserver_id,
        ENVELOPE_SLACK,
        KEY_AFTER_STINT,
    )
    return [
        HeldEnvelope(
            homeserver=homeserver,
            identity=row["identity"],
            received_at=row["received_at"],
            body=_decoder.decode(row["body"]),
        )
        for row in rows
    ]


async def stint_spans(
    conn: Connection, homeserver_id: int, envelopes: Sequence[HeldEnvelope]
) -> dict[UserId, list[StintSpan]]:
    """Give the stints, by user, of all senders and recipients of these envelopes, about that time."""
    users = {envelope.body.sender for envelope in envelopes} | {envelope.body.recipient for envelope in envelopes}
    rows = await conn.fetch(
        """
        SELECT room_id, slot_id, user_id, device_id, joined_at, left_at
        FROM stint JOIN room USING (room_key)
        WHERE stint.homeserver_id = $1 AND user_id = ANY($2::text[])
          AND joined_at <= $4 AND (left_at IS NULL OR left_at >= $3)
        ORDER BY joined_at
        """,
        homeserver_id,
        list(users),
        min(envelope.received_at for envelope in envelopes) - KEY_AFTER_STINT,
        max(envelope.received_at for envelope in envelopes) + ENVELOPE_SLACK,
    )
    spans: dict[UserId, list[StintSpan]] = {}
    for row in rows:
        span = StintSpan(
            room_id=RoomId(row["room_id"]),
            slot_id=row["slot_id"],
            user_id=UserId(row["user_id"]),
            device_id=DeviceId(row["device_id"]),
            joined_at=row["joined_at"],
            left_at=row["left_at"],
        )
        spans.setdefault(span.user_id, []).append(span)
    return spans


async def place(conn: Connection, homeserver_id: int, rooms: Mapping[str, RoomId]) -> None:
    """Turn held envelopes into observations of their rooms (by identity), and mark those rooms."""
    await conn.execute(
        """
        WITH placed AS MATERIALIZED (
            SELECT identity, room_key FROM unnest($2::text[], $3::text[]) AS decided (identity, room_id)
            JOIN room ON room.homeserver_id = $1 AND room.room_id = decided.room_id
        ), taken AS (
            DELETE FROM held_envelope AS held USING placed
            WHERE held.homeserver_id = $1 AND held.identity = placed.identity
            RETURNING room_key, held.identity, received_at, body
        ), stored AS (
            INSERT INTO observation (room_key, event_at, identity, homeserver_id, kind, received_at, late, body)
            SELECT room_key, received_at, identity, $1, body ->> 'kind', received_at, false, body FROM taken
            RETURNING room_key, event_at
        )
        INSERT INTO dirty_room (room_key, homeserver_id, event_at)
        SELECT room_key, $1, min(event_at) FROM stored GROUP BY room_key
        """,
        homeserver_id,
        list(rooms),
        list(rooms.values()),
    )


async def drop_unplaced(conn: Connection, homeserver_id: int, watermark_at: datetime) -> None:
    """Delete envelopes that waited long enough: nothing is kept of Olm traffic outside calls."""
    await conn.execute(
        """
        WITH dropped AS (
            DELETE FROM held_envelope WHERE homeserver_id = $1 AND received_at < $2 RETURNING identity
        )
        DELETE FROM observation_identity
        WHERE homeserver_id = $1 AND identity = ANY(ARRAY(SELECT identity FROM dropped))
        """,
        homeserver_id,
        watermark_at - HELD_FOR,
    )
