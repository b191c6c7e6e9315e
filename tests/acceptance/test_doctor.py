"""`rtc-appservice doctor` as an operator runs it: a process, a real Synapse, a real database, the service or none."""

import asyncio
import json
import os
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec
import pytest
import yaml
from aiohttp import web

from rtc_appservice import registration
from rtc_appservice.core.installation import Check, Outcome
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.demo.synapse import SERVER_NAME, free_port, running_synapse
from rtc_appservice.doctor import examine
from rtc_appservice.store.migrate import head, upgrade
from rtc_appservice.store.pool import Pool

SECONDS = 40.0
DOCTOR = f"@rtc-auditor-doctor:{SERVER_NAME}"
DEVICE = f"@rtc-auditor-device:{SERVER_NAME}"
SENDER = f"@rtc-auditor:{SERVER_NAME}"
#: What is not asked of these installations, unless a test wants it.
OFF = {"posthog": "skipped", "notifications": "skipped"}


class Installation:
    """A folder with a configuration and a registration; the homeserver knows the registration it began with."""

    def __init__(self, folder: Path, dsn: str, address: str, given: Path, port: int) -> None:
        self.folder, self.address, self.port, self.admin_port = folder, address, port, free_port()
        self.registration = yaml.safe_load(given.read_text())
        self.config: dict[str, Any] = {
            "secret": "a secret of the test",
            "homeserver": {"address": address, "domain": SERVER_NAME},
            "appservice": {"port": port, "address": f"http://127.0.0.1:{port}"},
            "metrics": {"listen_port": self.admin_port},
            "database": {"url": dsn, "pool_size": 3},
            "auditor": {"enabled": True},
        }

    def write(self) -> Path:
        """Write the files as they are to be now; give the configuration's path."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        (self.folder / "registration.yaml").write_text(yaml.safe_dump(self.registration))
        return path

    async def command(self, *arguments: str) -> Process:
        """Start a command of the installation."""
        self.write()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RTC_APPSERVICE_")}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rtc_appservice", *arguments,
            cwd=self.folder, env=environment, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip

    async def examine(self) -> "Found":
        """Do what `doctor` does, here, and give what it found."""
        checks: list[Check] = []
        is_well = await examine(self.write(), checks.append, lambda text: None)
        assert is_well == all(check.outcome is not Outcome.FAILED for check in checks)
        return Found(msgspec.to_builtins(checks))

    async def doctor(self) -> "Found":
        """Run `doctor`, and give what it printed; no secret is in it."""
        process = await self.command("doctor", "--format", "json")
        out, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode in (0, 1), errors.decode()
        assert out, errors.decode()
        found = json.loads(out)
        assert found["ok"] == (process.returncode == 0)
        private = (self.registration["as_token"], self.registration["hs_token"], self.config["secret"])
        assert not [secret for secret in private if secret.encode() in out + errors]
        return Found(found["checks"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the service, and wait until its device is set up."""
        process = await self.command("run")
        assert process.stderr is not None
        try:
            async with asyncio.timeout(SECONDS):
                seen = b""
                while b"the device of the service is set up" not in seen:
                    line = await process.stderr.readline()
                    assert line, seen.decode()
                    seen += line
            draining = asyncio.ensure_future(process.stderr.read())
            yield
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), SECONDS)
        assert b"ERROR" not in await draining

    @asynccontextmanager
    async def changed(self, section: str, **keys: Any) -> AsyncIterator[None]:
        """Change keys of the configuration, for the time of the block."""
        before = self.config[section]
        self.config[section] = {**before, **keys}
        yield
        self.config[section] = before

    async def join_a_call(self) -> None:
        """Have a user of the homeserver make a room and join a call there."""
        login = {"username": "ann" + secrets.token_hex(4), "password": "p", "auth": {"type": "m.login.dummy"}}
        content = {
            "application": "m.call",
            "call_id": "",
            "device_id": "PHONE",
            "expires": 14400000,
            "focus_active": {"type": "livekit", "focus_selection": "oldest_membership"},
            "foci_preferred": [],
            "scope": "m.room",
        }
        base = f"{self.address}/_matrix/client/v3"
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            user = await (await session.post(f"{base}/register", json=login)).json()
            headers = {"Authorization": f"Bearer {user['access_token']}"}
            room = await (await session.post(f"{base}/createRoom", json={}, headers=headers)).json()
            path = f"rooms/{room['room_id']}/state/org.matrix.msc3401.call.member/_{user['user_id']}_PHONE"
            await session.put(f"{base}/{path}", json=content, headers=headers)

    async def ask(self, method: str, path: str, user: str, content: Any = None) -> Any:
        """Ask the homeserver as a user of the service's own."""
        headers = {"Authorization": f"Bearer {self.registration['as_token']}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self.address + path, params={"user_id": user}, json=content) as response,
        ):
            return await response.json()


class Found:
    """What `doctor` found."""

    def __init__(self, checks: list[dict[str, Any]]) -> None:
        self._checks = {check["step"]: check for check in checks}

    def outcomes(self) -> dict[str, str]:
        """Give the outcome of each step that is not ok."""
        return {step: check["outcome"] for step, check in self._checks.items() if check["outcome"] != "ok"}

    def said(self, step: str) -> str:
        """Give all that was said of a step."""
        return f"{self._checks[step]['text']} -> {self._checks[step]['advice']}"


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, Path, int]]:
    """Give a Synapse that knows a registration: its address, the registration, the service's port."""
    port = free_port()
    path = tmp_path_factory.mktemp("synapse") / "registration.yaml"
    url = f"http://127.0.0.1:{port}"
    path.write_text(registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=url))
    async with running_synapse(path) as synapse:
        yield synapse.address, path, port


@pytest.fixture
def installation(tmp_path: Path, database: str, homeserver: tuple[str, Path, int]) -> Installation:
    """Give an installation on a migrated database, as it is after the set-up."""
    return Installation(tmp_path, database, *homeserver)


async def test_before_the_first_start(installation: Installation) -> None:
    """All is well that there can be, the rest is named, and no temporary device stays."""
    found = await installation.doctor()
    devices = await installation.ask("GET", "/_matrix/client/v3/devices", DOCTOR)

    assert {**OFF, "device": "skipped", "round_trip": "skipped"} == found.outcomes()
    assert "service itself is not running" in found.said("ping")
    assert {"devices": []} == devices


async def test_with_the_service_and_without(installation: Installation, pool: Pool) -> None:
    """A running service opens what its device is sent; when it does not run, the message waits for it."""
    taken = "SELECT count(*) FROM crypto.taken_message"
    async with installation.running():
        running = await installation.doctor()
        opened = await pool.fetchval(taken)
        async with installation.changed("appservice", port=free_port()):
            elsewhere = await installation.examine()
        opened_elsewhere = await pool.fetchval(taken)
    stopped = await installation.examine()
    left = await pool.fetchval(taken)
    async with installation.running(), asyncio.timeout(SECONDS):
        while await pool.fetchval(taken) == left:
            await asyncio.sleep(0.05)

    assert OFF == running.outcomes() == elsewhere.outcomes() == stopped.outcomes()
    assert "the running service opened" in running.said("round_trip")
    assert "can be opened" in stopped.said("round_trip")
    assert (1, 2, 2) == (opened, opened_elsewhere, left)


async def test_a_service_with_another_configuration(installation: Installation, empty_database: str) -> None:
    """A running service that read another registration, or writes to another database, is found."""
    await upgrade(empty_database)
    hs_token = installation.registration["hs_token"]
    async with installation.running():
        async with installation.changed("database", url=empty_database):
            other_database = await installation.examine()
        installation.registration["hs_token"] = "another-" + "h" * 40
        other_token = await installation.examine()
        installation.registration["hs_token"] = hs_token

    assert "does not use this database" in other_database.said("ping")
    assert "restart it" in other_token.said("ping")


async def test_leaves_to_the_service_what_is_its(installation: Installation, pool: Pool) -> None:
    """While the homeserver has events for the service, none is taken from it, and what cannot be told is said so."""
    recorded = "SELECT count(*) FROM observation WHERE kind = 'membership'"
    await installation.join_a_call()
    waiting = await installation.examine()
    before = await pool.fetchval(recorded)
    async with installation.running(), asyncio.timeout(SECONDS):
        await installation.examine()  # Synapse tries again as soon as a ping succeeded
        while await pool.fetchval(recorded) == before:
            await asyncio.sleep(0.05)

    assert "skipped" == waiting.outcomes()["to_device"]
    assert "start it" in waiting.said("to_device")
    assert 0 == before


async def test_tokens_of_another_registration(installation: Installation) -> None:
    """Either token that the homeserver does not have is told apart, and what needs it is not tried."""
    as_token, installation.registration["as_token"] = installation.registration["as_token"], "wrong-" + "a" * 40
    no_as_token = await installation.examine()
    installation.registration["as_token"] = as_token
    installation.registration["hs_token"] = "wrong-" + "h" * 40
    no_hs_token = await installation.examine()
    installation.registration["id"] = "another"
    other_id = await installation.examine()

    needing = {"ping", "to_device", "device", "round_trip"}
    expected = {"registration": "failed", **OFF, **dict.fromkeys(needing, "skipped")}
    assert expected == no_as_token.outcomes()
    assert "app_service_config_files" in no_as_token.said("registration")
    assert "needs registration" in no_as_token.said("round_trip")
    assert "failed" == no_hs_token.outcomes()["ping"]
    assert "another hs_token" in no_hs_token.said("ping")
    assert "another `id`" in other_id.said("ping")


async def test_ports(installation: Installation) -> None:
    """A port that the homeserver does not reach, and one that another program has, are told apart."""
    installation.config["appservice"]["port"] = free_port()
    closed = await installation.examine()
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", installation.port).start()
    elsewhere = await installation.examine()
    installation.config["appservice"]["port"] = installation.port
    taken = await installation.examine()
    await runner.cleanup()

    assert {"ping": "failed", "to_device": "skipped"}.items() <= closed.outcomes().items()
    assert "does not reach the service" in closed.said("ping")
    assert "another program" in elsewhere.said("ping")
    assert f"port {installation.port} is in use by another program" in taken.said("ping")


async def test_database(installation: Installation, empty_database: str, tmp_path: Path) -> None:
    """One that is behind, one that cannot be reached, and an embedded one that is not made yet, which stays so."""
    conn = await asyncpg.connect(installation.config["database"]["url"])
    await conn.execute("UPDATE alembic_version SET version_num = '0001_create_schema'")
    await conn.close()
    behind = await installation.examine()
    installation.config["database"]["url"] = empty_database
    empty = await installation.examine()
    installation.config["database"]["url"] = "postgresql://nobody@127.0.0.1:1/nothing"
    unreachable = await installation.examine()
    del installation.config["database"]
    missing = await installation.examine()

    assert f"is at 0001_create_schema, this version needs {head()}" in behind.said("database")
    assert "db upgrade" in behind.said("database")
    assert {"to_device": "skipped", "round_trip": "skipped"}.items() <= behind.outcomes().items()
    assert "is empty" in empty.said("database")
    assert "database.url" in unreachable.said("database")
    assert "skipped" == missing.outcomes()["database"]
    assert "to_device" not in missing.outcomes()
    assert not (tmp_path / "postgresql").exists()


async def test_a_lost_device(installation: Installation, pool: Pool) -> None:
    """A device that the homeserver has no keys of is found, and mended as is said; so is another deployment secret."""
    async with installation.running():
        device_id = await pool.fetchval("SELECT device_id FROM crypto.device")
        await installation.ask("DELETE", f"/_matrix/client/v3/devices/{device_id}", DEVICE, {})
        missing = await installation.examine()
    async with installation.running():
        mended = await installation.examine()
    installation.config["secret"] = "another secret of the test"
    other_secret = await installation.examine()

    assert {**OFF, "device": "failed", "round_trip": "skipped"} == missing.outcomes()
    assert f"no keys of {device_id}" in missing.said("device")
    assert "restart the service" in missing.said("device")
    assert OFF == mended.outcomes()
    assert "failed" == other_secret.outcomes()["device"]
    assert "secret" in other_secret.said("device")


async def test_posthog(installation: Installation) -> None:
    """The project's key is taken, another one refused, and no event is sent for it."""
    server = PostHogStandIn()
    host = await server.start()
    try:
        installation.config["posthog"] = {"api_key": "phc_test", "host": host}
        taken = await installation.examine()
        server.behaviour.status = 401
        refused = await installation.examine()
    finally:
        await server.stop()
    gone = await installation.examine()

    assert "posthog" not in taken.outcomes()
    assert ["failed", "failed"] == [found.outcomes()["posthog"] for found in (refused, gone)]
    assert "refuses the key" in refused.said("posthog")
    assert "does not answer" in gone.said("posthog")
    assert [] == server.events


async def test_room_for_notices(installation: Installation) -> None:
    """Its sender can post there, or what is in the way is said; an invitation is enough, and is not followed."""
    base = f"{installation.address}/_matrix/client/v3"
    login = {"username": "op" + secrets.token_hex(4), "password": "p", "auth": {"type": "m.login.dummy"}}
    alias = f"notices{secrets.token_hex(4)}"
    installation.config["auditor"] = {"enabled": False}
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        user = await (await session.post(f"{base}/register", json=login)).json()
        headers = {"Authorization": f"Bearer {user['access_token']}"}

        async def do(method: str, path: str, content: Any) -> Any:
            return await (await session.request(method, f"{base}/{path}", json=content, headers=headers)).json()

        async def step() -> str:
            found = await installation.examine()
            return found.said("notifications")

        room_id = (await do("POST", "createRoom", {"room_alias_name": alias}))["room_id"]
        installation.config["notifications"] = {"room_id": f"#{alias}:{SERVER_NAME}"}
        uninvited = await step()
        await do("POST", f"rooms/{room_id}/invite", {"user_id": SENDER})
        invited = await step()
        joined_rooms = await installation.ask("GET", "/_matrix/client/v3/joined_rooms", SENDER)
        await installation.ask("POST", f"/_matrix/client/v3/join/{room_id}", SENDER, {})
        installation.config["notifications"] = {"room_id": room_id}
        joined = await step()
        levels = await do("GET", f"rooms/{room_id}/state/m.room.power_levels", None)
        await do("PUT", f"rooms/{room_id}/state/m.room.power_levels", {**levels, "events_default": 50})
        quiet = await step()
        await do("PUT", f"rooms/{room_id}/state/m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
        encrypted = await step()
        installation.config["notifications"] = {"room_id": f"#nothing:{SERVER_NAME}"}
        nowhere = await step()

    assert f"invite {SENDER}" in uninvited
    assert "first notice" in invited
    assert room_id not in joined_rooms["joined_rooms"]
    assert "may post there" in joined
    assert "power level there is 0, and 50 is needed" in quiet
    assert "is encrypted" in encrypted
    assert f"#nothing:{SERVER_NAME} is not there" in nowhere
