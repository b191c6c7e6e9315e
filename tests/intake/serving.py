"""Parts of the intake tests: a clock, a client with the homeserver's token, events as Synapse sends them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import ServerName, UserId
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import Read

HOMESERVER = ServerName("lab.test")
TOKEN = "hs-token-of-the-test"
START = datetime(2026, 11, 23, 10, tzinfo=UTC)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """Give the time it is."""
        return self.now

    def advance(self, seconds: float) -> datetime:
        """Let time pass and give the time it is then."""
        self.now += timedelta(seconds=seconds)
        return self.now


class Served:
    """A listening intake, and a client with the homeserver's token."""

    def __init__(self, server: IntakeServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self.observed: list[tuple[str, Intake | None]] = []

    @property
    def base(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server.port}"

    async def put(
        self, body: Any, *, txn: str = "1", prefix: str = "/_matrix/app/v1", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a transaction (bytes as they are, else as JSON) and give the status and the JSON answer."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        async with self.session.put(f"{self.base}{prefix}/transactions/{txn}", data=data, headers=given) as response:
            return response.status, await response.json()


class Events:
    """Events as Synapse sends them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._count = 0

    def _event(self, _kind: str, _content: dict[str, Any], **fields: Any) -> dict[str, Any]:
        self._count += 1
        return {
            "type": _kind,
            "content": _content,
            "event_id": f"$event{self._count}",
            "room_id": "!room",
            "sender": "@alice:lab.test",
            "user_id": "@alice:lab.test",
            "origin_server_ts": int(self._clock.now.timestamp() * 1000),
            "age": 12,
            "unsigned": {"age": 12},
            **fields,
        }

    def join(self, **fields: Any) -> dict[str, Any]:
        """Give a state-form membership of js-sdk 37."""
        content = {
            "application": "m.call",
            "call_id": "",
            "device_id": "ALICE1",
            "expires": 14400000,
            "focus_active": {"focus_selection": "oldest_membership", "type": "livekit"},
            "foci_preferred": [],
            "scope": "m.room",
        }
        return self._event(
            "org.matrix.msc3401.call.member", content, **{"state_key": "_@alice:lab.test_ALICE1", **fields}
        )

    def key(self, **fields: Any) -> dict[str, Any]:
        """Give a clear room key event."""
        keys = [{"index": 0, "key": "bm90IGEga2V5IGF0IGE"}]
        return self._event(
            "io.element.call.encryption_keys", {"call_id": "", "device_id": "ALICE1", "keys": keys}, **fields
        )

    def message(self, **fields: Any) -> dict[str, Any]:
        """Give an event of no interest."""
        return self._event("m.room.message", {"msgtype": "m.text", "body": "hello"}, **fields)

    def olm(self, body: str = "A" * 1422) -> dict[str, Any]:
        """Give an Olm to-device message between two local users."""
        return {
            "type": "m.room.encrypted",
            "sender": "@alice:lab.test",
            "to_user_id": "@bob:lab.test",
            "to_device_id": "BOB1",
            "content": {
                "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "sender_key": "a public key",
                "ciphertext": {"another public key": {"type": 0, "body": body}},
            },
        }


def transaction(*events: Any, to_device: Any = ()) -> dict[str, Any]:
    """Give a transaction body."""
    return {"events": list(events), "ephemeral": [], "de.sorunome.msc2409.to_device": list(to_device)}


@asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """Stand in for a homeserver: whatever it is asked, `answer` says; gives its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def taking_nothing(address: str, own_users: Sequence[UserId]) -> IntakeServer:
    """Give the service's side of a homeserver: what is sent to it is dropped, what it asks goes the service's way."""

    async def take(_read: Read) -> Intake:
        return Intake()

    return IntakeServer(
        Credentials(appservice_id="rtc", as_token="as", hs_token="hs", sender_localpart="rtc-auditor"),
        address=address,
        homeserver=HOMESERVER,
        take=take,
        own_users=own_users,
    )
