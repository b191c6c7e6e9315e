"""
Queries on the hot paths use their indexes; a plan that falls back to reading a whole table fails here.

The functions of the store run as they are, and PostgreSQL's own counters tell what they read from end to end.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from rtc_appservice.core.observed import Observation, Redaction
from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import CallId, DeviceId, EventId, RoomId, ServerName, UserId
from rtc_appservice.store import (
    condition,
    envelopes,
    findings,
    gaps,
    notices,
    observations,
    outbox,
    overview,
    pages,
    partitions,
    projection,
    rooms,
    sessions,
    undecryptable,
)
from rtc_appservice.store.pool import Connection

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
#: What may be read from end to end: tables that stay small, partitions with nothing in them.
FEW = 500
#: Past the end of every list: what is found is sorted, and none of it is given.
NONE = 1_000_000
HOMESERVER = ServerName("lab.test")
ROOM = RoomId("!1")

FILL = """
INSERT INTO homeserver (name) VALUES ('lab.test');
INSERT INTO stream (homeserver_id, watermark_at) VALUES (1, '2026-11-23T12:00Z');
INSERT INTO room (homeserver_id, room_id, watched_since)
    SELECT 1, '!' || n, '2026-11-01' FROM generate_series(1, 500) n;
INSERT INTO projection (room_key, homeserver_id) SELECT room_key, 1 FROM room;
INSERT INTO observation (room_key, event_at, identity, homeserver_id, kind, received_at, late, body)
    SELECT n % 500 + 1, '2026-11-23T12:00Z'::timestamptz + n * interval '1 s', '$' || n, 1,
           CASE WHEN n % 100 = 0 THEN 'room_state' ELSE 'membership' END, '2026-11-23T12:00Z', false,
           '{"kind": "rejected", "sender": null, "event_type": "m.room.create", "reason": "malformed"}'
    FROM generate_series(1, 50000) n;
INSERT INTO observation_identity (homeserver_id, identity, event_at)
    SELECT 1, identity, event_at FROM observation;
INSERT INTO call_session (room_key, started_at, call_id, homeserver_id, slot_id, ended_at, verdict, evidence, settled,
                          report)
    SELECT n % 500 + 1, '2026-11-23T12:00Z'::timestamptz + n * interval '1 min', n, 1, 's',
           '2026-11-23T12:01Z'::timestamptz + n * interval '1 min', 'solo', 'direct', true, '{}'
    FROM generate_series(1, 20000) n;
INSERT INTO finding (room_key, at, finding_id, homeserver_id, call_id, kind, state, body)
    SELECT n % 500 + 1, '2026-11-23T12:00Z'::timestamptz + n * interval '1 min', gen_random_uuid(), 1, n, 'fallback',
           'settled', '{}'
    FROM generate_series(1, 20000) n;
INSERT INTO stint (room_key, call_id, user_id, device_id, joined_at, homeserver_id, slot_id, left_at)
    SELECT n % 500 + 1, n, '@u' || n, 'D', '2026-11-23T12:00Z', 1, 's', '2026-11-23T13:00Z'
    FROM generate_series(1, 20000) n;
INSERT INTO held_envelope (homeserver_id, identity, received_at, sender, recipient, recipient_device, body)
    SELECT 1, n, '2026-11-23T11:59Z'::timestamptz + n * interval '100 ms', '@u' || n, '@u' || n + 1, 'D',
           '{"kind": "olm_envelope", "sender": "@s", "recipient": "@r", "recipient_device": "D", "olm_type": 0,
             "body_length": 1, "sender_key_id": "k"}'
    FROM generate_series(1, 50) n;
INSERT INTO outbox (uuid, event, distinct_id, timestamp, properties, state, attempts, next_attempt_at)
    SELECT gen_random_uuid(), 'e', 'd', '2026-11-23T12:00Z', '{}', 'pending', 0,
           '2026-11-23T12:00Z'::timestamptz + n * interval '1 s'
    FROM generate_series(1, 20000) n;
INSERT INTO history_ledger (room_key, event_id, homeserver_id, at, sender, device_id, keys)
    SELECT n % 500 + 1, '$' || n, 1, '2026-11-23T12:00Z', '@u', 'D', 1 FROM generate_series(1, 20000) n;
INSERT INTO crypto.unread_event (homeserver_id, event_id, room_id, session_id, reason, noted_at)
    SELECT 1, '$' || n, '!1', 's' || n, 'missing_session', '2026-11-23T12:00Z' FROM generate_series(1, 20000) n;
INSERT INTO crypto.unread_message (homeserver_id, identity, reason, noted_at)
    SELECT 1, n, 'olm_failed', '2026-11-23T12:00Z' FROM generate_series(1, 20000) n;
INSERT INTO crypto.withheld_session (homeserver_id, room_id, session_id, code, noted_at)
    SELECT 1, '!1', 's' || n, 'm.unverified', '2026-11-23T12:00Z' FROM generate_series(1, 20000) n;
"""

Act = Callable[[Connection], Awaitable[object]]


def a_transaction() -> Intake:
    """Give a transaction with one observation."""
    observation = Observation(
        homeserver=HOMESERVER,
        room_id=ROOM,
        identity="$new",
        event_at=NOW,
        received_at=NOW,
        body=Redaction(sender=UserId("@a:lab.test"), redacts=EventId("$key")),
    )
    return Intake(observations=[observation], newest_at=NOW)


def an_unread_event() -> undecryptable.UnreadRow:
    """Give an event that could not be opened."""
    return undecryptable.UnreadRow(
        event_id=EventId("$new"),
        room_id=ROOM,
        session_id="s1",
        sender=UserId("@u1"),
        event_at=NOW,
        reason=UndecryptableReason.MISSING_SESSION,
    )


async def cached(conn: Connection) -> rooms.RoomCache:
    """Give a cache that knows the room."""
    cache = rooms.RoomCache()
    cache.add(await rooms.allocate_rooms(conn, 1, [ROOM], [], NOW))
    return cache


async def record_one(conn: Connection) -> None:
    """Store a transaction of a room that is known."""
    await observations.record(conn, 1, a_transaction(), await cached(conn))


ACTS: dict[str, Act] = {
    "record": record_one,
    "load_call_members": lambda c: observations.load_call_members(c, 1, HOMESERVER, ROOM, NOW),
    "load_room": lambda c: observations.load_room(c, HOMESERVER, ROOM, 1, NOW),
    "load_condition": lambda c: condition.load_condition(c, NOW),
    "candidates": lambda c: projection.candidates(c, 1, NOW, 100),
    "claim": lambda c: projection.claim(c, 1, NOW),
    "first_overlapping": lambda c: projection.first_overlapping(c, 1, NOW),
    "oldest_unsettled": lambda c: projection.oldest_unsettled(c, 1, NOW),
    "known_calls": lambda c: sessions.known_calls(c, 1, NOW),
    "remove_calls": lambda c: sessions.remove_calls(c, 1, 1, NOW, [CallId("1")]),
    "write_stints": lambda c: sessions.write_stints(c, 1, 1, [], [CallId("1")]),
    "load_to_device_seen": lambda c: sessions.load_to_device_seen(
        c, 1, [(UserId("@u1"), DeviceId("D"))], NOW - timedelta(days=30)
    ),
    "write_findings": lambda c: findings.write_findings(c, 1, 1, NOW, {}, [CallId("1")], days_since=NOW),
    "oldest_open_of_room": lambda c: findings.oldest_open_of_room(c, 1, NOW),
    "load_of_rooms": findings.load_of_rooms,
    "split_calls": lambda c: notices.split_calls(c, 1),
    "load_tally": lambda c: overview.load_tally(c, [1], NOW + timedelta(days=13), NOW + timedelta(days=14)),
    "newest_gaps": lambda c: gaps.newest_gaps(c, [1], NOW, 30),
    "list_calls of a room": lambda c: pages.list_calls(c, pages.CallFilter(room_key=1), limit=50, offset=NONE, now=NOW),
    "list_calls of late": lambda c: pages.list_calls(
        c, pages.CallFilter(homeserver_id=1, since=NOW + timedelta(days=13)), limit=50, offset=NONE, now=NOW
    ),
    "list_rooms, one": lambda c: pages.list_rooms(c, limit=1, room_key=1),
    "load_ledger": lambda c: pages.load_ledger(c, 1, limit=50, offset=0),
    "load_streams": pages.load_streams,
    "load_undecryptable": lambda c: undecryptable.load_undecryptable(c, 1, ["$1", "$2"]),
    "note_unread": lambda c: undecryptable.note_unread(c, 1, [an_unread_event()], NOW),
    "note_opened": lambda c: undecryptable.note_opened(c, 1, ["$1"], NOW),
    "placeable": lambda c: envelopes.placeable(c, 1, HOMESERVER),
    "drop_unplaced": lambda c: envelopes.drop_unplaced(c, 1, NOW + timedelta(seconds=65)),
    "lease": lambda c: outbox.lease(c, 100, 60, NOW + timedelta(minutes=5)),
    "done": lambda c: outbox.done(c, [UUID(int=1)]),
}


@pytest.fixture(scope="module")
async def filled(postgres: str, template: str) -> AsyncIterator[str]:
    """Give the DSN of a database that has seen some life."""
    dsn = postgres.replace("/postgres?", "/query_plans?")
    admin = await asyncpg.connect(postgres)
    await admin.execute(f'CREATE DATABASE query_plans TEMPLATE "{template}"')
    conn = await asyncpg.connect(dsn)
    await partitions.maintain(conn, NOW)
    await conn.execute(FILL)
    await conn.execute("ANALYZE")
    await conn.close()
    yield dsn
    await admin.execute("DROP DATABASE query_plans WITH (FORCE)")
    await admin.close()


async def read_whole(dsn: str, act: Act) -> list[tuple[str, int]]:
    """Act on a connection of its own, in vain; give the tables that were read from end to end, and how many rows."""
    conn = await asyncpg.connect(dsn)
    transaction = conn.transaction()
    await transaction.start()
    await act(conn)
    rows = await conn.fetch("SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables WHERE seq_tup_read > $1", FEW)
    await transaction.rollback()
    await conn.close()
    return [(row["relname"], row["seq_tup_read"]) for row in rows]


@pytest.mark.parametrize("name", ACTS)
async def test_no_large_table_is_read_whole(filled: str, name: str) -> None:
    """No query of the hot paths reads a large table from end to end."""
    assert await read_whole(filled, ACTS[name]) == []


async def test_a_whole_read_would_be_noticed(filled: str) -> None:
    """The counters this rests on do count."""
    query = "SELECT body FROM observation WHERE body ->> 'event_type' = 'none'"

    assert await read_whole(filled, lambda conn: conn.fetch(query)) == [("observation_p20261123", 50_000)]
