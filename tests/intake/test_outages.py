from datetime import UTC, datetime, timedelta

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, RoomId, ServerName
from rtc_appservice.intake.outages import Outages

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
HOMESERVER = ServerName("lab.test")


def test_a_gap_begins_once_and_ends_once() -> None:
    """A second beginning of the same outage changes nothing; the end is written under the same id."""
    outages = Outages(HOMESERVER)

    outages.begin(GapReason.TO_DEVICE_LOST, NOW)
    outages.begin(GapReason.TO_DEVICE_LOST, LATER)
    begun = outages.unwritten()
    assert [(gap.reason, gap.started_at, gap.ended_at) for gap in begun] == [(GapReason.TO_DEVICE_LOST, NOW, None)]
    outages.written(begun)
    assert outages.unwritten() == []

    outages.end(GapReason.TO_DEVICE_LOST, LATER)
    outages.end(GapReason.TO_DEVICE_LOST, LATER + timedelta(hours=1))
    ended = outages.unwritten()
    assert [(begun[0].gap_id, LATER)] == [(gap.gap_id, gap.ended_at) for gap in ended]


def test_what_changed_while_it_was_written_is_written_again() -> None:
    """A gap that ends between the reading and the noting of a write is not forgotten."""
    outages = Outages(HOMESERVER)
    outages.begin(GapReason.DATABASE_DOWN, NOW)
    being_written = outages.unwritten()

    outages.end(GapReason.DATABASE_DOWN, LATER)
    outages.written(being_written)

    assert [gap.ended_at for gap in outages.unwritten()] == [LATER]


def test_goes_on_with_what_the_database_holds_as_open() -> None:
    """A gap left open by a crash is ended, not begun anew; one of a single room is none of ours."""
    outages = Outages(HOMESERVER)
    left = Gap(gap_id="left", homeserver=HOMESERVER, reason=GapReason.TO_DEVICE_LOST, started_at=NOW, ended_at=None)
    room = Gap(
        gap_id="room",
        homeserver=HOMESERVER,
        reason=GapReason.ROOM_JOINED_LATE,
        started_at=NOW,
        ended_at=None,
        room_id=RoomId("!room"),
    )
    outages.adopt([left, room])

    outages.begin(GapReason.TO_DEVICE_LOST, LATER)
    assert outages.unwritten() == []

    outages.end(GapReason.TO_DEVICE_LOST, LATER)
    outages.end(GapReason.ROOM_JOINED_LATE, LATER)
    assert [(gap.gap_id, gap.ended_at) for gap in outages.unwritten()] == [("left", LATER)]
