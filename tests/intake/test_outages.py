from datetime import UTC, datetime, timedelta

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason, RoomId, ServerName
from rtc_appservice.intake.outages import Life, Outages

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


def lost(gap_id: str, started_at: datetime, ended_at: datetime | None = None) -> Gap:
    """Give a gap of to-device messages."""
    return Gap(
        gap_id=gap_id,
        homeserver=HOMESERVER,
        reason=GapReason.TO_DEVICE_LOST,
        started_at=started_at,
        ended_at=ended_at,
    )


def test_what_another_instance_ended_is_ended() -> None:
    """It is not ended once more, later; what was lost since then is a gap of its own."""
    outages = Outages(HOMESERVER)
    outages.adopt([lost("left", NOW)])

    outages.begin(GapReason.TO_DEVICE_LOST, LATER)
    outages.begin(GapReason.TO_DEVICE_LOST, LATER + timedelta(seconds=5))
    outages.follow([])

    assert [(gap.started_at, gap.ended_at) for gap in outages.unwritten()] == [(LATER, None)]


def test_what_another_instance_ended_is_left_alone() -> None:
    """Nothing was lost since: nothing is to be written, also when all is well here."""
    outages = Outages(HOMESERVER)
    outages.adopt([lost("left", NOW)])

    outages.follow([])
    outages.end(GapReason.TO_DEVICE_LOST, LATER)

    assert outages.unwritten() == []


def test_what_is_not_written_yet_is_not_taken_from_the_database() -> None:
    """A gap the database does not hold yet stays open; one it holds open still, but which has ended, stays ended."""
    outages = Outages(HOMESERVER)
    outages.adopt([lost("left", NOW)])
    outages.end(GapReason.TO_DEVICE_LOST, LATER)
    outages.begin(GapReason.DATABASE_DOWN, LATER)

    outages.follow([lost("left", NOW)])
    outages.end(GapReason.TO_DEVICE_LOST, LATER + timedelta(hours=1))
    outages.end(GapReason.DATABASE_DOWN, LATER)

    assert [(gap.reason, gap.ended_at) for gap in outages.unwritten()] == [
        (GapReason.TO_DEVICE_LOST, LATER),
        (GapReason.DATABASE_DOWN, LATER),
    ]


def test_a_gap_ends_by_what_was_seen_after_it_began() -> None:
    """That all was well before, or as it began, shows nothing."""
    outages = Outages(HOMESERVER)
    outages.follow([lost("other", NOW)])

    outages.end_before(GapReason.TO_DEVICE_LOST, NOW)
    outages.end_before(GapReason.BACKLOG, LATER)
    assert outages.unwritten() == []

    outages.end_before(GapReason.TO_DEVICE_LOST, LATER)
    assert [(gap.gap_id, gap.ended_at) for gap in outages.unwritten()] == [("other", LATER)]


def test_starts_that_came_to_nothing_are_one_gap() -> None:
    """Where the service was seen in between, they are two."""
    outages = Outages(HOMESERVER)
    outages.down(NOW, LATER, [])
    (first,) = outages.unwritten()
    outages.written([first])

    third = LATER + timedelta(minutes=1)
    outages.down(LATER, third, [first])
    (longer,) = outages.unwritten()
    assert (first.gap_id, NOW, third) == (longer.gap_id, longer.started_at, longer.ended_at)
    outages.written([longer])

    outages.down(third + timedelta(seconds=1), third + timedelta(seconds=9), [longer])
    assert [gap.started_at for gap in outages.unwritten()] == [third + timedelta(seconds=1)]


def test_life_is_as_long_as_its_heartbeats_follow_each_other() -> None:
    """After a pause, such as a database that hung, nobody knows."""
    life = Life()
    assert NOW == life.since(NOW)

    for seconds in (0, 10, 40):
        life.beat(NOW + timedelta(seconds=seconds))
    assert NOW == life.since(NOW + timedelta(seconds=70))
    assert NOW + timedelta(seconds=71) == life.since(NOW + timedelta(seconds=71))
