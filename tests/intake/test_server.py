import asyncio
import logging
from typing import Any

import orjson
import pytest

from rtc_appservice.core.wire import Intake
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake import server
from rtc_appservice.intake.transaction import Read
from rtc_appservice.repeats import Repeats
from rtc_appservice.store.pool import Connection

from .serving import TOKEN, Events, Served, transaction

ROUTES = [
    ("PUT", "/_matrix/app/v1/transactions/1"),
    ("PUT", "/transactions/1"),
    ("GET", "/_matrix/app/v1/users/@alice:lab.test"),
    ("GET", "/users/@alice:lab.test"),
    ("GET", "/_matrix/app/v1/rooms/%23alias:lab.test"),
    ("GET", "/rooms/%23alias:lab.test"),
    ("POST", "/_matrix/app/v1/ping"),
]


async def ask(served: Served, method: str, path: str, **options: Any) -> tuple[int, str, Any]:
    """Send a request and give the status, the content type and the JSON answer."""
    async with served.session.request(method, served.base + path, **options) as response:
        return response.status, response.content_type, await response.json()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("headers", "query", "status", "errcode"),
    [
        ({}, "", 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Bearer "}, "", 401, "M_MISSING_TOKEN"),
        ({"Authorization": f"Basic {TOKEN}"}, "", 401, "M_MISSING_TOKEN"),
        ({}, "?access_token=", 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Bearer wrong"}, "", 403, "M_FORBIDDEN"),
        ({"Authorization": f"Bearer {TOKEN}x"}, "", 403, "M_FORBIDDEN"),
        ({"Authorization": "Bearer wröng"}, "", 403, "M_FORBIDDEN"),
        ({}, "?access_token=wrong", 403, "M_FORBIDDEN"),
        ({"Authorization": "Bearer wrong"}, f"?access_token={TOKEN}", 403, "M_FORBIDDEN"),
    ],
)
async def test_only_the_homeserver_is_served(
    served: Served, method: str, path: str, headers: dict[str, str], query: str, status: int, errcode: str
) -> None:
    """Without the token every route answers a Matrix error, and nothing is taken."""
    answer = await ask(served, method, path + query, headers=headers, data=b'{"events":[]}')

    assert (status, "application/json", errcode) == (answer[0], answer[1], answer[2]["errcode"])
    assert "Bearer" not in answer[2]["error"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_takes_the_token_from_the_header(served: Served, events: Events, scheme: str) -> None:
    """As Synapse sends it; the scheme's case does not matter."""
    headers = {"Authorization": f"{scheme} {TOKEN}"}

    assert (200, {}) == await served.put(transaction(events.join()), headers=headers)


async def test_takes_the_token_from_the_query(served: Served, events: Events) -> None:
    """As homeservers before the versioned API did."""
    answer = await ask(
        served, "PUT", f"/transactions/1?access_token={TOKEN}", data=orjson.dumps(transaction(events.join()))
    )

    assert (200, {}) == (answer[0], answer[2])


async def test_answers_after_the_commit(served: Served, events: Events, conn: Connection) -> None:
    """When the answer is there, so are the rows, on either path; a second delivery adds none."""
    body = transaction(events.join(), events.key(), events.message())

    assert (200, {}) == await served.put(body)
    assert ["membership", "room_key"] == [
        row["kind"] for row in await conn.fetch("SELECT kind FROM observation ORDER BY kind")
    ]

    assert (200, {}) == await served.put(body, prefix="")
    assert (200, {}) == await served.put(body, txn="another")
    assert await conn.fetchval("SELECT count(*) FROM observation") == 2
    assert ["stored"] * 3 == [result for result, _ in served.observed]


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b"\xff\xfe", "M_NOT_JSON"),
        (b'{"events": [NaN]}', "M_NOT_JSON"),
        (b'{"events": [-Infinity]}', "M_NOT_JSON"),
        (b'{"events": ["\\ud800"]}', "M_NOT_JSON"),
        (b'{"events": ' + b"[" * 90_000, "M_NOT_JSON"),
        (b"null", "M_BAD_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"1", "M_BAD_JSON"),
        (b"{}", "M_BAD_JSON"),
        (b'{"events": {}}', "M_BAD_JSON"),
        (b'{"events": null}', "M_BAD_JSON"),
    ],
)
async def test_what_is_no_transaction_is_refused(served: Served, body: bytes, errcode: str) -> None:
    """400 with the error code that says whether it was JSON at all."""
    status, answer = await served.put(body)

    assert (400, errcode) == (status, answer["errcode"])
    assert [("refused", None)] == served.observed


@pytest.mark.parametrize("body", [{"events": []}, transaction(None, 7, [], {}, {"type": "m.room.message"})])
async def test_a_transaction_of_nothing_is_taken_without_a_write(
    served: Served, conn: Connection, body: dict[str, Any]
) -> None:
    """A homeserver sends empty transactions for device list changes; they cost the database nothing."""
    writes = "SELECT pg_current_wal_insert_lsn()::text"
    before = await conn.fetchval(writes)

    assert (200, {}) == await served.put(body)

    assert before == await conn.fetchval(writes)
    assert ["nothing"] == [result for result, _ in served.observed]


async def test_the_body_limit_is_said(served: Served) -> None:
    """One byte over the limit is 413 and names the setting; at the limit it is read."""
    limit = 100_000
    fill = limit - len(b'{"events":[],"x":""}')

    assert (200, {}) == await served.put(b'{"events":[],"x":"' + b"x" * fill + b'"}')
    status, answer = await served.put(b'{"events":[],"x":"' + b"x" * (fill + 1) + b'"}')
    assert (413, "M_TOO_LARGE") == (status, answer["errcode"])
    assert "100000" in answer["error"]
    assert "max_body_bytes" in answer["error"]
    assert ["nothing", "refused"] == [result for result, _ in served.observed]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nowhere"), ("GET", ROUTES[0][1]), ("POST", ROUTES[0][1]), ("PUT", ROUTES[6][1])]
)
async def test_unknown_routes_and_methods(served: Served, method: str, path: str) -> None:
    """They are Matrix errors too."""
    status, content_type, answer = await ask(served, method, path)

    assert status in (404, 405)
    assert ("application/json", "M_UNRECOGNIZED") == (content_type, answer["errcode"])


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "GET"])
async def test_no_user_or_alias_is_made_on_demand(served: Served, path: str) -> None:
    """Queries are answered, with M_NOT_FOUND."""
    status, _, answer = await ask(served, "GET", path, headers={"Authorization": f"Bearer {TOKEN}"})

    assert (404, "M_NOT_FOUND") == (status, answer["errcode"])


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"transaction_id": "x"}', 200), (b"{}", 200), (b"[]", 400), (b"{", 400)]
)
async def test_ping(served: Served, body: bytes, status: int) -> None:
    """The homeserver's half of a ping."""
    answer = await ask(served, "POST", "/_matrix/app/v1/ping", headers={"Authorization": f"Bearer {TOKEN}"}, data=body)

    assert status == answer[0]
    assert ({} == answer[2]) is (status == 200)


async def test_what_was_refused_is_logged_now_and_then(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """One line a minute for each kind, with how many there were; nothing of what they held."""
    minutes = 0.0
    served.server._repeats = Repeats(lambda: minutes * 60)
    wrong = {"Authorization": "Bearer guessed-token"}
    for _ in range(3):
        await served.put({"events": []}, headers=wrong)
    await served.put(b"SECRET-OF-A-BODY")
    await served.put(b"x" * 100_001)
    await served.put({"events": []}, headers={})
    minutes = 1.0
    await served.put({"events": []}, headers=wrong)

    records = [record.__dict__ for record in caplog.records if record.levelno == logging.WARNING]
    assert [
        (403, "M_FORBIDDEN", 1),
        (400, "M_NOT_JSON", 1),
        (413, "M_TOO_LARGE", 1),
        (401, "M_MISSING_TOKEN", 1),
        (403, "M_FORBIDDEN", 3),
    ] == [(record["status"], record["errcode"], record["count"]) for record in records]
    assert "guessed-token" not in str(records)
    assert "SECRET" not in str(records)


async def test_health_paths_of_mautrix(served: Served) -> None:
    """Probes written for mautrix services find what they expect."""
    for path in ("/_matrix/mau/live", "/_matrix/mau/ready"):
        async with served.session.get(served.base + path) as response:
            assert (200, "{}") == (response.status, await response.text())


async def test_a_store_that_fails_is_503(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The homeserver is told to send again; log and answer hold no text of the error."""

    async def take(read: Read) -> Intake:
        try:
            raise OSError("secret")
        except OSError as error:
            raise StoreUnavailable("also secret") from error

    monkeypatch.setattr(served.server, "_take", take)
    with caplog.at_level(logging.DEBUG):
        status, answer = await served.put({"events": []})

    assert (503, "M_UNKNOWN") == (status, answer["errcode"])
    assert [("failed", None)] == served.observed
    record = next(record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "OSError" == record.__dict__["error"]
    assert "secret" not in answer["error"] + "".join(str(record.__dict__) for record in caplog.records)


async def test_any_other_failure_is_500_and_says_where_only(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours does not spill what the request held."""

    async def take(read: Read) -> Intake:
        raise KeyError("secret")

    monkeypatch.setattr(served.server, "_take", take)
    with caplog.at_level(logging.DEBUG):
        status, answer = await served.put({"events": []})

    assert (500, "M_UNKNOWN") == (status, answer["errcode"])
    record = next(record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "KeyError" == record.__dict__["error"]
    assert record.__dict__["at"].startswith("test_server.py:")
    assert "secret" not in "".join(str(record.__dict__) for record in caplog.records)


async def test_what_is_no_http_is_not_quoted(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A body longer than its Content-Length is parsed as the next request: neither log nor answer shows it."""
    with caplog.at_level(logging.DEBUG):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
        writer.write(
            b"PUT /_matrix/app/v1/transactions/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
            b"{}SECRET-OF-A-BODY\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert b"400" in answer
    assert b"SECRET" not in answer
    assert "SECRET" not in caplog.text + "".join(str(record.__dict__) for record in caplog.records)


async def open_put(served: Served, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin to send a transaction; its body does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    writer.write(
        b"PUT /_matrix/app/v1/transactions/1 HTTP/1.1\r\nHost: x\r\n"
        + f"Authorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n".encode()
        + b'{"events":'
    )
    await writer.drain()
    return reader, writer


async def until_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Give an event that is set once a transaction is being taken."""
    taking = asyncio.Event()
    take = served.server._take

    async def note(read: Read) -> Intake:
        taking.set()
        return await take(read)

    monkeypatch.setattr(served.server, "_take", note)
    return taking


async def test_half_a_body_does_not_hold_up_a_stop(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The homeserver sends it again to the next process."""
    monkeypatch.setattr(server, "STOP_SECONDS", 0.2)
    taking = await until_taken(served, monkeypatch)
    await served.server.stop()
    await served.server.start("127.0.0.1", 0)
    _, writer = await open_put(served, 100)
    await asyncio.wait_for(taking.wait(), 10)

    await asyncio.wait_for(served.server.stop(), 5)

    assert [("failed", None)] == served.observed
    writer.close()


async def test_a_body_that_does_not_end_is_given_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """408, and the connection is not kept."""
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)
    reader, writer = await open_put(served, 100)

    answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)

    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_headers_that_do_not_end_are_given_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed in the end."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
    writer.write(b"PUT /_matrix/app/v1/transactions/1 HTTP/1.1\r\nHost: x\r\n")

    assert b"" == await asyncio.wait_for(reader.read(), 10)
    writer.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "nonsense"])
@pytest.mark.parametrize(("method", "path"), [ROUTES[0], ROUTES[6]])
async def test_a_body_that_is_not_encoded_as_it_says(
    served: Served, caplog: pytest.LogCaptureFixture, method: str, path: str, encoding: str
) -> None:
    """400 with an error code; it is the sender's fault, not ours."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": encoding}

    with caplog.at_level(logging.DEBUG):
        status, _, answer = await ask(served, method, path, headers=headers, data=b"not compressed")

    assert 400 == status
    assert answer["errcode"] in ("M_UNKNOWN", "M_NOT_JSON")
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_no_token_is_logged(served: Served, events: Events, caplog: pytest.LogCaptureFixture) -> None:
    """A token in the query would stand in the request line of an access log: there is none."""
    with caplog.at_level(logging.DEBUG):
        await ask(served, "PUT", f"/transactions/1?access_token={TOKEN}", data=b'{"events":[]}')
        await ask(served, "PUT", "/transactions/1?access_token=guessed-token", data=b'{"events":[]}')

    logged = "".join(str(record.__dict__) for record in caplog.records)
    assert TOKEN not in logged
    assert "guessed-token" not in logged
