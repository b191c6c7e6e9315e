"""
The servers that are measured, each in a process of its own: `python -m bench.servers NAME DSN HOMESERVERS`.

Prints its ports when it listens and ends when its standard input does.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
from aiohttp import web

from bench.load import SERVER, TOKEN

Start = Callable[[str, int], Awaitable[list[int]]]

_RELEVANT = frozenset({"io.element.call.encryption_keys", "org.matrix.msc3401.call.member"})
_PATH = "/_matrix/app/v1/transactions/{transaction_id}"

TABLE = """
CREATE TABLE {table} (
    event_id text PRIMARY KEY, room_id text NOT NULL, sender text NOT NULL, kind text NOT NULL,
    event_at timestamptz NOT NULL, received_at timestamptz NOT NULL, body jsonb NOT NULL
)
"""


def _body(content: dict[str, Any]) -> str:
    """Give what may be kept: these servers, too, keep no keys."""
    return orjson.dumps({name: value for name, value in content.items() if name != "keys"}).decode()


async def _listen(app: web.Application) -> list[int]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return [int(runner.addresses[0][1])]


async def raw(dsn: str, homeservers: int) -> list[int]:
    """Read the body, parse it, answer: the ceiling."""

    async def receive(request: web.Request) -> web.Response:
        orjson.loads(await request.read())
        return web.Response(body=b"{}", content_type="application/json")

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_put(_PATH, receive)
    return await _listen(app)


async def durable(dsn: str, homeservers: int) -> list[int]:
    """One unnest insert and one commit per transaction that holds something relevant: what durability costs."""
    pool = await asyncpg.create_pool(dsn, min_size=homeservers, max_size=max(homeservers, 4), reset=_keep)
    insert = """
    INSERT INTO durable SELECT * FROM
    unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::jsonb[])
    ON CONFLICT DO NOTHING
    """

    async def receive(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        now = datetime.now(UTC)
        rows = [
            (
                event["event_id"],
                event["room_id"],
                event["sender"],
                event["type"],
                datetime.fromtimestamp(event["origin_server_ts"] / 1000, UTC),
                now,
                _body(event["content"]),
            )
            for event in body["events"]
            if event["type"] in _RELEVANT
        ]
        if rows:
            async with pool.acquire() as connection:
                await connection.execute(insert, *zip(*rows, strict=True))
        return web.Response(body=b"{}", content_type="application/json")

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_put(_PATH, receive)
    return await _listen(app)


async def _keep(_connection: object) -> None:
    """Spare the reset query."""


async def naive(dsn: str, homeservers: int) -> list[int]:
    """What a newcomer writes: stock mautrix, one INSERT per relevant event in a handler."""
    from mautrix.appservice import AppService
    from mautrix.types import Event

    pool = await asyncpg.create_pool(dsn, min_size=4, max_size=16)
    service = AppService(
        server="http://127.0.0.1:1",
        domain=SERVER,
        as_token="as",
        hs_token=TOKEN,
        bot_localpart="bot",
        id="bench",
        state_store=_memory_store(),
        aiohttp_params={"client_max_size": 64 * 1024 * 1024},
    )

    @service.matrix_event_handler
    async def record(event: Event) -> None:
        if event.type.t not in _RELEVANT:
            return
        await pool.execute(
            "INSERT INTO naive VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            event.event_id,
            event.room_id,
            event.sender,
            event.type.t,
            datetime.now(UTC),
            datetime.now(UTC),
            _body(event.content.serialize()),
        )

    await service.start("127.0.0.1", 0)
    addresses = service.runner.addresses if service.runner else []
    return [int(addresses[0][1])]


def _memory_store() -> Any:
    from mautrix.appservice import ASStateStore
    from mautrix.client.state_store import MemoryStateStore

    class Memory(MemoryStateStore, ASStateStore):
        def __init__(self) -> None:
            MemoryStateStore.__init__(self)
            ASStateStore.__init__(self)

    return Memory()


async def ours(dsn: str, homeservers: int) -> list[int]:
    """The service's own intake, one application service for each homeserver, on one pool."""
    from rtc_appservice.core.wire import TransactionReader
    from rtc_appservice.core.words import ServerName
    from rtc_appservice.intake.server import Credentials, IntakeServer
    from rtc_appservice.intake.transaction import TransactionIntake
    from rtc_appservice.store.pool import open_pool

    pool = await open_pool(dsn, max(homeservers, 4))
    ports = []
    for number in range(homeservers):
        name = ServerName(SERVER if number == 0 else f"{number}.{SERVER}")
        intake = TransactionIntake(pool, name, TransactionReader(name, b"bench secret, not one"))
        await intake.open()
        credentials = Credentials(appservice_id="bench", as_token="as", hs_token=TOKEN, sender_localpart="bot")
        server = IntakeServer(credentials, address="http://127.0.0.1:1", homeserver=name, take=intake.take)
        await server.start("127.0.0.1", 0)
        ports.append(server.port)
    return ports


SERVERS: dict[str, Start] = {"raw": raw, "naive": naive, "durable": durable, "ours": ours}


async def _serve(name: str, dsn: str, homeservers: int) -> None:
    ports = await SERVERS[name](dsn, homeservers)
    gc.collect()
    gc.freeze()
    print(*ports, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
