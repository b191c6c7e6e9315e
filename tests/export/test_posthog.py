"""The sender against a stand-in over real HTTP and a real outbox: nothing lost, nothing changed on resend."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.export.events import Terms
from rtc_appservice.export.posthog import (
    AUTH_PAUSE_SECONDS,
    BACKOFF_LIMIT_SECONDS,
    IDLE_SECONDS,
    QUOTA_PAUSE_SECONDS,
    Answer,
    Post,
    Reply,
    Sender,
    backoff_seconds,
    poster,
    read_body,
    run_posthog,
)
from rtc_appservice.store import outbox
from rtc_appservice.store.outbox import OutboxRow, Pending
from rtc_appservice.store.pool import Pool

TERMS = Terms(secret=b"s" * 16, app_version="1")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def row(number: int) -> OutboxRow:
    """Give a row of its own for every number."""
    return OutboxRow(
        uuid=UUID(int=number),
        event="RtcCallStarted",
        distinct_id=f"call:{number}",
        timestamp=NOW - timedelta(seconds=number, microseconds=1),
        properties={"homeserver": "example.org", "$ignore_sent_at": True},
    )


def uuids(*numbers: int) -> set[str]:
    """Give the uuids of these rows as they are sent."""
    return {str(UUID(int=number)) for number in numbers}


async def put(pool: Pool, *numbers: int) -> None:
    """Put these rows into the outbox."""
    async with pool.acquire() as conn:
        await outbox.put(conn, [row(number) for number in numbers], NOW)


async def waiting(pool: Pool) -> Pending:
    """Give what the outbox holds."""
    async with pool.acquire() as conn:
        return await outbox.pending(conn)


def counts(pending: Pending) -> tuple[int, int]:
    """Give how many rows wait, and how many were set aside."""
    return pending.pending, pending.dead


@pytest.fixture
async def standin() -> AsyncIterator[PostHogStandIn]:
    """Give a PostHog stand-in that listens."""
    server = PostHogStandIn()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def post(standin: PostHogStandIn) -> Post:
    """Give the real way out, to the stand-in."""
    return poster("phc_test", standin.address)


async def test_accepted_rows_leave(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """What PostHog kept is gone from the outbox; it got exactly what the row says, and the SDK added nothing."""
    await put(pool, 1)
    seen: list[tuple[Answer, int, int]] = []

    wait = await Sender(pool, post, observe=lambda *args: seen.append(args)).send_due(NOW)

    assert wait == IDLE_SECONDS
    assert await waiting(pool) == Pending(pending=0, dead=0, oldest_at=None)
    assert standin.events == [
        {
            "event": "RtcCallStarted",
            "uuid": str(UUID(int=1)),
            "distinct_id": "call:1",
            "timestamp": "2026-11-23T11:59:58.999999+00:00",
            "properties": {"homeserver": "example.org", "$ignore_sent_at": True},
        }
    ]
    assert seen == [(Answer.OK, 1, 0)]


async def test_more_than_a_batch(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """A full batch is followed by the next at once, and each event goes out once."""
    await put(pool, *range(1, 151))
    sender = Sender(pool, post)

    assert await sender.send_due(NOW) == 0.0
    assert await sender.send_due(NOW) == IDLE_SECONDS
    assert len(standin.events) == 150
    assert {event["uuid"] for event in standin.events} == uuids(*range(1, 151))


async def test_quota_limited_is_not_success(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """200 with `quota_limited` kept nothing: the rows stay, and the sender rests an hour."""
    await put(pool, 1, 2)
    standin.behaviour.quota_limited = True
    sender = Sender(pool, post)

    assert await sender.send_due(NOW) == QUOTA_PAUSE_SECONDS
    assert counts(await waiting(pool)) == (2, 0)
    standin.behaviour.quota_limited = False
    await sender.send_due(NOW + timedelta(seconds=QUOTA_PAUSE_SECONDS - 1))
    assert standin.events == []
    await sender.send_due(NOW + timedelta(seconds=QUOTA_PAUSE_SECONDS))
    assert {event["uuid"] for event in standin.events} == uuids(1, 2)


async def test_one_bad_event_is_found_by_halves(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """One malformed event fails its whole batch: the others still arrive, and it is set aside."""
    await put(pool, *range(1, 101))
    standin.behaviour.malformed = uuids(42)
    seen: list[tuple[Answer, int, int]] = []

    await Sender(pool, post, observe=lambda *args: seen.append(args)).send_due(NOW)

    assert counts(await waiting(pool)) == (0, 1)
    assert {event["uuid"] for event in standin.events} == uuids(*range(1, 101)) - uuids(42)
    assert len(standin.events) == 99
    assert (sum(s[1] for s in seen), sum(s[2] for s in seen)) == (99, 1)


async def test_too_large_is_halved(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """413 halves the batch until it fits; nothing is set aside."""
    await put(pool, *range(1, 11))
    standin.behaviour.max_events = 3

    await Sender(pool, post).send_due(NOW)

    assert counts(await waiting(pool)) == (0, 0)
    assert len(standin.events) == 10


@pytest.mark.parametrize("status", [408, 429, 500, 503, 404])
async def test_back_off(pool: Pool, standin: PostHogStandIn, post: Post, status: int) -> None:
    """What may pass is waited out, longer each time, and success starts the count anew."""
    await put(pool, 1)
    standin.behaviour.status = status
    sender = Sender(pool, post, chance=lambda: 1.0)

    assert await sender.send_due(NOW) == 2.0
    assert await sender.send_due(NOW + timedelta(seconds=2)) == 4.0
    assert counts(await waiting(pool)) == (1, 0)
    standin.behaviour.status = 200
    assert await sender.send_due(NOW + timedelta(seconds=6)) == IDLE_SECONDS
    await put(pool, 2)
    standin.behaviour.status = status
    assert await sender.send_due(NOW + timedelta(seconds=7)) == 2.0


async def test_retry_after_is_the_minimum(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """`Retry-After` is waited for even where the back-off is shorter."""
    await put(pool, 1)
    standin.behaviour.status = 429
    standin.behaviour.retry_after_seconds = 77

    assert await Sender(pool, post).send_due(NOW) == 77.0


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_key_pauses(
    pool: Pool, standin: PostHogStandIn, post: Post, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused key is the operator's matter: the rows wait, and the log names the setting, not the key."""
    await put(pool, 1)
    standin.behaviour.status = status

    assert await Sender(pool, post).send_due(NOW) == AUTH_PAUSE_SECONDS
    assert counts(await waiting(pool)) == (1, 0)
    assert "posthog.api_key" in caplog.text
    assert "phc_test" not in caplog.text


async def test_failure_inside_halving_gives_everything_back(pool: Pool) -> None:
    """When the way breaks while a batch is being halved, what was not settled yet is due again."""
    await put(pool, *range(1, 9))
    replies = iter(
        [
            Reply(Answer.REJECTED, "HTTP 400"),
            Reply(Answer.OK, "HTTP 200"),
            Reply(Answer.RETRY, "ConnectionError"),
        ]
    )

    wait = await Sender(pool, lambda batch: next(replies), chance=lambda: 1.0).send_due(NOW)

    assert wait == 2.0
    assert counts(await waiting(pool)) == (4, 0)
    async with pool.acquire() as conn:
        assert len(await outbox.lease(conn, 10, 60, NOW + timedelta(seconds=2))) == 4


async def test_unreachable_server_waits(pool: Pool, standin: PostHogStandIn) -> None:
    """Nobody listens: the rows wait."""
    await put(pool, 1)
    post = poster("phc_test", standin.address)
    await standin.stop()

    assert await Sender(pool, post, chance=lambda: 0.0).send_due(NOW) == 1.0
    assert counts(await waiting(pool)) == (1, 0)


@pytest.mark.parametrize("body", ["<html>welcome</html>", "[]", "1", ""])
async def test_200_of_something_else_is_not_success(pool: Pool, standin: PostHogStandIn, post: Post, body: str) -> None:
    """A 200 that PostHog did not write, as from a login page in between, kept nothing."""
    await put(pool, 1)
    standin.behaviour.body = body

    await Sender(pool, post).send_due(NOW)

    assert counts(await waiting(pool)) == (1, 0)


async def test_resend_is_identical(pool: Pool, standin: PostHogStandIn, post: Post) -> None:
    """A sender that died between the answer and the removal sends again what it had sent, but for `sent_at`."""
    await put(pool, 1, 2, 3)

    def post_and_die(batch: list[dict[str, Any]]) -> Reply:
        post(batch)
        raise KeyError("died")

    with pytest.raises(KeyError):
        await Sender(pool, post_and_die).send_due(NOW)
    await Sender(pool, post).send_due(NOW + timedelta(hours=1))

    first, second = standin.bodies
    assert len(first["batch"]) == 3
    assert first["sent_at"] != second["sent_at"]
    assert {**first, "sent_at": None} == {**second, "sent_at": None}
    assert counts(await waiting(pool)) == (0, 0)


async def test_run_sends_until_stopped(pool: Pool, standin: PostHogStandIn) -> None:
    """The loop sends what waits and ends when told."""
    async with pool.acquire() as conn:
        await outbox.put(conn, [row(1)], NOW - timedelta(days=365))
    stop = asyncio.Event()

    task = asyncio.create_task(run_posthog(pool, stop, api_key="phc_test", host=standin.address, terms=TERMS))
    async with asyncio.timeout(20):
        await standin.received(1)
    stop.set()
    await task

    assert counts(await waiting(pool)) == (0, 0)


def test_off_is_off() -> None:
    """Without a key nothing is imported, no thread starts and no socket opens; with one, the same probe sees it."""
    probe = """
import asyncio, sys, threading
touched = []
def hook(name, args):
    if name in ("socket.connect", "socket.getaddrinfo", "_thread.start_new_thread"):
        touched.append(name)
from rtc_appservice.export.posthog import run_posthog, poster
key = sys.argv[1] or None
async def main():
    sys.addaudithook(hook)
    await run_posthog(None, asyncio.Event(), api_key=None, host="http://127.0.0.1:9", terms=None)
    if key:
        await asyncio.to_thread(poster(key, "http://127.0.0.1:9"), [])
asyncio.run(main())
print(sorted(set(touched)), "posthog" in sys.modules, "requests" in sys.modules)
"""

    def run(key: str) -> str:
        done = subprocess.run([sys.executable, "-c", probe, key], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert run("") == "[] False False"
    assert "socket.connect" in run("phc_test")


def test_back_off_grows_to_a_limit() -> None:
    """Waits double, spread over the upper half, up to a limit; a nonsensical `Retry-After` changes nothing."""
    assert [backoff_seconds(n, 1.0, None) for n in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert backoff_seconds(1, 0.0, None) == 1.0
    assert backoff_seconds(10_000, 1.0, None) == BACKOFF_LIMIT_SECONDS
    assert backoff_seconds(1, 1.0, float("nan")) == 2.0
    assert backoff_seconds(1, 1.0, -5.0) == 2.0
    assert backoff_seconds(1, 1.0, float("inf")) == 3600.0


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"status": "Ok"}, Answer.OK),
        ({"status": 1, "quota_limited": []}, Answer.OK),
        ({"status": "Ok", "quota_limited": ["events"]}, Answer.QUOTA_LIMITED),
        (None, Answer.RETRY),
        ([], Answer.RETRY),
    ],
)
def test_read_body(body: object, answer: Answer) -> None:
    """Only PostHog's own JSON without a quota is success."""
    assert read_body(body).answer is answer
