"""
A media key is planted in every position of what a homeserver can send; then all that is kept or said is searched.

Searched are the database dump, the data directory with its WAL and server log, all loggers at debug, HTTP answers,
`/metrics`, the outbox, what PostHog gets, and the report. Pieces of a key count as the key.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import ServerName
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.export.events import Terms, event_maker
from rtc_appservice.export.posthog import Sender, poster
from rtc_appservice.export.prometheus import Metrics
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.projector import Projector, project_once
from rtc_appservice.store.pool import Connection, Pool
from rtc_appservice.store.streams import open_stream
from rtc_appservice.view.report import render_json
from rtc_appservice.view.stored import read_report

from .intake.serving import Clock
from .planted import CONTROL, KEY_TYPES, Key, dump, everything_logged, files, search, templates, transactions

HOMESERVER = ServerName("lab.test")
TOKEN = "hs-token-of-the-test"
SECRET = b"deployment secret of the test"


class Service:
    """The real stages on real PostgreSQL, and everything that came out of them."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        """Take what they run on."""
        self.clock = clock
        self.pool = pool
        self.metrics = Metrics(pool, [HOMESERVER], "0")
        self.reader = TransactionReader(HOMESERVER, SECRET)
        self.intake = TransactionIntake(pool, HOMESERVER, self.reader, clock=clock)
        self.server = IntakeServer(
            Credentials(appservice_id="rtc", as_token="as-token", hs_token=TOKEN, sender_localpart="rtc-auditor"),
            address="http://127.0.0.1:1",
            homeserver=HOMESERVER,
            take=self.intake.take,
            max_body_bytes=8_000_000,
            observe=self.metrics.observe_transaction,
        )
        self.answers: list[tuple[str, bytes]] = []

    async def put(self, body: Any, *, path: str = "/_matrix/app/v1/transactions/1", token: str = TOKEN) -> int:
        """Send a transaction, keep the whole answer, give its status."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.server.port}{path}"
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.put(url, data=BytesIO(data), headers=headers) as response,
        ):
            answer = await response.read()
            self.answers.append((f"answer {response.status}", str(response.headers).encode() + answer))
            return response.status

    async def put_raw(self, request: bytes) -> None:
        """Send bytes that need not be HTTP, and keep what comes back."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(request)
        writer.write_eof()
        self.answers.append(("raw answer", await reader.read()))
        writer.close()
        await writer.wait_closed()

    async def project(self) -> None:
        """Project until there is nothing to do."""
        async with self.pool.acquire() as conn:
            stream = await open_stream(conn, HOMESERVER)
        projector = Projector(
            homeserver=HOMESERVER,
            homeserver_id=stream.homeserver_id,
            envelopes=True,
            events=event_maker(Terms(secret=SECRET, app_version="0")),
        )
        while await project_once(self.pool, projector, self.clock.now):
            pass


@pytest.fixture
async def service(pool: Pool) -> AsyncIterator[Service]:
    """Give the listening service, with a clock at the real time."""
    clock = Clock()
    clock.now = datetime.now(UTC)
    service = Service(pool, clock)
    await service.intake.open()
    await service.server.start("127.0.0.1", 0)
    yield service
    await service.server.stop()


@pytest.fixture
async def posthog() -> AsyncIterator[PostHogStandIn]:
    """Give the listening stand-in for PostHog."""
    stand_in = PostHogStandIn()
    await stand_in.start()
    yield stand_in
    await stand_in.stop()


def control_join(at: datetime, number: int) -> dict[str, Any]:
    """Give a transaction with a membership of the control device."""
    event = templates("", at)[0].body
    return {"events": [{**event, "event_id": f"$control{number}", "room_id": "!control"}]}


async def test_no_key_is_kept_or_said(
    service: Service,
    posthog: PostHogStandIn,
    database: str,
    conn: Connection,
    postgres_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever a homeserver sends, however it fails: no piece of a media key is anywhere afterwards."""
    key = Key(7)
    text = key.texts()["unpadded"]
    with everything_logged() as said:
        assert await service.put(control_join(service.clock.now, 1)) == 200
        for body in transactions(key, service.clock.now):
            assert await service.put(body) == 200
        # Requests that are refused.
        for bad in (f'{{"events": [{{"key": "{text}"', f'"{text}"', f'["{text}"]', f'{{"events": "{text}"}}', text):
            assert await service.put(bad.encode()) == 400
        assert await service.put(b"\xff" + key.raw) == 400
        assert await service.put({"events": [], "x": text * 400_000}) == 413
        assert await service.put({"events": [text]}, token=key.texts()["url-safe"]) == 403
        for path in ("/", "/_matrix/app/v1/transactions/", f"/transactions/1?access_token={TOKEN}&x="):
            await service.put({"events": []}, path=path + key.texts()["url-safe unpadded"])
        head = f"PUT /transactions/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        await service.put_raw(f"{head}Content-Length: 2\r\n\r\n{{}}{text} {text}\r\n\r\n".encode())
        await service.put_raw(f"{head}Content-Length: 999\r\n\r\n{text}".encode())
        await service.put_raw(key.raw + b"\r\n\r\n")
        # Failures inside.
        await fail_in_the_database(service, conn, key)
        await fail_in_the_reader(service, key)
        # Everything downstream.
        service.clock.advance(600)
        assert await service.put(control_join(service.clock.now, 2)) == 200
        service.clock.advance(600)
        await service.intake.beat()
        await service.project()
        await Sender(service.pool, poster("phc_test", posthog.address)).send_due(service.clock.advance(1))
        page, _ = await service.metrics.page("application/openmetrics-text")
        report = render_json(await read_report(service.pool, since=None, homeserver=None, now=service.clock.now))
    printed = capfd.readouterr()

    outside = [
        *service.answers,
        ("logs", "\n".join(said).encode()),
        ("stdout", printed.out.encode()),
        ("stderr", printed.err.encode()),
        ("metrics", page),
        ("PostHog", json.dumps(list(posthog.bodies)).encode()),
        ("report", report),
        ("dump", dump(database)),
    ]
    assert [] == search(key, outside)
    # First with the newest rows in the WAL alone, then in the tables too.
    assert [] == search(key, files(postgres_folder))
    await conn.execute("CHECKPOINT")
    assert [] == search(key, files(postgres_folder))

    # That which proves that there was something to find, in the right places.
    by_name = dict(outside)
    assert await conn.fetchval("SELECT count(*) FROM observation WHERE kind = 'room_key'") >= 100
    assert await conn.fetchval("SELECT count(*) FROM observation WHERE kind = 'to_device_key'") >= 50
    assert await conn.fetchval("SELECT count(*) FROM observation WHERE kind = 'rejected'") >= 100
    assert len(posthog.events) > 0
    assert CONTROL.encode() in by_name["report"]
    assert CONTROL.encode() in by_name["dump"]
    assert any(CONTROL.encode() in data for _, data in files(postgres_folder))
    assert "CheckViolation" in "\n".join(said)
    assert any(b"Failing row contains" in data for name, data in files(postgres_folder) if name == "log")
    assert "Failing row contains" not in "\n".join(said)
    assert "$refused" not in "\n".join(said)


async def fail_in_the_database(service: Service, conn: Connection, key: Key) -> None:
    """Make PostgreSQL refuse a row and say so with the row's content."""
    await conn.execute("ALTER TABLE observation ADD CONSTRAINT refuse CHECK (identity <> '$refused') NOT VALID")
    event = next(item for item in templates(key.texts()["base64"], service.clock.now) if item.body["type"] in KEY_TYPES)
    body = {"events": [{**event.body, "event_id": "$refused"}]}
    assert await service.put(body) == 200  # what the database refuses costs that event only
    await conn.execute("ALTER TABLE observation DROP CONSTRAINT refuse")


async def fail_in_the_reader(service: Service, key: Key) -> None:
    """Make the reader fail with an error that quotes what it read."""

    class Talkative(TransactionReader):
        def read(self, body: dict[str, Any], **options: Any) -> Intake:
            raise ValueError(f"cannot read {body}")

    service.intake._reader = Talkative(HOMESERVER, SECRET)
    event = next(item for item in templates(key.texts()["base64"], service.clock.now) if item.body["type"] in KEY_TYPES)
    assert await service.put({"events": [{**event.body, "event_id": "$unread"}]}) == 200
    service.intake._reader = service.reader


async def test_the_search_finds_what_is_there(empty_database: str, postgres_folder: Path) -> None:
    """Every spelling, written as a careless service would, is found in the dump and in the data directory."""
    key = Key(8)
    conn = await asyncpg.connect(empty_database)
    await conn.execute("CREATE TABLE careless (spelling text, bytes bytea)")
    before_checkpoint = search(key, files(postgres_folder))
    for text in (*key.texts().values(), hashlib.sha256(key.raw).hexdigest()):
        await conn.execute("INSERT INTO careless VALUES ($1, $2)", text, key.raw)
    in_wal = search(key, files(postgres_folder))
    await conn.execute("CHECKPOINT")
    in_tables = search(key, (item for item in files(postgres_folder) if item[0].startswith("base/")))
    in_dump = search(key, [("dump", dump(empty_database))])
    await conn.close()

    assert [] == before_checkpoint
    for found in (in_wal, in_tables, in_dump):
        names = {line.rpartition(": ")[2] for line in found}
        assert {f"{name}, {part}" for name in key.texts() for part in ("begin", "end")} <= names
    assert any(line.endswith("raw, begin") for line in in_tables)
    assert any(line.startswith("pg_wal/") for line in in_wal)


def test_the_log_search_finds_what_is_there() -> None:
    """An argument, an extra field and an error's text are all seen."""
    key = Key(9)
    text = key.texts()["base64"]
    with everything_logged() as said:
        logging.getLogger("some.library").debug("got %s", text)
        logging.getLogger("some.library").info("got", extra={"body": key.raw})
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("some.library").debug("failed", exc_info=True)

    assert len(said) == 3
    assert all(search(key, [("log", line.encode())]) for line in said)
