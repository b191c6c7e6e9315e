"""The service as an operator runs it: a process with a configuration, a registration and a real database."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from rtc_appservice import registration
from rtc_appservice.core.model import Report
from rtc_appservice.core.words import GapReason
from rtc_appservice.demo.synapse import free_port
from rtc_appservice.errors import ServiceFailed
from rtc_appservice.service import run_until
from rtc_appservice.store.pool import Pool
from rtc_appservice.view.stored import read_report

START_SECONDS = 30.0


class Service:
    """One installation; `start` and `stop` run its process."""

    def __init__(self, folder: Path, dsn: str | None) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self._folder = folder
        registration_path = folder / "registration.yaml"
        registration_path.write_text(
            registration.render(registration.Scope.USERS, domain="example.org", url=f"http://127.0.0.1:{self.port}")
        )
        self.token = registration.load(registration_path).hs_token
        config: dict[str, Any] = {
            "secret": "a secret of the test",
            "homeserver": {"address": "http://127.0.0.1:1", "domain": "example.org"},
            "appservice": {"port": self.port},
            "metrics": {"listen_port": self.admin_port},
        }
        if dsn is not None:
            config["database"] = {"url": dsn, "pool_size": 2}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    async def spawn(self) -> Process:
        """Start the process."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RTC_APPSERVICE_")}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rtc_appservice", "run", cwd=self._folder, env=environment, stdout=PIPE, stderr=PIPE
        )

    async def start(self) -> Process:
        """Start the process and wait until it is ready."""
        process = await self.spawn()
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while not await self._is_ready(session):
                assert process.returncode is None, (await process.communicate())[1].decode()
                await asyncio.sleep(0.05)
        return process

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://127.0.0.1:{self.admin_port}/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def send(self, *events: dict[str, Any]) -> int:
        """Send a transaction and give the status."""
        async with (
            aiohttp.ClientSession() as session,
            session.put(
                f"http://127.0.0.1:{self.port}/_matrix/app/v1/transactions/1",
                json={"events": events},
                headers={"Authorization": f"Bearer {self.token}"},
            ) as response,
        ):
            return response.status


async def stop(process: Process) -> list[dict[str, Any]]:
    """End the process as an init system does, and give what it logged; it must end by itself and with success."""
    process.terminate()
    _, errors = await asyncio.wait_for(process.communicate(), START_SECONDS)

    assert 0 == process.returncode, errors.decode()
    return [json.loads(line) for line in errors.splitlines()]


def membership(event_id: str, at: datetime) -> dict[str, Any]:
    """Make a call membership as Synapse sends it."""
    return {
        "type": "org.matrix.msc3401.call.member",
        "room_id": "!r:example.org",
        "event_id": event_id,
        "sender": "@ann:example.org",
        "state_key": "_@ann:example.org_PHONE",
        "origin_server_ts": int(at.timestamp() * 1000),
        "content": {
            "application": "m.call",
            "call_id": "",
            "device_id": "PHONE",
            "expires": 14400000,
            "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
            "foci_preferred": [],
            "scope": "m.room",
        },
    }


async def until(read: Callable[[], Coroutine[Any, Any, Report]], holds: Callable[[Report], bool]) -> Report:
    """Read the report until a condition holds, and give it."""
    async with asyncio.timeout(START_SECONDS):
        while not holds(report := await read()):
            await asyncio.sleep(0.05)
    return report


@pytest.fixture
def service(tmp_path: Path, database: str) -> Service:
    """Give an installation on a migrated database."""
    return Service(tmp_path, database)


async def test_a_call_is_recorded_and_projected(service: Service, pool: Pool) -> None:
    """From the homeserver's transaction to a call in the report, and a clean end at SIGTERM."""
    process = await service.start()
    try:
        status = await service.send(membership("$1", datetime.now(UTC)))
        report = await until(
            lambda: read_report(pool, since=None, homeserver="example.org", now=datetime.now(UTC)),
            lambda report: bool(report.calls),
        )
    finally:
        logged = await stop(process)

    assert 200 == status
    assert ["PHONE"] == [participant.device_id for participant in report.calls[0].participants]
    assert ["serving", "stopping"] == [line["event"] for line in logged if line["logger"] == "rtc_appservice.service"]


async def test_logs_name_nobody(service: Service) -> None:
    """At the usual level no user, room or device is in the logs."""
    process = await service.start()
    await service.send(membership("$1", datetime.now(UTC)), {"type": "org.matrix.msc3401.call.member", "content": 1})
    logged = json.dumps(await stop(process))

    assert not [word for word in ("@ann", "!r:", "PHONE", service.token) if word in logged]


async def test_a_restart_is_a_gap(service: Service, pool: Pool) -> None:
    """What was sent while the service was down was not seen, and the report says so."""
    for _ in range(2):
        process = await service.start()
        await service.send(membership("$1", datetime.now(UTC)))
        await stop(process)
    report = await read_report(pool, since=None, homeserver=None, now=datetime.now(UTC))

    assert {GapReason.SERVICE_DOWN, GapReason.TO_DEVICE_LOST} <= {gap.reason for gap in report.gaps}


async def test_a_start_that_is_given_up_is_no_gap(service: Service, pool: Pool) -> None:
    """Started once more by mistake, the second process ends by the port in use, and the first has missed nothing."""
    process = await service.start()
    second = await service.spawn()
    _, errors = await asyncio.wait_for(second.communicate(), START_SECONDS)
    await stop(process)
    report = await read_report(pool, since=None, homeserver=None, now=datetime.now(UTC))

    assert 1 == second.returncode
    assert b"is in use by" in errors
    assert [] == list(report.gaps)


async def test_without_a_database_url_it_brings_its_own(tmp_path: Path) -> None:
    """PostgreSQL runs in a folder beside the configuration, which is said, and ends with the service."""
    process = await Service(tmp_path, None).start()
    running = (tmp_path / "postgresql" / "postmaster.pid").exists()
    logged = await stop(process)

    assert running
    assert str(tmp_path / "postgresql") in [line.get("folder") for line in logged]
    assert not (tmp_path / "postgresql" / "postmaster.pid").exists()


async def test_it_ends_when_its_own_database_has(tmp_path: Path) -> None:
    """Nobody else starts it again: whoever supervises the service is told by its exit, and the operator by one line."""
    process = await Service(tmp_path, None).start()
    folder = tmp_path / "postgresql"
    os.kill(int((folder / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    _, errors = await asyncio.wait_for(process.communicate(), START_SECONDS)

    assert 1 == process.returncode
    lines = errors.decode().splitlines()
    assert f"Error: The embedded PostgreSQL in {folder} has ended" in lines[-1]
    assert 1 >= sum("projection waits" in line for line in lines)


async def test_a_part_that_fails_ends_the_service(caplog: pytest.LogCaptureFixture) -> None:
    """The others end too, the process fails, and the log names the error but not its text, which may quote a row."""
    stop = asyncio.Event()

    async def waits() -> None:
        await stop.wait()

    async def fails() -> None:
        raise ValueError("Failing row contains (hunter2)")

    with pytest.raises(ServiceFailed):
        await asyncio.wait_for(run_until(stop, waits(), fails()), START_SECONDS)

    (record,) = caplog.records
    assert "ValueError" == record.__dict__["error"]
    assert "hunter2" not in str(record.__dict__)
