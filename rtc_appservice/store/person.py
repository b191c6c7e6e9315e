"""
Stage 3: what is held of one user, and tombstones in its place.

Where a user is named inside JSON, its text is looked through. That may also find a longer id that begins so: callers
look again. It reads every observation there is, and no index helps: it is done by hand, and seldom.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from rtc_appservice.core.observed import Body, OlmEnvelope
from rtc_appservice.core.words import Device, DeviceId, UserId
from rtc_appservice.store.partitions import MAINTENANCE_LOCK
from rtc_appservice.store.pool import Connection

#: Reading every observation takes as long as it takes.
SCAN_SECONDS = 3600.0

#: The tables that name users inside JSON, and the columns of it.
_IN_JSON = {"observation": ("body",), "call_session": ("report",), "finding": ("body", "revision")}
#: The tables that name users in a column.
_IN_COLUMNS = {
    "held_envelope": ("sender", "recipient"),
    "stint": ("user_id",),
    "to_device_history": ("user_id",),
    "history_ledger": ("sender",),
    "device_fact": ("user_id",),
}
#: Those of them that have one device of the user beside.
_WITH_DEVICE = ("stint", "to_device_history", "history_ledger", "device_fact")
_OF_ROOMS = ("observation", "call_session", "finding", "stint", "history_ledger")

_envelope_decoder = msgspec.json.Decoder(OlmEnvelope)
_encoder = msgspec.json.Encoder()


def _condition(table: str) -> str:
    """Tell the rows that name a user: $1 is the homeserver, $2 the user as JSON has it, $3 the user."""
    named = [f"strpos({column}::text, $2) > 0" for column in _IN_JSON.get(table, ())]
    named += [f"{column} = $3" for column in _IN_COLUMNS.get(table, ())]
    return f"homeserver_id = $1 AND $2::text <> '' AND $3::text <> '' AND ({' OR '.join(named)})"


def _named(homeserver_id: int, user_id: UserId) -> tuple[int, str, str]:
    return homeserver_id, json.dumps(user_id, ensure_ascii=False)[1:-1], user_id


async def held_rows(conn: Connection, table: str, homeserver_id: int, user_id: UserId) -> list[dict[str, Any]]:
    """Give the rows of a table that name a user, each as JSON, in an order that stays."""
    rows = await conn.fetch(
        f"SELECT to_jsonb(held) AS row FROM {table} AS held WHERE {_condition(table)} ORDER BY held",  # noqa: S608
        *_named(homeserver_id, user_id),
        timeout=SCAN_SECONDS,
    )
    return [msgspec.json.decode(row["row"]) for row in rows]


#: Every table that names users, in the order of the way that what is in them went.
TABLES = ("held_envelope", "observation", "call_session", "finding", *_WITH_DEVICE)


async def room_ids(conn: Connection, room_keys: Collection[int]) -> dict[int, str]:
    """Give the ids of rooms."""
    rows = await conn.fetch("SELECT room_key, room_id FROM room WHERE room_key = ANY($1::bigint[])", list(room_keys))
    return {row["room_key"]: row["room_id"] for row in rows}


async def megolm_sessions(conn: Connection, homeserver_id: int, user_id: UserId) -> list[tuple[str, str]]:
    """Give (session id, public key of the device) of the Megolm sessions that a user handed to the service's device."""
    rows = await conn.fetch(
        "SELECT session_id, sender_key FROM crypto.megolm_session WHERE homeserver_id = $1 AND owner = $2",
        homeserver_id,
        user_id,
    )
    return [(row["session_id"], row["sender_key"]) for row in rows]


async def olm_senders(conn: Connection, homeserver_id: int) -> list[tuple[str, str]]:
    """Give (public key, user) of the other device for each Olm session of the device; the user may be empty."""
    rows = await conn.fetch("SELECT sender_key, sender FROM crypto.olm_session WHERE homeserver_id = $1", homeserver_id)
    return [(row["sender_key"], row["sender"]) for row in rows]


async def unread_events(conn: Connection, homeserver_id: int, event_ids: Collection[str]) -> dict[str, str]:
    """Give those of some events that could not be opened, each with the session it was sealed in."""
    rows = await conn.fetch(
        """
        SELECT event_id, session_id FROM crypto.unread_event
        WHERE homeserver_id = $1 AND event_id = ANY($2::text[]) ORDER BY event_id
        """,
        homeserver_id,
        list(event_ids),
    )
    return {row["event_id"]: row["session_id"] for row in rows}


async def queued_events(conn: Connection, pseudonyms: Collection[str]) -> dict[UUID, dict[str, Any]]:
    """Give the properties of the events in the outbox in which a pseudonym stands."""
    rows = await conn.fetch(
        """
        SELECT uuid, properties FROM outbox
        WHERE EXISTS (SELECT FROM jsonb_each_text(properties) AS property WHERE property.value = ANY($1::text[]))
        ORDER BY uuid
        """,
        list(pseudonyms),
    )
    return {UUID(int=row["uuid"].int): msgspec.json.decode(row["properties"]) for row in rows}


# --- forgetting: all in one transaction of the caller ----------------------------------------------


async def hold_envelopes(conn: Connection, homeserver_id: int, user_id: UserId) -> dict[str, OlmEnvelope]:
    """Give the envelopes from and to a user that wait, by identity, and hold them: none is placed any more."""
    rows = await conn.fetch(
        """
        SELECT identity, body FROM held_envelope WHERE homeserver_id = $1 AND (sender = $2 OR recipient = $2)
        ORDER BY identity FOR UPDATE
        """,
        homeserver_id,
        user_id,
    )
    return {row["identity"]: _envelope_decoder.decode(row["body"]) for row in rows}


async def hold_rooms(conn: Connection, homeserver_id: int, user_id: UserId) -> list[int]:
    """
    Give the rooms in which something names a user, and hold them: no projector looks at them until the end.

    The partitions stay as they are meanwhile.
    """
    await conn.execute("SELECT pg_advisory_xact_lock($1)", MAINTENANCE_LOCK)
    naming = " UNION ".join(f"SELECT room_key FROM {table} WHERE {_condition(table)}" for table in _OF_ROOMS)  # noqa: S608
    rows = await conn.fetch(
        f"""
        SELECT room_key FROM projection WHERE room_key IN ({naming}) ORDER BY room_key FOR UPDATE
        """,  # noqa: S608 - the names of our own tables
        *_named(homeserver_id, user_id),
        timeout=SCAN_SECONDS,
    )
    return [row["room_key"] for row in rows]


async def hold_device(conn: Connection, homeserver_id: int) -> None:
    """Let the service's own device open nothing until the end; taken late, since transactions wait for it."""
    await conn.execute("SELECT FROM crypto.device WHERE homeserver_id = $1 FOR UPDATE", homeserver_id)


async def write_envelopes(conn: Connection, homeserver_id: int, bodies: Mapping[str, Body]) -> None:
    """Write envelopes that wait anew, by identity."""
    await conn.execute(
        """
        UPDATE held_envelope AS held
        SET body = written.body, sender = written.body ->> 'sender', recipient = written.body ->> 'recipient',
            recipient_device = written.body ->> 'recipient_device'
        FROM unnest($2::text[], $3::jsonb[]) AS written (identity, body)
        WHERE held.homeserver_id = $1 AND held.identity = written.identity
        """,
        homeserver_id,
        list(bodies),
        [_encoder.encode(body).decode() for body in bodies.values()],
    )


async def write_bodies(conn: Connection, room_key: int, bodies: Mapping[tuple[datetime, str], Body]) -> None:
    """Write the bodies of a room's observations anew, by (event time, identity)."""
    await conn.execute(
        """
        UPDATE observation AS known SET body = written.body
        FROM unnest($2::timestamptz[], $3::text[], $4::jsonb[]) AS written (event_at, identity, body)
        WHERE room_key = $1 AND known.event_at = written.event_at AND known.identity = written.identity
        """,
        room_key,
        [event_at for event_at, _ in bodies],
        [identity for _, identity in bodies],
        [_encoder.encode(body).decode() for body in bodies.values()],
        timeout=SCAN_SECONDS,
    )


async def write_reports(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the reports of calls anew, given as rows of their table."""
    await conn.execute(
        """
        UPDATE call_session AS known SET report = written.report
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::jsonb[])
             AS written (room_key, started_at, call_id, report)
        WHERE known.room_key = written.room_key AND known.started_at = written.started_at::timestamptz
          AND known.call_id = written.call_id
        """,
        [row["room_key"] for row in rows],
        [row["started_at"] for row in rows],
        [row["call_id"] for row in rows],
        [_encoder.encode(row["report"]).decode() for row in rows],
    )


async def write_findings(
    conn: Connection, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> None:
    """Write findings anew, given as rows of their table as they were and as they are to be; so do notices of them."""
    old_ids, new_ids = [row["finding_id"] for row in before], [row["finding_id"] for row in now]
    await conn.execute(
        """
        UPDATE finding AS known SET finding_id = written.new_id::uuid, body = written.body, revision = written.revision
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[])
             AS written (room_key, at, old_id, new_id, body, revision)
        WHERE known.room_key = written.room_key AND known.at = written.at::timestamptz
          AND known.finding_id = written.old_id::uuid
        """,
        [row["room_key"] for row in now],
        [row["at"] for row in now],
        old_ids,
        new_ids,
        [_encoder.encode(row["body"]).decode() for row in now],
        [None if row["revision"] is None else _encoder.encode(row["revision"]).decode() for row in now],
    )
    await conn.execute(
        """
        UPDATE notice SET notice_id = replace(notice_id, old_id, new_id)
        FROM unnest($1::text[], $2::text[]) AS renamed (old_id, new_id)
        WHERE split_part(notice_id, '/', 3) = old_id
        """,
        old_ids,
        new_ids,
    )


async def write_devices(conn: Connection, homeserver_id: int, devices: Mapping[Device, Device]) -> None:
    """Write tombstones for devices of a user where each has a row of its own."""
    for table in _WITH_DEVICE:
        column = _IN_COLUMNS[table][0]
        await conn.execute(
            f"""
            UPDATE {table} AS known SET {column} = new_user, device_id = new_device
            FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
                 AS renamed (old_user, old_device, new_user, new_device)
            WHERE homeserver_id = $1 AND {column} = old_user AND device_id = old_device
            """,  # noqa: S608 - the names of our own tables
            homeserver_id,
            [user_id for user_id, _ in devices],
            [device_id for _, device_id in devices],
            [user_id for user_id, _ in devices.values()],
            [device_id for _, device_id in devices.values()],
        )


async def write_queued(conn: Connection, properties: Mapping[UUID, Mapping[str, Any]]) -> None:
    """Write the properties of events in the outbox anew."""
    await conn.execute(
        """
        UPDATE outbox SET properties = written.properties
        FROM unnest($1::uuid[], $2::jsonb[]) AS written (uuid, properties) WHERE outbox.uuid = written.uuid
        """,
        list(properties),
        [_encoder.encode(value).decode() for value in properties.values()],
    )


async def write_unread(
    conn: Connection, homeserver_id: int, user_id: UserId, tombstone: UserId, sessions: Mapping[str, tuple[str, str]]
) -> None:
    """
    Give a user's events that could not be opened other sessions, by event as (old, new); they are not tried again.

    Why a session is withheld is known of the new one, and of the old one no longer.
    """
    named = (
        homeserver_id,
        list(sessions),
        [old for old, _ in sessions.values()],
        [new for _, new in sessions.values()],
        user_id,
        tombstone,
    )
    await conn.execute(
        """
        INSERT INTO crypto.withheld_session (homeserver_id, room_id, session_id, sender, code, noted_at)
        SELECT DISTINCT ON (room_id, new_session) homeserver_id, room_id, new_session, $6::text, code, noted_at
        FROM unnest($2::text[], $3::text[], $4::text[]) AS renamed (event_id, old_session, new_session)
        JOIN crypto.withheld_session AS known ON known.session_id = old_session
        WHERE homeserver_id = $1 AND sender IN ($5, '')
        ORDER BY room_id, new_session, sender DESC
        """,
        *named,
    )
    await conn.execute(
        """
        UPDATE crypto.unread_event AS known SET session_id = new_session, sender = $6, waiting = false
        FROM unnest($2::text[], $3::text[], $4::text[]) AS renamed (event_id, old_session, new_session)
        WHERE homeserver_id = $1 AND known.event_id = renamed.event_id AND known.session_id = old_session
          AND sender IN ($5, '')
        """,
        *named,
    )
    await conn.execute(
        "UPDATE crypto.unread_event SET sender = $3, waiting = false WHERE homeserver_id = $1 AND sender = $2",
        homeserver_id,
        user_id,
        tombstone,
    )
    await conn.execute(
        "DELETE FROM crypto.withheld_session WHERE homeserver_id = $1 AND sender = $2", homeserver_id, user_id
    )


async def drop_sessions(conn: Connection, homeserver_id: int, user_id: UserId, sender_keys: Collection[str]) -> None:
    """Drop the sessions with a user's devices."""
    await conn.execute(
        """
        WITH dropped AS (
            DELETE FROM crypto.megolm_session WHERE homeserver_id = $1 AND owner = $2
        )
        DELETE FROM crypto.megolm_index WHERE homeserver_id = $1 AND owner = $2
        """,
        homeserver_id,
        user_id,
    )
    await conn.execute(
        "DELETE FROM crypto.olm_session WHERE homeserver_id = $1 AND sender_key = ANY($2::text[])",
        homeserver_id,
        list(sender_keys),
    )


async def release_rooms(conn: Connection, room_keys: Collection[int]) -> None:
    """Tell the projectors that what they remember of these rooms is out of date."""
    await conn.execute(
        "UPDATE projection SET version = version + 1 WHERE room_key = ANY($1::bigint[])", list(room_keys)
    )


def devices_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[DeviceId]:
    """Give the device ids in the rows of tables that have one device of the user a row."""
    return {DeviceId(row["device_id"]) for table in _WITH_DEVICE for row in rows[table]}
