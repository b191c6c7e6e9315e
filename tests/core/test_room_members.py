"""Room members in the wire: what a state key may not be."""

from datetime import UTC, datetime
from typing import Any

import pytest

from rtc_appservice.core.observed import Rejected, RoomState
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import RoomId, ServerName

ROOM = RoomId("!room")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def read(state_key: Any) -> RoomState | Rejected:
    """Read a member's leave from a watched room."""
    event = {
        "type": "m.room.member",
        "event_id": "$leave",
        "room_id": ROOM,
        "sender": "@ann:example.org",
        "origin_server_ts": int(NOW.timestamp() * 1000),
        "state_key": state_key,
        "content": {"membership": "leave"},
    }
    reader = TransactionReader(ServerName("example.org"), b"a secret of the tests")
    (observation,) = reader.read({"events": [event]}, received_at=NOW, watched={ROOM}).observations
    assert isinstance(observation.body, RoomState | Rejected)
    return observation.body


@pytest.mark.parametrize("state_key", ["@x\0:example.org", "@" + "x" * 255, "@x\ud800:example.org", 5, ["@x"]])
def test_a_state_key_no_database_takes_is_malformed(state_key: Any) -> None:
    """PostgreSQL would refuse it at every resend, and the homeserver's queue would stop for good."""
    body = read(state_key)

    assert isinstance(body, Rejected)
    assert ("malformed", "event.state_key") == (body.reason, body.field)


def test_a_member_who_leaves_is_room_state() -> None:
    """The same event with a user id is taken."""
    body = read("@bob:example.org")

    assert isinstance(body, RoomState)
    assert ("@bob:example.org", "leave") == (body.state_key, body.value)
