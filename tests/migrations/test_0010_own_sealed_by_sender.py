"""What the service's device had when the columns come is of use afterwards."""

from datetime import UTC, datetime

from rtc_appservice.core.words import RoomId, UserId
from rtc_appservice.store import crypto, migrate
from rtc_appservice.store.pool import open_pool

from .old import upgrade_to

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
BEFORE = """
INSERT INTO homeserver (name) VALUES ('lab.test');
INSERT INTO crypto.megolm_session
    (homeserver_id, room_id, session_id, owner, sender_key, trust, first_index, pickle, received_at)
    VALUES (1, '!r', 's', '@alice:lab.test', 'k', 'unknown', 0, 'P', '2026-11-23T12:00Z');
INSERT INTO crypto.megolm_index (homeserver_id, session_id, index, event_id, noted_at)
    VALUES (1, 's', 0, '$0', now()), (1, 'gone', 0, '$1', now());
INSERT INTO crypto.olm_session (homeserver_id, sender_key, session_id, pickle, used_at)
    VALUES (1, 'k', 's', 'P', '2026-11-23T12:00Z');
INSERT INTO crypto.unread_event (homeserver_id, event_id, room_id, session_id, reason, noted_at)
    VALUES (1, '$a', '!r', 's', 'missing_session', now()), (1, '$b', '!r', 'other', 'missing_session', now());
INSERT INTO crypto.withheld_session (homeserver_id, room_id, session_id, code, noted_at)
    VALUES (1, '!r', 'other', 'm.unverified', now());
"""


async def test_what_was_there(empty_database: str) -> None:
    """Places belong to who handed the session over, unread events wait on, and their code is told."""
    old = await upgrade_to("0009", empty_database)
    await old.execute(BEFORE)
    await old.close()

    await migrate.upgrade(empty_database)

    alice = UserId("@alice:lab.test")
    async with await open_pool(empty_database, 1) as pool, pool.acquire() as conn:
        assert [crypto.IndexRow("s", alice, 0, "$0", None)] == await crypto.load_indices(conn, 1, ["s", "gone"])
        assert {"missing_session": 1, "m.unverified": 1} == await crypto.count_unread(conn, 1)
        assert ["$a"] == [one.event_id for one in await crypto.readable_now(conn, 1, 10)]
        assert [alice] == [
            one.owner for one in await crypto.load_megolm_sessions(conn, 1, {(RoomId("!r"), "s", alice)})
        ]
        await crypto.save_olm_sessions(conn, 1, [(alice, "k", "s", "Q")], NOON, 10, 10)
        assert [("k", "Q")] == await crypto.load_olm_sessions(conn, 1, {"k"})
