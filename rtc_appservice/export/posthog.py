"""
Stage 6: sends the outbox to PostHog, at least once and unchanged.

Uses `posthog.request.batch_post`, which gives one verdict for one batch, not the queueing client, which
drops on a full queue, gives up after seconds and takes an answer that kept nothing for success. A row
leaves the outbox only when PostHog said it kept the batch. Without an API key nothing here runs: the
library is not imported, no thread starts and no socket opens.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

from msgspec import Struct

from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.export.events import Terms, auditor_rows
from rtc_appservice.repeats import Repeats
from rtc_appservice.store import outbox
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.pool import WORK_SECONDS, Pool, lend
from rtc_appservice.store.standing import load_standing

_log = logging.getLogger("rtc_appservice.export")

BATCH_EVENTS = 100
REQUEST_TIMEOUT_SECONDS = 15.0
#: Longer than any batch takes, halving included; a sender that died gives its rows back after it.
LEASE_SECONDS = 300.0
#: How often an empty outbox is looked at.
IDLE_SECONDS = 1.0
BACKOFF_LIMIT_SECONDS = 300.0
#: A server's `Retry-After` is believed up to here.
RETRY_AFTER_LIMIT_SECONDS = 3600.0
#: Over its quota the project keeps nothing until the billing period ends or somebody acts.
QUOTA_PAUSE_SECONDS = 3600.0
#: How far back `RtcAuditorReport` counts gaps: the window of readiness.
GAPS_SINCE = timedelta(days=28)
#: A refused key stays refused until somebody acts.
AUTH_PAUSE_SECONDS = 300.0


class Answer(StrEnum):
    """What PostHog made of one request."""

    OK = "ok"
    RETRY = "retry"
    REJECTED = "rejected"
    QUOTA_LIMITED = "quota_limited"
    AUTH = "auth"


class Reply(Struct, frozen=True):
    """An answer, with what it says beside."""

    answer: Answer
    reason: str  #: HTTP status or class of the transport error
    retry_after_seconds: float | None = None


#: Sends one batch, blocking, and gives the reply. Never raises for what a server or network may do.
Post = Callable[[list[dict[str, Any]]], Reply]

#: Called once a request: its answer, how many events it delivered, how many it set aside for good.
Observe = Callable[[Answer, int, int], None]


def read_status(status: int, retry_after_seconds: float | None = None) -> Reply:
    """Take the status of an answer that is not 200; give what to do."""
    if status in (400, 413):
        answer = Answer.REJECTED
    elif status in (401, 403):
        answer = Answer.AUTH
    else:
        answer = Answer.RETRY
    return Reply(answer, f"HTTP {status}", retry_after_seconds)


def read_body(body: object) -> Reply:
    """Take the JSON of a 200 answer (None if it was none); give what to do."""
    if not isinstance(body, dict):
        return Reply(Answer.RETRY, "HTTP 200 without PostHog's JSON")
    if body.get("quota_limited"):
        return Reply(Answer.QUOTA_LIMITED, "HTTP 200 with quota_limited")
    return Reply(Answer.OK, "HTTP 200")


def poster(api_key: str, host: str) -> Post:
    """Give the function that sends a batch to `host`. Only here is the PostHog library imported."""
    from posthog.request import APIError, batch_post

    logging.getLogger("posthog").setLevel(logging.WARNING)  # at debug it logs whole bodies

    def post(batch: list[dict[str, Any]]) -> Reply:
        try:
            response = batch_post(
                api_key,
                host=host,
                gzip=True,
                timeout=REQUEST_TIMEOUT_SECONDS,
                batch=batch,
                historical_migration=False,
            )
        except APIError as error:
            return read_status(int(error.status), error.retry_after)
        except OSError as error:  # what requests raises is one, whatever went wrong on the way
            return Reply(Answer.RETRY, type(error).__name__)
        except TypeError:  # batch_post looks for a key in an error body that is JSON but no object
            return Reply(Answer.RETRY, "an error that is not PostHog's")
        body = None
        with suppress(ValueError):
            body = response.json()
        return read_body(body)

    return post


def message(row: OutboxRow) -> dict[str, Any]:
    """Give a row as it goes on the wire: the same each time it is sent."""
    return {
        "event": row.event,
        "uuid": str(row.uuid),
        "distinct_id": row.distinct_id,
        "timestamp": row.timestamp.astimezone(UTC).isoformat(),
        "properties": dict(row.properties),
    }


def backoff_seconds(failures: int, chance: float, retry_after_seconds: float | None) -> float:
    """
    Give how long to wait after the `failures`-th failure in a row.

    Doubles up to five minutes; `chance` (0 to 1) spreads senders over the upper half; `Retry-After` is the minimum.
    """
    ceiling = min(BACKOFF_LIMIT_SECONDS, 2.0 ** min(failures, 16))
    wait = ceiling * (0.5 + chance / 2)
    if retry_after_seconds is not None and retry_after_seconds > wait:
        return min(retry_after_seconds, RETRY_AFTER_LIMIT_SECONDS)
    return wait


class Sender:
    """Sends what is due in one outbox through one `Post`, and remembers how the last requests went."""

    def __init__(
        self,
        pool: Pool,
        post: Post,
        *,
        observe: Observe = lambda answer, delivered, dead: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take the pool of the outbox and the way out."""
        self._pool = pool
        self._post = post
        self._observe = observe
        self._chance = chance
        self._failures = 0

    async def send_due(self, now: datetime) -> float:
        """
        Lease and send one batch of what is due; give the seconds to wait before the next.

        Raises:
            StoreUnavailable: the outbox could not be reached; leased rows come back when their lease ends.
        """
        async with lend(self._pool, WORK_SECONDS) as conn:
            leased = await outbox.lease(conn, BATCH_EVENTS, LEASE_SECONDS, now)
        if not leased:
            return IDLE_SECONDS
        waiting = [[each.row for each in leased]]
        while waiting:
            rows = waiting.pop()
            reply = await asyncio.to_thread(self._post, [message(row) for row in rows])
            match reply.answer:
                case Answer.OK:
                    self._failures = 0
                    await self._settle(outbox.done, rows)
                    self._observe(reply.answer, len(rows), 0)
                case Answer.REJECTED if len(rows) > 1:
                    # One bad event fails its whole batch: find it by halves, oldest first.
                    self._observe(reply.answer, 0, 0)
                    middle = len(rows) // 2
                    waiting += [rows[middle:], rows[:middle]]
                case Answer.REJECTED:
                    _log.error("PostHog refused one event for good; it is set aside", extra={"answer": reply.reason})
                    await self._settle(outbox.dead, rows)
                    self._observe(reply.answer, 0, 1)
                case _:
                    self._observe(reply.answer, 0, 0)
                    left = [row for batch in (rows, *waiting) for row in batch]
                    return await self._pause(reply, left, now)
        return 0.0 if len(leased) == BATCH_EVENTS else IDLE_SECONDS

    async def _pause(self, reply: Reply, rows: Sequence[OutboxRow], now: datetime) -> float:
        """Give the rows back until there is hope again; give the seconds until then."""
        extra = {"answer": reply.reason, "events": len(rows)}
        if reply.answer is Answer.QUOTA_LIMITED:
            seconds = QUOTA_PAUSE_SECONDS
            _log.error("PostHog keeps nothing: the project is over its quota; the events wait", extra=extra)
        elif reply.answer is Answer.AUTH:
            seconds = AUTH_PAUSE_SECONDS
            _log.error("PostHog refused the key (posthog.api_key); the events wait", extra=extra)
        else:
            self._failures += 1
            seconds = backoff_seconds(self._failures, self._chance(), reply.retry_after_seconds)
            _log.warning("PostHog did not take the events; they wait", extra={**extra, "seconds": round(seconds, 1)})
        at = now + timedelta(seconds=seconds)
        async with lend(self._pool, WORK_SECONDS) as conn:
            await outbox.retry_at(conn, [row.uuid for row in rows], at)
        return seconds

    async def _settle(self, how: Callable[..., Any], rows: Sequence[OutboxRow]) -> None:
        async with lend(self._pool, WORK_SECONDS) as conn:
            await how(conn, [row.uuid for row in rows])


class AuditorReports:
    """Puts an `RtcAuditorReport` into the outbox at the start and then with every new hour."""

    def __init__(self, pool: Pool, *, terms: Terms, now: datetime) -> None:
        """Take the pool, the terms of events, and when this process started."""
        self._pool = pool
        self._terms = terms
        self._process = uuid4().hex
        self._started_at = now
        self._due_at = now

    async def put_due(self, now: datetime) -> None:
        """Put the reports into the outbox if their hour has come. `StoreUnavailable` may rise."""
        if now < self._due_at:
            return
        async with lend(self._pool, WORK_SECONDS) as conn:
            standing = await load_standing(conn, now - GAPS_SINCE)
            rows = auditor_rows(
                standing,
                terms=self._terms,
                process=self._process,
                started_at=self._started_at,
                now=now,
            )
            await outbox.put(conn, rows, now)
        self._due_at = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)


async def run_posthog(
    pool: Pool,
    stop: asyncio.Event,
    *,
    api_key: str | None,
    host: str | None,
    terms: Terms,
    observe: Observe = lambda answer, delivered, dead: None,
) -> None:
    """
    Send the outbox, and hourly how the auditor stands, until `stop` is set; without a key, return at once.

    A request that is under way when `stop` is set is waited for, so its rows are not sent twice.
    """
    if api_key is None or host is None:
        return
    sender = Sender(pool, poster(api_key, host), observe=observe)
    reports = AuditorReports(pool, terms=terms, now=datetime.now(UTC))
    repeats = Repeats()
    while not stop.is_set():
        try:
            await reports.put_due(datetime.now(UTC))
            seconds = await sender.send_due(datetime.now(UTC))
        except StoreUnavailable as error:
            count = repeats.note(StoreUnavailable)
            if count is not None:
                _log.warning("the outbox cannot be reached", extra={"error": str(error), "count": count})
            seconds = IDLE_SECONDS
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds)
