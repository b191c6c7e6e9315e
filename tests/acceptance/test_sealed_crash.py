"""
The service is killed at random points while sealed events and to-device messages come: none is lost, none is doubled.

The service is the real command in a process of its own, against a real Synapse; what is sent is real Olm and Megolm.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from rtc_appservice.core.observed import MegolmEnvelope, Observation, RoomKey, ToDeviceKey
from rtc_appservice.core.words import DeviceId, RoomId, ServerName
from rtc_appservice.demo.process import ProcessFailed, ServerProcess, running
from rtc_appservice.demo.synapse import SERVER_NAME, free_port
from rtc_appservice.store import totals
from rtc_appservice.store.audited_rooms import want_room
from rtc_appservice.store.observations import load_room
from rtc_appservice.store.pool import Pool
from tests.acceptance.sealed_room import Sender, sealed_synapse, sender

EACH = 200
SHARES = 5  #: Megolm sessions that are handed over
KILLS = 6
PATIENCE_SECONDS = 150.0


@asynccontextmanager
async def service_process(folder: Path) -> AsyncIterator[ServerProcess]:
    """Give the running service."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    command = [sys.executable, "-m", "rtc_appservice", "run", "--config", str(folder / "config.yaml")]
    ready = f"http://127.0.0.1:{config['metrics']['listen_port']}/ready"
    async with running("rtc-appservice", command, folder=folder, ready_url=ready) as service:
        yield service


def configure(folder: Path, dsn: str, address: str, registration: Path, port: int) -> None:
    """Write the configuration of a service with a device."""
    config: dict[str, Any] = {
        "secret": secrets.token_hex(),
        "homeserver": {"address": address, "domain": SERVER_NAME},
        "appservice": {
            "address": f"http://127.0.0.1:{port}",
            "hostname": "127.0.0.1",
            "port": port,
            "registration": str(registration),
        },
        "auditor": {"enabled": True, "invited_by": [SERVER_NAME], "notice": ""},
        "database": {"url": dsn, "pool_size": 4},
        "metrics": {"hostname": "127.0.0.1", "listen_port": free_port()},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


async def recorded(pool: Pool, room_id: RoomId) -> list[Observation]:
    """Give what is recorded of a room."""
    async with pool.acquire() as conn:
        key = await conn.fetchval("SELECT room_key FROM room WHERE room_id = $1", room_id)
        if key is None:
            return []
        return await load_room(conn, ServerName(SERVER_NAME), room_id, key, datetime(2000, 1, 1, tzinfo=UTC))


def indexes(observations: list[Observation], kind: type[RoomKey] | type[ToDeviceKey]) -> Counter[int]:
    """Count the keys of one form by their index, by which the test tells them apart."""
    return Counter(o.body.keys[0].index for o in observations if isinstance(o.body, kind))


async def eventually(pool: Pool, query: str) -> Any:
    """Wait until a query gives something true, and give that."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        async with pool.acquire() as conn:
            found = await conn.fetchval(query)
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, query
        await asyncio.sleep(0.1)


async def send_all(alice: Sender, room_id: RoomId, device_id: DeviceId) -> None:
    """Send the room keys and the to-device keys, with other traffic racing the latter; a new session now and then."""
    for index in range(EACH):
        if index % (EACH // SHARES) == 0:
            await alice.share(room_id)
        await alice.send_room_key(room_id, index)
        await asyncio.gather(
            alice.send_to_device_key(room_id, index, device_id),
            alice.send_nothing_to(alice.client.mxid, alice.client.device_id),
        )


async def test_killed_at_random_points(tmp_path: Path, database: str, pool: Pool) -> None:
    """Two hundred sealed events and two hundred to-device messages: each is there and counted once, all were opened."""
    random = Random(4)  # noqa: S311 - only the moments of the kills
    async with sealed_synapse(tmp_path) as (address, path, port), sender(address, "alice") as alice:
        configure(tmp_path, database, address, path, port)
        room_id = await alice.make_room()
        async with service_process(tmp_path):
            await eventually(pool, "SELECT count(*) FROM crypto.device WHERE signed_at IS NOT NULL")
            async with pool.acquire() as conn:
                await want_room(conn, await conn.fetchval("SELECT homeserver_id FROM homeserver"), room_id, wanted=True)
            await eventually(pool, "SELECT count(*) FROM crypto.room WHERE joined_at IS NOT NULL")
            device_id = DeviceId(await eventually(pool, "SELECT device_id FROM crypto.device"))
        await alice.call(room_id)
        sending = asyncio.ensure_future(send_all(alice, room_id, device_id))
        for _ in range(KILLS):
            async with service_process(tmp_path) as service:
                before = len(await recorded(pool, room_id))
                wanted = before + random.randint(1, 25)
                while not sending.done() and len(await recorded(pool, room_id)) < wanted:
                    await asyncio.sleep(random.random() / 50)
                os.kill(service.pid, signal.SIGKILL)
                with pytest.raises(ProcessFailed):
                    await service.ended()
        async with service_process(tmp_path):
            await sending
            deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
            while True:
                found = await recorded(pool, room_id)
                if len(indexes(found, RoomKey)) == EACH and len(indexes(found, ToDeviceKey)) == EACH:
                    break
                assert asyncio.get_running_loop().time() < deadline, lacking(found)
                await asyncio.sleep(0.2)
    once = Counter(range(EACH))
    async with pool.acquire() as conn:
        unread = await conn.fetchval("SELECT count(*) FROM crypto.unread_event WHERE waiting")
        unopened = await conn.fetchval(
            "SELECT count(*) FROM gap WHERE reason = 'undecryptable' AND gap_id NOT LIKE '%sync%'"
        )
        counted: Counter[str] = Counter()
        for total in await totals.load(conn):
            counted[" ".join((total.name, *total.labels.values()))] += total.value

    assert once == indexes(found, RoomKey)
    assert once == indexes(found, ToDeviceKey)
    assert [] == [o.identity for o in found if isinstance(o.body, MegolmEnvelope)]
    assert (0, 0) == (unread, unopened)
    assert EACH == counted["events_decrypted at_once"] + counted["events_decrypted later"]
    assert counted["events_undecryptable missing_session"] == counted["events_decrypted later"]
    assert EACH + SHARES == counted["to_device_decrypted"]


def lacking(found: list[Observation]) -> str:
    """Say what has not come."""
    rooms, devices = (sorted(set(range(EACH)) - set(indexes(found, kind))) for kind in (RoomKey, ToDeviceKey))
    return f"room keys {rooms}, to-device keys {devices}"
