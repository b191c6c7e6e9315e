from datetime import UTC, datetime, timedelta

import pytest

from rtc_appservice.intake.stream import Stream

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Give a time by its distance from NOW."""
    return NOW + timedelta(seconds=seconds)


def took(stream: Stream, newest_at: datetime | None, received_at: datetime) -> None:
    """Let a transaction begin and be committed."""
    stream.begin()
    stream.commit(newest_at, received_at)


def test_follows_events_while_a_backlog_drains() -> None:
    """Old events move the watermark to themselves, not to the wall clock: no deadline fires early."""
    stream = Stream(at(-1000))

    took(stream, at(-900), NOW)
    assert at(-900) == stream.watermark(NOW)

    took(stream, at(-500), at(1))
    assert at(-500) == stream.watermark(at(100))
    assert not stream.current


def test_follows_the_clock_when_current_and_idle() -> None:
    """After an event younger than ten seconds the watermark of an idle stream stays thirty seconds behind now."""
    stream = Stream()

    took(stream, at(-9), NOW)

    assert stream.current
    assert at(-9) == stream.watermark(at(5))
    assert at(70) == stream.watermark(at(100))


def test_ten_seconds_old_is_not_young() -> None:
    """The bound itself does not count."""
    stream = Stream()

    took(stream, at(-10), NOW)

    assert not stream.current


def test_stands_while_a_transaction_is_in_flight() -> None:
    """What is being taken may hold older events, so the clock is not followed."""
    stream = Stream()
    took(stream, NOW, NOW)

    stream.begin()

    assert stream.watermark(at(500)) == NOW


def test_stands_after_a_failure_until_a_young_event() -> None:
    """A transaction that was not stored comes again, and so does what came after it."""
    stream = Stream()
    took(stream, NOW, NOW)

    stream.begin()
    stream.fail()
    assert stream.watermark(at(500)) == NOW

    took(stream, None, at(501))
    assert stream.watermark(at(502)) == NOW

    took(stream, at(499), at(503))
    assert stream.current
    assert at(970) == stream.watermark(at(1000))


def test_old_events_on_an_idle_stream_are_a_backlog() -> None:
    """What was sent since the last young event came late; the clock is not followed until the next one."""
    stream = Stream()
    took(stream, NOW, NOW)

    took(stream, at(300), at(360))
    assert stream.behind_since is None

    took(stream, at(299), at(361))
    assert at(299) == stream.behind_since
    assert not stream.current
    assert at(300) == stream.watermark(at(1000))

    took(stream, at(900), at(1000))
    assert at(299) == stream.behind_since

    took(stream, at(1000), at(1001))
    assert stream.behind_since is None
    assert at(1001) == stream.shown_current_at


@pytest.mark.parametrize(("idle", "behind_since"), [(60, None), (61, 0), (100_000, 0)])
def test_an_event_dated_back_among_young_ones_is_no_backlog(idle: float, behind_since: float | None) -> None:
    """A bridge gives messages the time they had elsewhere; what was seen up to then was seen in time."""
    stream = Stream()
    took(stream, NOW, NOW)

    took(stream, at(-86_400), at(idle))

    assert stream.behind_since == (None if behind_since is None else at(behind_since))


def test_a_start_after_an_outage_is_behind_since_the_outage() -> None:
    """How far the stream had come is known from the database."""
    stream = Stream(at(-600))

    took(stream, at(-900), NOW)
    assert at(-600) == stream.behind_since

    stream = Stream(at(-600))
    took(stream, at(-500), NOW)
    assert at(-500) == stream.behind_since
    assert stream.shown_current_at is None


def test_never_goes_back() -> None:
    """Neither an older event nor a clock that was set back moves it."""
    stream = Stream()
    took(stream, at(60), at(60))

    took(stream, at(30), at(61))
    assert at(60) == stream.watermark(at(61))
    assert at(60) == stream.watermark(at(-5000))


def test_nothing_seen_is_no_watermark() -> None:
    """Before the first event there is none."""
    assert Stream().watermark(NOW) is None
