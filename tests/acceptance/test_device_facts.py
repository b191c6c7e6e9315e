"""Devices of calls, asked for at a real Synapse as the service's own user."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.client import Client
from mautrix.crypto import OlmMachine
from mautrix.crypto.store import MemoryCryptoStore
from mautrix.types import DeviceID, UserID

from rtc_appservice import registration
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import Device, DeviceId, ServerName, UserId
from rtc_appservice.demo.olm_device import QUIET, NoEncryptedRooms
from rtc_appservice.demo.process import running
from rtc_appservice.demo.synapse import SERVER_NAME, free_port, running_synapse
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.device_facts import asking, refresh
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import Read
from rtc_appservice.store.pool import Pool

PATIENCE_SECONDS = 20.0
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@asynccontextmanager
async def logged_in(address: str, localpart: str, name: str | None) -> AsyncIterator[OlmMachine]:
    """Register a user whose client names its device so, and publish the device's keys."""
    client = Client(base_url=address, log=QUIET)
    content: dict[str, Any] = {"username": localpart, "password": secrets.token_urlsafe(), "device_id": "D"}
    content |= {"auth": {"type": "m.login.dummy"}} | ({} if name is None else {"initial_device_display_name": name})
    try:
        answer = await client.api.request(Method.POST, ApiPath.v3.register, content)
        client.mxid, client.device_id = UserID(answer["user_id"]), DeviceID(answer["device_id"])
        client.api.token = answer["access_token"]
        machine = OlmMachine(client, MemoryCryptoStore(client.mxid, "memory"), NoEncryptedRooms(), log=QUIET)
        await machine.load()
        await machine.share_keys(0)
        yield machine
    finally:
        await client.api.session.close()


@asynccontextmanager
async def service(path: Path, address: str) -> AsyncIterator[IntakeServer]:
    """Give the application service of a registration, whose requests pass the one choke point."""

    async def take(_read: Read) -> Intake:
        return Intake()

    registered = registration.load(path)
    server = IntakeServer(
        Credentials(
            appservice_id=registered.id,
            as_token=registered.as_token,
            hs_token=registered.hs_token,
            sender_localpart=registered.sender_localpart,
        ),
        address=address,
        homeserver=ServerName(SERVER_NAME),
        take=take,
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.stop()


async def recorded(pool: Pool) -> dict[tuple[str, str], tuple[str, bool | None]]:
    """Give platform and signature of each device asked for."""
    rows = await pool.fetch("SELECT user_id, device_id, platform, cross_signed FROM device_fact")
    return {(row["user_id"], row["device_id"]): (row["platform"], row["cross_signed"]) for row in rows}


async def in_call(pool: Pool, devices: list[Device]) -> int:
    """Note devices as members of a call, as projection does, and give the homeserver's number."""
    number: int = await pool.fetchval("INSERT INTO homeserver (name) VALUES ($1) RETURNING homeserver_id", SERVER_NAME)
    await pool.executemany(
        "INSERT INTO stint (room_key, call_id, user_id, device_id, joined_at, homeserver_id, slot_id)"
        " VALUES (1, 'c', $1, $2, $3, $4, 's')",
        [(*device, NOON, number) for device in devices],
    )
    return number


def register(folder: Path) -> Path:
    """Write a registration that covers no user but the service's own."""
    path = folder / "registration.yaml"
    path.write_text(
        registration.render(registration.Scope.ROOMS, domain=SERVER_NAME, url=f"http://127.0.0.1:{free_port()}")
    )
    return path


async def test_names_and_signatures(tmp_path: Path, pool: Pool) -> None:
    """Platforms are told from names, signatures are checked; a new day brings what changed and keeps what went."""
    path = register(tmp_path)
    async with (
        running_synapse(path) as synapse,
        service(path, synapse.address) as server,
        logged_in(synapse.address, "ann", "Element X iOS") as ann,
        logged_in(synapse.address, "ben", "app.element.io: Firefox on Linux") as ben,
        logged_in(synapse.address, "cat", None),
    ):
        await ann.generate_recovery_key()
        users = {name: UserId(f"@{name}:{SERVER_NAME}") for name in ("ann", "ben", "cat")}
        devices: list[Device] = [(user_id, DeviceId("D")) for user_id in users.values()]
        devices.append((users["ann"], DeviceId("MADE UP")))
        homeserver_id = await in_call(pool, devices)
        ask = asking(synapse.address, server.as_token, server.http_session, server.bot_mxid)

        asked = await refresh(pool, homeserver_id, ask, is_cross_signed, NOON)
        first = await recorded(pool)
        asked_again = await refresh(pool, homeserver_id, ask, is_cross_signed, NOON + timedelta(hours=23))
        await ben.generate_recovery_key()
        await ben.client.api.request(Method.PUT, ApiPath.v3.devices["D"], {"display_name": "Element Desktop: Linux"})
        await ann.client.logout()
        await refresh(pool, homeserver_id, ask, is_cross_signed, NOON + timedelta(hours=25))
        second = await recorded(pool)

    assert (4, 0) == (asked, asked_again)
    assert {
        (users["ann"], "D"): ("ios", True),
        (users["ben"], "D"): ("web", False),
        (users["cat"], "D"): ("unknown", False),
        (users["ann"], "MADE UP"): ("unknown", None),
    } == first
    assert first | {(users["ben"], "D"): ("desktop", True)} == second


async def test_the_service_asks(tmp_path: Path, database: str, pool: Pool) -> None:
    """The service, as an operator runs it, comes to know the devices of calls by itself."""
    path = register(tmp_path)
    admin_port = free_port()
    async with running_synapse(path) as synapse, logged_in(synapse.address, "ann", "Element X Android"):
        ann = (UserId(f"@ann:{SERVER_NAME}"), DeviceId("D"))
        await in_call(pool, [ann])
        config = {
            "secret": "a secret of the test",
            "homeserver": {"address": synapse.address, "domain": SERVER_NAME},
            "appservice": {"port": free_port(), "registration": str(path)},
            "database": {"url": database, "pool_size": 2},
            "metrics": {"listen_port": admin_port},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "rtc_appservice", "run"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RTC_APPSERVICE_")}
        ready = f"http://127.0.0.1:{admin_port}/ready"
        async with running("rtc-appservice", command, folder=tmp_path, ready_url=ready, environment=clean):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (found := await recorded(pool)):
                    await asyncio.sleep(0.05)

    assert {ann: ("android", False)} == found
