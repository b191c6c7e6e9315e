"""Stage 1: how far one homeserver's stream has come, and whether it is up to date. Pure: time is passed in."""

from datetime import datetime, timedelta

#: An event younger than this shows that the homeserver has nothing older left to send.
CURRENT_WITHIN = timedelta(seconds=10)
#: So far behind the wall clock the watermark of an idle stream stays: what is under way may still arrive.
IDLE_BEHIND = timedelta(seconds=30)
#: An event older than this, and none young for as long, show that the homeserver is behind.
BACKLOG_AFTER = timedelta(seconds=60)


class Stream:
    """
    The watermark of one homeserver's stream.

    It is the greatest event time seen from local senders and to-device arrivals. While the stream is current,
    idle and unbroken it follows the wall clock; after an outage it does so again only once a young event has
    shown that the backlog is through. It never goes back.

    An event of long ago on a stream that was idle shows a backlog too: then it follows the events again.
    """

    def __init__(self, watermark_at: datetime | None = None) -> None:
        """Start where the stream stood when it was last seen; not current until proven."""
        self._watermark_at = watermark_at
        self._in_flight = 0
        self._up_to_date_at = watermark_at
        self.current = False
        #: What was sent since then came late; None while nothing says so.
        self.behind_since: datetime | None = None

    @property
    def shown_current_at(self) -> datetime | None:
        """When a young event came last, None if something says that the stream is not current."""
        return self._up_to_date_at if self.current else None

    def watermark(self, now: datetime) -> datetime | None:
        """Give the time up to which the stream has been seen, None before the first event."""
        if self.current and not self._in_flight:
            self._advance(now - IDLE_BEHIND)
        return self._watermark_at

    def begin(self) -> None:
        """Note that a transaction is being taken: the stream is not idle."""
        self._in_flight += 1

    def commit(self, newest_at: datetime | None, received_at: datetime) -> None:
        """Note that a transaction is stored, whose newest event of a local sender or to-device is `newest_at`."""
        self._in_flight -= 1
        if newest_at is None:
            return
        self._advance(newest_at)
        if received_at - newest_at < CURRENT_WITHIN:
            self.current, self._up_to_date_at, self.behind_since = True, received_at, None
            return
        # A bridge may date an event back. Among young ones that shows nothing.
        since = newest_at if self._up_to_date_at is None else max(newest_at, self._up_to_date_at)
        if received_at - since > BACKLOG_AFTER:
            self.current = False
            self.behind_since = self.behind_since or since

    def fail(self) -> None:
        """Note that a transaction was not stored: the homeserver will send it again, and what came after it."""
        self._in_flight -= 1
        self.current = False

    def _advance(self, moment: datetime) -> None:
        if self._watermark_at is None or moment > self._watermark_at:
            self._watermark_at = moment
