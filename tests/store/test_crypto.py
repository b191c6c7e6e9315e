"""What the store keeps of the service's own device."""

from datetime import UTC, datetime, timedelta

from rtc_appservice.core.words import DeviceId, ServerName, UserId
from rtc_appservice.store import crypto
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.streams import open_stream

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


async def test_the_last_sessions_of_each_sender_stay(conn: Connection) -> None:
    """A sender may make new ones without end; those used last are kept, whenever they were made."""
    number = (await open_stream(conn, ServerName("lab.test"))).homeserver_id
    await crypto.add_device(conn, number, UserId("@auditor:lab.test"), DeviceId("OURS"), "PICKLE")
    for minute, (sender_key, name) in enumerate(
        [("alice", "first"), ("bob", "only"), ("alice", "second"), ("alice", "first"), ("alice", "third")]
    ):
        made = [(UserId(f"@{sender_key}:lab.test"), sender_key, name, f"{name} as of {minute}")]
        await crypto.save_olm_sessions(conn, number, made, NOON + timedelta(minutes=minute), 2, 10)

    found = await crypto.load_olm_sessions(conn, number, {"alice", "bob"})

    assert [("alice", "third as of 4"), ("alice", "first as of 3"), ("bob", "only as of 1")] == found


async def test_the_last_sessions_of_each_user_stay(conn: Connection) -> None:
    """A user may send under new keys without end, which are told from a device's only much later, if ever."""
    number = (await open_stream(conn, ServerName("lab.test"))).homeserver_id
    for minute in range(5):
        made = [(UserId("@mallory:lab.test"), f"key {minute}", "session", "PICKLE")]
        if minute == 0:
            made.append((UserId("@bob:lab.test"), "bob", "session", "PICKLE"))
        await crypto.save_olm_sessions(conn, number, made, NOON + timedelta(minutes=minute), 10, 3)

    kept = {row["sender_key"] for row in await conn.fetch("SELECT sender_key FROM crypto.olm_session")}

    assert {"bob", "key 2", "key 3", "key 4"} == kept
