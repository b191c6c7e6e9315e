"""
PostgreSQL is stopped, not gone: it holds every connection open and answers nothing. Then it goes on.

The service is the real command in a process of its own, and so is PostgreSQL, which is sent SIGSTOP and SIGCONT.
"""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil  # type: ignore[import-untyped]
import pytest
import yaml

from rtc_appservice import registration
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.demo.process import ProcessFailed
from rtc_appservice.demo.synapse import SERVER_NAME, free_port
from rtc_appservice.export import posthog as posthog_module
from rtc_appservice.export.events import Terms, event_maker
from rtc_appservice.export.posthog import run_posthog
from rtc_appservice.projector import run_projector
from rtc_appservice.store import pool as pool_module
from rtc_appservice.store.embedded import EmbeddedPostgres
from rtc_appservice.store.migrate import upgrade
from rtc_appservice.store.pool import Pool, lend, open_pool

from ..test_projector import Service as Stages
from ..test_projector import read
from .test_crash import Installation, Proxy, transaction

PATIENCE_SECONDS = 60.0
ASKED = ("/ready", "/metrics", "/", "/calls", "/rooms", "/health", "/live")


class Server:
    """A PostgreSQL of the test's own."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.dsn = dsn
        self._pid = int((folder / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it with all its processes, and let it go on."""
        main = psutil.Process(self._pid)
        main.suspend()  # it starts no more of them
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)


@pytest.fixture
def server() -> Iterator[Server]:
    """Give a running PostgreSQL; its folder is where its user can reach it, whatever pytest does with its own."""
    folder = Path(tempfile.mkdtemp(prefix="rtc-appservice-test-"))
    embedded = EmbeddedPostgres(folder / "postgres")
    dsn = embedded.start()
    yield Server(folder / "postgres", dsn)
    embedded.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def posthog() -> AsyncIterator[PostHogStandIn]:
    """Give a stand-in for PostHog that listens."""
    standin = PostHogStandIn()
    await standin.start()
    yield standin
    await standin.stop()


class Service(Installation):
    """An installation whose admin listener is asked, too."""

    async def get(self, path: str) -> tuple[int, str, float]:
        """Ask for a page; give status, text, and the seconds it took."""
        began = time.monotonic()
        url = f"http://127.0.0.1:{self._admin_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text(), time.monotonic() - began

    async def until(self, path: str, *words: str) -> None:
        """Wait until a page holds some words."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                status, text, _ = await self.get(path)
                if status == 200 and all(word in text for word in words):
                    return
                await asyncio.sleep(0.1)


@pytest.fixture
async def installation(tmp_path: Path, server: Server, posthog: PostHogStandIn) -> AsyncIterator[Service]:
    """Give a configured service on the PostgreSQL of the test's own, which exports to the stand-in."""
    port = free_port()
    text = registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=f"http://127.0.0.1:{port}")
    (tmp_path / "registration.yaml").write_text(text)
    conn = await asyncpg.connect(server.dsn)
    proxy = Proxy(port)
    proxy.port = port  # nothing stands between
    given = Service(tmp_path, proxy, port, conn, yaml.safe_load(text)["hs_token"])
    given.configure(server.dsn, "http://127.0.0.1:1")
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["posthog"] = {"api_key": "phc_of_the_test", "host": posthog.address}
    path.write_text(yaml.safe_dump(config))
    yield given
    await conn.close()


def join(number: int) -> dict[str, Any]:
    """Give a transaction with the membership that begins a call in a room of its own."""
    content = {
        "application": "m.call",
        "call_id": "",
        "device_id": "A",
        "expires": 14400000,
        "focus_active": {"focus_selection": "oldest_membership", "type": "livekit"},
    }
    event = {
        "type": "org.matrix.msc3401.call.member",
        "event_id": f"$join{number}",
        "room_id": f"!room{number}",
        "sender": f"@alice:{SERVER_NAME}",
        "state_key": f"_@alice:{SERVER_NAME}_A",
        "origin_server_ts": int(datetime.now(UTC).timestamp() * 1000),
        "content": content,
    }
    return {**transaction(), "events": [event]}


async def test_a_frozen_database(installation: Service, server: Server, posthog: PostHogStandIn) -> None:
    """While it answers nothing, everybody is told so in time; once it goes on, so does every part of the service."""
    async with installation.running():
        assert await installation.put("1", join(1))
        await installation.until("/calls", "room1")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await posthog.received(2)

        with server.frozen():
            sent = asyncio.create_task(installation.put("2", join(2)))
            answers = await asyncio.gather(*(installation.get(path) for path in ASKED))
            statuses = {path: status for path, (status, _, _) in zip(ASKED, answers, strict=True)}
            texts = {path: text for path, (_, text, _) in zip(ASKED, answers, strict=True)}
            assert {**dict.fromkeys(ASKED, 503), "/metrics": 200, "/health": 200, "/live": 200} == statuses
            assert {path for path in ASKED if "The database does not answer." in texts[path]} == {
                path for path in ASKED if statuses[path] == 503
            } | {"/health"}
            assert "rtc_appservice_database_up 0.0" in texts["/metrics"]
            assert "process_resident_memory_bytes" in texts["/metrics"]
            slowest = {path: seconds for path, (_, _, seconds) in zip(ASKED, answers, strict=True)}
            # Three of four connections hang at first, and two pages are made at a time.
            assert all(seconds < 35 for seconds in slowest.values()), slowest
            assert slowest["/ready"] < 5
            assert slowest["/metrics"] < 10
            assert not await sent

        await installation.until("/ready", "ready")
        assert await installation.put("2", join(2))
        await installation.until("/calls", "room2")
        await installation.until("/metrics", "rtc_appservice_database_up 1.0")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await posthog.received(3)


async def test_stopped_meanwhile(installation: Service, server: Server, posthog: PostHogStandIn) -> None:
    """A service that is told to stop ends by itself, soon and in order, though all its parts wait for the database."""
    async with installation.running() as service:
        assert await installation.put("1", join(1))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await posthog.received(2)
        with server.frozen():
            sent = asyncio.create_task(installation.put("2", join(2)))
            await installation.get("/ready")  # a second goes by, in which each part asks the database something
            began = time.monotonic()
            psutil.Process(service.pid).terminate()
            with pytest.raises(ProcessFailed):
                await service.ended()
            took = time.monotonic() - began
            assert not await sent
        lines = service.log_tail()

    assert took < 20
    assert '"stopping"' in lines
    assert "Traceback" not in lines


async def test_for_longer_than_anybody_waits(
    server: Server, posthog: PostHogStandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Projector and exporter cut their connections, say so, and go on with new ones by themselves."""
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(posthog_module, "WORK_SECONDS", 1.0)
    await upgrade(server.dsn)
    terms = Terms(secret=b"a secret of the deployment", app_version="1.2.3")
    stop = asyncio.Event()
    intakes = read("smart-switch")
    async with await open_pool(server.dsn, 4) as pool:
        stages = await Stages.open(pool)
        projector = replace(stages.projector, events=event_maker(terms), seconds=1.0)
        running = asyncio.gather(
            run_projector(pool, projector, stop),
            run_posthog(pool, stop, api_key="phc_of_the_test", host=posthog.address, terms=terms),
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for intake in intakes[: len(intakes) // 2]:
                    await stages.take(intake)
                await posthog.received(1)
                # The driver's own time-out for a statement would take a minute.
                with server.frozen():
                    while not {"projection waits for the database: %s", "the outbox cannot be reached"} <= {
                        str(record.msg) for record in caplog.records
                    }:
                        await asyncio.sleep(0.05)
                for intake in intakes[len(intakes) // 2 :]:
                    await stages.take(intake)
                last = max(intake.newest_at for intake in intakes if intake.newest_at is not None)
                await stages.advance(last + timedelta(hours=6))
                while not any(event["event"] == "RtcCallEnded" for event in posthog.events):
                    await asyncio.sleep(0.05)
        finally:
            stop.set()
            await running


async def test_given_up_meanwhile(server: Server) -> None:
    """A task that is cancelled in a statement does not wait for the database to confirm it, either."""

    async def ask(pool: Pool) -> None:
        async with lend(pool, 3.0) as conn:
            await conn.execute("SELECT pg_sleep(1000)")

    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with asyncio.timeout(PATIENCE_SECONDS), await open_pool(server.dsn, 2) as pool:
        asking = asyncio.create_task(ask(pool))
        while not await pool.fetchval(sleeping):
            await asyncio.sleep(0.01)
        with server.frozen():
            asking.cancel()
            await asyncio.wait([asking], timeout=20)
            assert asking.cancelled()
