from datetime import UTC, datetime, timedelta

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
