"""A sealed to-device message belongs to the room in whose slot both devices have stints, or to none."""

from datetime import timedelta

import pytest

from rtc_appservice.core.envelope import place, placed_observation
from rtc_appservice.core.model import StintSpan
from rtc_appservice.core.observed import HeldEnvelope
from rtc_appservice.core.words import RoomId

from .build import HOMESERVER, OTHER_ROOM, ROOM, SLOT, at, olm_envelope, who


def held(seconds: float, sender: str = "alice", recipient: str = "bob") -> HeldEnvelope:
    """Give an envelope received at a time."""
    body = olm_envelope(sender, recipient)
    return HeldEnvelope(homeserver=HOMESERVER, identity="hash", received_at=at(seconds), body=body)


def span(name: str, joined: float, left: float | None = None, room_id: RoomId = ROOM, slot_id: str = SLOT) -> StintSpan:
    """Give a stint."""
    user_id, device_id = who(name)
    left_at = None if left is None else at(left)
    return StintSpan(
        room_id=room_id, slot_id=slot_id, user_id=user_id, device_id=device_id, joined_at=at(joined), left_at=left_at
    )


DAY = timedelta(days=1).total_seconds()


@pytest.mark.parametrize(
    ("spans", "seconds", "room_id"),
    [
        pytest.param([span("alice", 0), span("bob", 10)], 20, ROOM, id="both live"),
        pytest.param([span("alice", 0), span("bob", 10)], 6, ROOM, id="it overtakes the recipient's membership"),
        pytest.param([span("alice", 0), span("bob", 10)], 4, None, id="too early for the recipient"),
        pytest.param([span("alice", 10), span("bob", 0)], 6, ROOM, id="it overtakes the sender's membership"),
        pytest.param([span("alice", 10), span("bob", 0)], 4, None, id="too early for the sender"),
        pytest.param([span("alice", 0), span("bob", 0, 30)], 35, ROOM, id="the recipient has just left"),
        pytest.param([span("alice", 0), span("bob", 0, 30)], 36, None, id="the recipient is gone"),
        pytest.param([span("alice", 0, 30), span("bob", 0)], 30 + DAY, ROOM, id="the sender left within a day"),
        pytest.param([span("alice", 0, 30), span("bob", 0)], 31 + DAY, None, id="the sender left long ago"),
        pytest.param([span("alice", 0)], 20, None, id="the recipient is in no call"),
        pytest.param([span("bob", 0)], 20, None, id="the sender is in no call"),
        pytest.param([span("alice", 0), span("bob/2", 0)], 20, None, id="another device of the recipient"),
        pytest.param([span("alice/2", 0), span("bob", 0)], 20, ROOM, id="the sending device is not named"),
        pytest.param([span("alice", 0), span("bob", 0, None, OTHER_ROOM)], 20, None, id="in different rooms"),
        pytest.param([span("alice", 0), span("bob", 0, None, ROOM, "m.call#x")], 20, None, id="in different slots"),
        pytest.param([], 20, None, id="no stints at all"),
    ],
)
def test_place(spans: list[StintSpan], seconds: float, room_id: RoomId | None) -> None:
    """Both devices have stints in one slot: the recipient's about live, the sender's up to a day ago."""
    assert room_id == place(held(seconds), spans)
    assert room_id == place(held(seconds), spans[::-1])


def test_a_device_does_not_send_keys_to_itself() -> None:
    """A user with one device in the call sends nothing there; with two, one may send to the other."""
    assert None is place(held(20, "alice", "alice"), [span("alice", 0)])
    assert ROOM == place(held(20, "alice", "alice/2"), [span("alice", 0), span("alice/2", 0)])


def test_where_several_rooms_fit_the_one_entered_last_wins() -> None:
    """A pair that is in two calls at once."""
    spans = [
        span("alice", 0),
        span("bob", 0),
        span("alice", 50, None, OTHER_ROOM),
        span("bob", 40, None, OTHER_ROOM),
    ]

    assert OTHER_ROOM == place(held(60), spans)
    assert OTHER_ROOM == place(held(60), spans[::-1])
    assert ROOM == place(held(30), spans)


def test_a_placed_envelope_keeps_what_it_is() -> None:
    """It becomes an observation under its own identity and time of receipt."""
    envelope = held(20)
    placed = placed_observation(envelope, ROOM)

    assert (ROOM, envelope.identity, envelope.body) == (placed.room_id, placed.identity, placed.body)
    assert [envelope.received_at] * 2 == [placed.event_at, placed.received_at]
    assert not placed.late
