"""
The service is killed with SIGKILL, between two transactions, before the commit, and between commit and answer.

The service is the real command in a process of its own. A proxy stands between it and the homeserver; it kills
the service when the first byte of an answer arrives and passes none of it on.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import yaml

from rtc_appservice import registration
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import GapReason
from rtc_appservice.demo.process import ProcessFailed, ServerProcess, running
from rtc_appservice.demo.synapse import SERVER_NAME, Synapse, free_port, running_synapse
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.pool import Connection

PATIENCE_SECONDS = 60.0
WAITING_INSERTS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO observation_identity%'
"""


class Proxy:
    """Stands at the address the homeserver knows, passes requests on, and can strike before an answer is."""

    def __init__(self, service_port: int) -> None:
        self.port = 0
        self.before_answer: Callable[[], None] | None = None
        self._service_port = service_port
        self._armed_for = b""
        self._serving: set[asyncio.Task[None]] = set()

    def arm(self, marker: bytes, strike: Callable[[], None]) -> None:
        """Call `strike` once, when the request that holds `marker` is answered."""
        self._armed_for, self.before_answer = marker, strike

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection until it ends, or until `close`."""
        task = asyncio.create_task(self._carry(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def close(self) -> None:
        """End every connection."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._service_port)
        except OSError:
            writer.close()
            return
        requested = bytearray()
        request = asyncio.create_task(self._pass_on(reader, to_writer, requested))
        try:
            while chunk := await to_reader.read(65536):
                if self.before_answer is not None and self._armed_for in requested:
                    self.before_answer()
                    self.before_answer = None
                    return
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            request.cancel()
            await asyncio.wait([request])
            for end in (writer, to_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                kept += chunk
                writer.write(chunk)
                await writer.drain()


class Installation:
    """A configured service that can be started, killed and started again, and what it has recorded."""

    def __init__(self, folder: Path, proxy: Proxy, service_port: int, conn: Connection, hs_token: str) -> None:
        self.folder = folder
        self.proxy = proxy
        self.conn = conn
        self._admin_port = free_port()
        self._hs_token = hs_token
        self._service_port = service_port

    def configure(self, dsn: str, synapse_address: str) -> None:
        """Write the configuration."""
        config = {
            "secret": secrets.token_hex(),
            "homeserver": {"address": synapse_address, "domain": SERVER_NAME},
            "appservice": {
                "address": f"http://127.0.0.1:{self._service_port}",
                "hostname": "127.0.0.1",
                "port": self._service_port,
                "registration": "registration.yaml",
            },
            "database": {"url": dsn, "pool_size": 4},
            "metrics": {"hostname": "127.0.0.1", "listen_port": self._admin_port},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServerProcess]:
        """Give the running service."""
        command = [sys.executable, "-m", "rtc_appservice", "run", "--config", str(self.folder / "config.yaml")]
        ready = f"http://127.0.0.1:{self._admin_port}/ready"
        async with running("rtc-appservice", command, folder=self.folder, ready_url=ready) as service:
            yield service

    async def put(self, transaction_id: str, body: dict[str, Any]) -> bool:
        """Send a transaction as the homeserver would; tell whether it was acknowledged."""
        url = f"http://127.0.0.1:{self.proxy.port}/_matrix/app/v1/transactions/{transaction_id}"
        headers = {"Authorization": f"Bearer {self._hs_token}"}
        try:
            async with aiohttp.ClientSession() as session, session.put(url, json=body, headers=headers) as response:
                return response.status == 200 and await response.json() == {}
        except aiohttp.ClientConnectionError:
            return False

    async def recorded(self) -> list[str]:
        """Give the identities of what is recorded, in order."""
        rows = await self.conn.fetch("SELECT identity FROM observation ORDER BY identity")
        return [row["identity"] for row in rows]

    async def gaps(self) -> dict[GapReason, Gap]:
        """Give the gaps, of which there is one a reason."""
        found = await load_gaps(self.conn, None, None)
        assert len(found) == len({gap.reason for gap in found})
        return {gap.reason: gap for gap in found}


async def kill(service: ServerProcess) -> None:
    """Kill the service and wait until it is gone."""
    os.kill(service.pid, signal.SIGKILL)
    with pytest.raises(ProcessFailed):
        await service.ended()


@pytest.fixture
async def installation(tmp_path: Path, database: str) -> AsyncIterator[Installation]:
    """Give a configured service behind a listening proxy, on a database of its own."""
    service_port = free_port()
    proxy = Proxy(service_port)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    text = registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=f"http://127.0.0.1:{proxy.port}")
    (tmp_path / "registration.yaml").write_text(text)
    conn = await asyncpg.connect(database)
    given = Installation(tmp_path, proxy, service_port, conn, yaml.safe_load(text)["hs_token"])
    given.configure(database, "http://127.0.0.1:1")
    yield given
    await conn.close()
    listener.close()
    await listener.wait_closed()
    await proxy.close()


def key_event(number: int) -> dict[str, Any]:
    """Give a clear room key event."""
    return {
        "type": "io.element.call.encryption_keys",
        "event_id": f"$key{number}",
        "room_id": "!room",
        "sender": f"@alice:{SERVER_NAME}",
        "origin_server_ts": int(datetime.now(UTC).timestamp() * 1000),
        "content": {"call_id": "", "device_id": "A", "keys": [{"index": number, "key": "bm90IGEga2V5IGF0IGE"}]},
    }


def transaction(*numbers: int, to_device: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Give a transaction with these key events."""
    events = [key_event(number) for number in numbers]
    return {"events": events, "ephemeral": [], "de.sorunome.msc2409.to_device": to_device or []}


OLM = {
    "type": "m.room.encrypted",
    "sender": f"@alice:{SERVER_NAME}",
    "to_user_id": f"@bob:{SERVER_NAME}",
    "to_device_id": "B",
    "content": {"sender_key": "k", "ciphertext": {"k2": {"type": 0, "body": "A" * 1422}}},
}


def assert_to_device_gap(gaps: dict[GapReason, Gap], since: datetime, until: datetime) -> None:
    """Assert that the loss of to-device messages is on record from before `since` to `until` or later."""
    down, lost = gaps[GapReason.SERVICE_DOWN], gaps[GapReason.TO_DEVICE_LOST]
    assert down.started_at is not None
    assert down.ended_at is not None
    assert lost.started_at is not None
    assert down.started_at <= since
    assert down.started_at == lost.started_at
    assert lost.ended_at is None or lost.ended_at >= until


async def test_killed_between_two_transactions(installation: Installation) -> None:
    """What was acknowledged is there; what was not is sent again and is there once."""
    first, second = transaction(1, 2), transaction(3)
    async with installation.running() as service:
        assert await installation.put("1", first)
        await kill(service)
    killed_at = datetime.now(UTC)
    assert not await installation.put("2", second)

    back_at = datetime.now(UTC)
    async with installation.running():
        assert await installation.put("2", second)
        assert ["$key1", "$key2", "$key3"] == await installation.recorded()
        assert_to_device_gap(await installation.gaps(), killed_at, back_at)


async def test_killed_between_commit_and_answer(installation: Installation) -> None:
    """The homeserver repeats the transaction, without its to-device messages: its events are there once."""
    body = transaction(1, 2, to_device=[OLM])
    async with installation.running() as service:
        assert await installation.put("1", transaction(0))
        installation.proxy.arm(b"$key2", lambda: os.kill(service.pid, signal.SIGKILL))
        assert not await installation.put("2", body)
        with pytest.raises(ProcessFailed):
            await service.ended()
    killed_at = datetime.now(UTC)
    assert ["$key0", "$key1", "$key2"] == await installation.recorded()

    async with installation.running():
        assert await installation.put("2", {**body, "de.sorunome.msc2409.to_device": []})
        assert ["$key0", "$key1", "$key2"] == await installation.recorded()
        assert await installation.conn.fetchval("SELECT count(*) FROM held_envelope") == 1
        assert_to_device_gap(await installation.gaps(), killed_at, killed_at)


async def test_killed_before_the_commit(installation: Installation, database: str) -> None:
    """Nothing of the transaction is there until it is sent again, and then all of it once."""
    body = transaction(1, 2)
    async with installation.running() as service:
        assert await installation.put("1", transaction(0))
        blocker = await asyncpg.connect(database)
        held = blocker.transaction()
        await held.start()
        await blocker.execute("LOCK TABLE observation_identity IN ACCESS EXCLUSIVE MODE")
        sending = asyncio.create_task(installation.put("2", body))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await installation.conn.fetchval(WAITING_INSERTS):
                await asyncio.sleep(0.02)
        await kill(service)
        assert not await sending
        # TCP would take long to tell PostgreSQL that nobody waits for the answer any more.
        await blocker.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'rtc-appservice'"
        )
        await held.rollback()
        await blocker.close()
    killed_at = datetime.now(UTC)
    assert ["$key0"] == await installation.recorded()

    async with installation.running():
        assert await installation.put("2", body)
        assert ["$key0", "$key1", "$key2"] == await installation.recorded()
        assert_to_device_gap(await installation.gaps(), killed_at, killed_at)


class Caller:
    """A Matrix user that posts what a room-only client posts in a call, without the call."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        self._address = address
        self._session = session
        self._token = ""
        self.room_id = ""

    async def _ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        url = f"{self._address}/_matrix/client/v3{path}"
        async with self._session.request(method, url, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
            return answer

    async def arrive(self) -> None:
        """Register and open a room."""
        registered = await self._ask(
            "POST",
            "/register",
            {"username": "alice", "password": "a", "device_id": "A", "auth": {"type": "m.login.dummy"}},
        )
        self._token = registered["access_token"]
        self.room_id = (await self._ask("POST", "/createRoom", {"preset": "public_chat"}))["room_id"]

    async def send_key(self, index: int) -> str:
        """Post a clear room key event and give its id."""
        content = {"call_id": "", "device_id": "A", "keys": [{"index": index, "key": "bm90IGEga2V5IGF0IGE"}]}
        path = f"/rooms/{self.room_id}/send/io.element.call.encryption_keys/{secrets.token_hex()}"
        return str((await self._ask("PUT", path, content))["event_id"])


@pytest.fixture
async def synapse(installation: Installation) -> AsyncIterator[Synapse]:
    """Give a real Synapse that knows the installation by its proxy."""
    async with running_synapse(installation.folder / "registration.yaml") as synapse:
        yield synapse


async def until_recorded(installation: Installation, expected: list[str]) -> None:
    """Wait until all of these are recorded, however Synapse's retries are timed."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not set(expected) <= set(await installation.recorded()):
            await asyncio.sleep(0.1)


async def test_synapse_repeats_what_a_killed_service_missed(installation: Installation, synapse: Synapse) -> None:
    """Killed twice, once between transactions and once between commit and answer: every key event is there once."""
    async with aiohttp.ClientSession() as session:
        caller = Caller(synapse.address, session)
        async with installation.running() as service:
            await caller.arrive()
            keys = [await caller.send_key(0)]
            await until_recorded(installation, keys)
            await kill(service)
        first_killed_at = datetime.now(UTC)
        keys.append(await caller.send_key(1))

        async with installation.running() as service:
            await until_recorded(installation, keys)
            installation.proxy.arm(b"io.element.call.encryption_keys", lambda: os.kill(service.pid, signal.SIGKILL))
            keys.append(await caller.send_key(2))
            async with asyncio.timeout(PATIENCE_SECONDS):
                with pytest.raises(ProcessFailed):
                    await service.ended()
        second_killed_at = datetime.now(UTC)
        await until_recorded(installation, keys)
        keys.append(await caller.send_key(3))

        async with installation.running():
            await until_recorded(installation, keys)

    recorded = await installation.conn.fetch("SELECT identity FROM observation WHERE kind = 'room_key'")
    assert sorted(keys) == sorted(row["identity"] for row in recorded)
    lost = [gap for gap in await load_gaps(installation.conn, None, None) if gap.reason is GapReason.TO_DEVICE_LOST]
    for killed_at in (first_killed_at, second_killed_at):
        assert any(
            gap.started_at is not None and gap.started_at <= killed_at and (gap.ended_at or killed_at) >= killed_at
            for gap in lost
        )
