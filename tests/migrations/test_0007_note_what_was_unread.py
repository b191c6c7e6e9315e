"""What stood in the tables when the columns come is told like anything newer."""

from datetime import UTC, datetime

from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode
from rtc_appservice.store import crypto, migrate
from rtc_appservice.store.overview import load_tally
from rtc_appservice.store.pool import open_pool
from rtc_appservice.store.undecryptable import load_undecryptable

from .old import upgrade_to

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
BEFORE = """
INSERT INTO homeserver (name) VALUES ('lab.test');
INSERT INTO crypto.unread_event (homeserver_id, event_id, room_id, session_id, reason, withheld_code, noted_at) VALUES
    (1, '$a', '!r', 's', 'missing_session', 'm.unverified', now()),
    (1, '$b', '!r', 's', 'missing_session', NULL, now()),
    (1, '$c', '!r', 't', 'replayed', NULL, now());
INSERT INTO call_session (room_key, homeserver_id, started_at, call_id, slot_id, verdict, evidence, settled, report)
    VALUES (1, 1, '2026-11-23T12:00Z', 'c', 's', 'mixed', 'inferred', true,
            '{"coverage": ["timeline_partial", "envelopes"], "fallbacks": [{"cause": "followed", "evidence": "direct",
              "user_id": "@u", "device_id": "D", "at": "2026-11-23T12:00:01Z"}], "participants": []}');
"""


async def test_what_was_there(empty_database: str) -> None:
    """Unread events wait on, their code is that of the session; a call is counted with its coverage and fallbacks."""
    old = await upgrade_to("0006", empty_database)
    await old.execute(BEFORE)
    await old.close()

    await migrate.upgrade(empty_database)

    async with await open_pool(empty_database, 1) as pool, pool.acquire() as conn:
        assert {"m.unverified": 2, "replayed": 1} == await crypto.count_unread(conn, 1)
        noted = await load_undecryptable(conn, 1, ["$b", "$c"])
        assert {
            "$b": (UndecryptableReason.WITHHELD, WithheldCode.UNVERIFIED),
            "$c": (UndecryptableReason.REPLAYED, None),
        } == {name: (one.reason, one.withheld_code) for name, one in noted.items()}
        counted = await load_tally(conn, [1], NOON, NOON)
    assert [("timeline_partial", "envelopes")] == [count.coverage for count in counted.counts]
    assert [("followed", 1)] == [(count.cause, count.fallbacks) for count in counted.causes]
