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
        made = [(sender_key, name, f"{name} as of {minute}")]
        await crypto.save_olm_sessions(conn, number, made, NOON + timedelta(minutes=minute), 2)

    found = await crypto.load_olm_sessions(conn, number, {"alice", "bob"})

    assert [("alice", "third as of 4"), ("alice", "first as of 3"), ("bob", "only as of 1")] == found
