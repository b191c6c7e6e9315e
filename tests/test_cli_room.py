"""The commands about the service's own device, on a real database."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from rtc_appservice import registration
from rtc_appservice.cli.main import main
from rtc_appservice.core.words import DeviceId, ServerName, UserId
from rtc_appservice.demo.synapse import free_port
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.store import crypto
from rtc_appservice.store.migrate import upgrade
from rtc_appservice.store.pool import open_pool
from rtc_appservice.store.streams import open_stream

ROOM = "!abc:example.org"
SECRET = "a secret of the deployment of the test"


@pytest.fixture
async def config_path(tmp_path: Path, empty_database: str) -> Path:
    """Give a configuration with a migrated database."""
    await upgrade(empty_database)
    path = tmp_path / "config.yaml"
    homeserver = {"address": "http://127.0.0.1:1", "domain": "example.org"}
    path.write_text(yaml.safe_dump({"secret": SECRET, "homeserver": homeserver, "database": {"url": empty_database}}))
    return path


def run(path: Path, *arguments: str) -> Result:
    """Run a command in a process of its own mind: it has an event loop to itself."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(CliRunner().invoke, main, [*arguments, "--config", str(path)]).result()


def rooms(path: Path) -> dict[str, tuple[bool, bool]]:
    """Give the rooms listed, each with whether it is wanted and whether the device takes part there."""
    listed = json.loads(run(path, "room", "list", "--format", "json").stdout)
    return {room["room_id"]: (room["wanted"], room["witness"]) for room in listed["rooms"]}


async def test_rooms(config_path: Path) -> None:
    """What is asked for is listed, and a running service follows it."""
    assert {} == rooms(config_path)
    assert "the device is in no room" in run(config_path, "room", "list").stderr
    assert 0 == run(config_path, "room", "add", ROOM).exit_code
    assert {ROOM: (True, False)} == rooms(config_path)
    assert 0 == run(config_path, "room", "witness", ROOM, "on").exit_code
    assert {ROOM: (True, True)} == rooms(config_path)
    assert 0 == run(config_path, "room", "remove", ROOM).exit_code
    assert {ROOM: (False, True)} == rooms(config_path)
    assert f"{ROOM}  leaving, takes part in calls\n" == run(config_path, "room", "list").stdout


async def test_what_is_no_room(config_path: Path) -> None:
    """An alias, and a room that the device is not in, are errors that say what to do."""
    alias = run(config_path, "room", "add", "#abc:example.org")
    unknown = run(config_path, "room", "witness", ROOM, "on")

    assert (1, 1) == (alias.exit_code, unknown.exit_code)
    assert "no room id" in alias.output
    assert "room add" in unknown.output


async def test_recovery_phrase(config_path: Path) -> None:
    """It follows from the deployment secret alone, which it does not show."""
    first, again = (run(config_path, "recovery-phrase").stdout for _ in range(2))

    assert first == again
    assert 6 == len(first.split("-"))
    assert SECRET not in first


async def add_device(dsn: str, secret: bytes) -> None:
    """Have a service with a secret make the keys of its device."""
    name = ServerName("example.org")
    async with await open_pool(dsn, 1) as pool, pool.acquire() as conn:
        homeserver_id = (await open_stream(conn, name)).homeserver_id
        device = (UserId("@rtc-auditor-device:example.org"), DeviceId("AUDITOR1"))
        account = OwnDevice(name, homeserver_id, device, secret).new_account()
        await crypto.add_device(conn, homeserver_id, *device, account)


def switch_device_on(path: Path) -> None:
    """Have the configuration of a service be one with a device."""
    config = yaml.safe_load(path.read_text())
    registered = path.parent / "registration.yaml"
    registered.write_text(registration.render(registration.Scope.ROOMS, domain="example.org", url="http://x"))
    config["appservice"] = {"registration": str(registered), "port": free_port(), "hostname": "127.0.0.1"}
    path.write_text(yaml.safe_dump(config | {"auditor": {"enabled": True}, "metrics": {"enabled": False}}))


async def test_another_secret_is_told(config_path: Path, empty_database: str) -> None:
    """The service does not start with keys it cannot read, and says what to do; `new-device` forgets them."""
    await add_device(empty_database, b"the secret of before")
    switch_device_on(config_path)

    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rtc_appservice", "run", "--config", str(config_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(started.communicate(), 30)
    unsure = run(config_path, "new-device")
    renewed = run(config_path, "new-device", "--yes")

    assert 1 == started.returncode
    assert "under another deployment secret" in told.decode()
    assert "rtc-appservice new-device" in told.decode()
    assert "Traceback" not in told.decode()
    assert 1 == unsure.exit_code
    assert 0 == renewed.exit_code
    async with await open_pool(empty_database, 1) as pool:
        assert 0 == await pool.fetchval("SELECT count(*) FROM crypto.device")
