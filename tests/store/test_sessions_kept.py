"""How long Megolm sessions are kept, and which event had which place in them."""

from datetime import UTC, datetime, timedelta

from rtc_appservice.core.words import DeviceTrust, RoomId, ServerName, UserId
from rtc_appservice.store import audited_rooms, crypto
from rtc_appservice.store.crypto import IndexRow, MegolmRow
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.streams import open_stream

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ROOM, ELSEWHERE = RoomId("!in"), RoomId("!elsewhere")


def session(room_id: RoomId, session_id: str) -> MegolmRow:
    """Give a Megolm session."""
    return MegolmRow(
        room_id=room_id,
        session_id=session_id,
        owner=UserId("@alice:lab.test"),
        sender_key="k",
        device_id=None,
        trust=DeviceTrust.UNKNOWN,
        first_index=0,
        pickle="",
    )


def place(session_id: str, index: int, event_id: str) -> IndexRow:
    """Give an event's place in a session."""
    return IndexRow(session_id, UserId("@alice:lab.test"), index, event_id, NOW)


async def test_sessions_nobody_needs_are_dropped(conn: Connection) -> None:
    """Those unused for three months, and those of rooms the device is not in: anybody can hand over any number."""
    number = (await open_stream(conn, ServerName("lab.test"))).homeserver_id
    await audited_rooms.want_room(conn, number, ROOM, wanted=True)
    long_ago, last_week, just_now = NOW - timedelta(days=91), NOW - timedelta(days=7), NOW - timedelta(hours=1)
    for at, room_id, session_id in [
        (long_ago, ROOM, "unused"),
        (long_ago, ROOM, "used"),
        (last_week, ROOM, "waits for its events"),
        (last_week, ELSEWHERE, "of another room"),
        (just_now, ELSEWHERE, "of a room it may be about to enter"),
    ]:
        await crypto.save_megolm_sessions(conn, number, [session(room_id, session_id)], at)
    await crypto.save_indices(conn, number, [place("used", 0, "$0"), place("unused", 0, "$1")], long_ago)
    await crypto.save_indices(conn, number, [place("used", 1, "$2"), place("of another room", 0, "$3")], last_week)

    await crypto.prune(conn, number, NOW)

    kept = {row["session_id"] for row in await conn.fetch("SELECT session_id FROM crypto.megolm_session")}
    places = {row["event_id"] for row in await conn.fetch("SELECT event_id FROM crypto.megolm_index")}
    assert {"used", "waits for its events", "of a room it may be about to enter"} == kept
    assert {"$0", "$2"} == places
