"""Whom the running service connects to: the database and the homeserver, and PostHog only where it is configured."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from rtc_appservice import registration
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.demo.process import ServerProcess, running
from rtc_appservice.demo.synapse import SERVER_NAME, free_port
from rtc_appservice.store.pool import Connection

from .test_crash import Proxy
from .test_frozen_database import Service, join

#: Nobody listens there.
HOMESERVER = ("127.0.0.1", 1)
#: What the connections that the service is made of lead to: the database's socket, and the homeserver.
OWN = (".s.PGSQL.", repr(HOMESERVER))
#: Runs a command and writes down every address that Python opens a connection or sends a packet to, or looks up.
WATCHED = """
import sys
told = open(sys.argv.pop(1), "a", buffering=1)
def hook(name, arguments):
    if name in ("socket.connect", "socket.sendto"):
        told.write(f"{name} {arguments[1]!r}\\n")
    elif name in ("socket.getaddrinfo", "socket.gethostbyname"):
        told.write(f"{name} {arguments[:2]!r}\\n")
sys.addaudithook(hook)
from rtc_appservice.cli.main import main
main()
"""


class Watched(Service):
    """A service whose connections are written down."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServerProcess]:
        """Give the running service."""
        command = [sys.executable, "-c", WATCHED, str(self.folder / "connections")]
        command += ["run", "--config", str(self.folder / "config.yaml")]
        ready = f"http://127.0.0.1:{self._admin_port}/ready"
        async with running("rtc-appservice", command, folder=self.folder, ready_url=ready) as service:
            yield service

    def connections(self) -> set[str]:
        """Give all it connected to, or asked for."""
        return set((self.folder / "connections").read_text().splitlines())


@pytest.mark.parametrize("is_on", [False, True])
async def test_posthog_off_is_off(tmp_path: Path, database: str, conn: Connection, is_on: bool) -> None:
    """A call begins and is worked out, and there are events of it; off, no connection leads anywhere for them."""
    posthog, port = PostHogStandIn(), free_port()
    address = await posthog.start()
    text = registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=f"http://127.0.0.1:{port}")
    (tmp_path / "registration.yaml").write_text(text)
    proxy = Proxy(port)
    proxy.port = port  # nothing stands between
    service = Watched(tmp_path, proxy, port, conn, yaml.safe_load(text)["hs_token"])
    service.configure(database, f"http://{HOMESERVER[0]}:{HOMESERVER[1]}")
    if is_on:
        path = tmp_path / "config.yaml"
        given = {"api_key": "phc_of_the_test", "host": address}
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "posthog": given}))
    async with service.running():
        assert await service.put("1", join(1))
        await service.until("/calls", "room1")
        if is_on:
            await posthog.received(1)
    await posthog.stop()
    elsewhere = {line for line in service.connections() if not any(each in line for each in OWN)}

    assert service.connections() - elsewhere
    assert is_on is any(address.rpartition(":")[2] in line for line in elsewhere)
    assert is_on is bool(elsewhere)
