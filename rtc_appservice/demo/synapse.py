"""
A real Synapse in a process of its own: loopback only, temporary data, gone without a trace.

It is what the demo and the acceptance tests run against. Rate limits are off, since a whole call is played
in seconds, and the experimental features the service wants from a homeserver are on.
"""

import asyncio
import base64
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from rtc_appservice.errors import RtcAppserviceError

#: Eight characters, as the homeserver the recorded calls were played on: envelope lengths compare.
SERVER_NAME = "rtc.test"

_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_ASK = aiohttp.ClientTimeout(total=1.0)


class SynapseFailed(RtcAppserviceError):
    """Synapse did not start."""


def free_port() -> int:
    """Give a loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def homeserver_config(folder: Path, port: int, server_name: str, registration: Path) -> dict[str, Any]:
    """Give the `homeserver.yaml` of a Synapse that keeps all it has in `folder`."""
    return {
        "server_name": server_name,
        "public_baseurl": f"http://127.0.0.1:{port}/",
        "pid_file": str(folder / "synapse.pid"),
        "listeners": [
            {
                "port": port,
                "type": "http",
                "tls": False,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"], "compress": False}],
            }
        ],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "log_config": str(folder / "log.yaml"),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "report_stats": False,
        "presence": {"enabled": False},
        "macaroon_secret_key": secrets.token_hex(),
        "form_secret": secrets.token_hex(),
        # Anybody on this machine may register while the demo runs; there is nothing to find here.
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "bcrypt_rounds": 4,
        "max_event_delay_duration": "24h",
        "app_service_config_files": [str(registration)],
        "experimental_features": {
            "msc2409_to_device_messages_enabled": True,
            "msc3202_transaction_extensions": True,
            "msc4354_enabled": True,
        },
        "rc_message": _UNLIMITED,
        "rc_registration": _UNLIMITED,
        "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
        "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
        "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
        "rc_delayed_event_mgmt": _UNLIMITED,
    }


def _write_data(folder: Path, port: int, server_name: str, registration: dict[str, Any]) -> Path:
    registration_path = folder / "registration.yaml"
    registration_path.write_text(yaml.safe_dump(registration, sort_keys=False))
    config_path = folder / "homeserver.yaml"
    config_path.write_text(yaml.safe_dump(homeserver_config(folder, port, server_name, registration_path)))
    (folder / "log.yaml").write_text(yaml.safe_dump(_LOG_CONFIG))
    seed = base64.b64encode(os.urandom(32)).rstrip(b"=").decode()
    (folder / "signing.key").write_text(f"ed25519 a_demo {seed}\n")
    return config_path


_LOG_CONFIG = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stdout": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
    "root": {"level": "WARNING", "handlers": ["stdout"]},
    "disable_existing_loggers": False,
}


class Synapse:
    """A running Synapse; made by `running_synapse`."""

    def __init__(self, folder: Path, port: int, server_name: str) -> None:
        """Take what is known before the process runs."""
        self.folder = folder
        self.server_name = server_name
        self.address = f"http://127.0.0.1:{port}"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Give the process id."""
        if self._process is None:
            raise SynapseFailed
        return self._process.pid

    async def start(self, config_path: Path) -> None:
        """Start the process, and return when it answers; raise `SynapseFailed` with its last lines otherwise."""
        with self._log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then stops Synapse in order.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "synapse.app.homeserver", "--config-path", str(config_path),
                cwd=self.folder, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession(timeout=_ASK) as session:
                while not await self._healthy(session):
                    if self._process.returncode is not None:
                        raise SynapseFailed(f"Synapse ended while starting; its last lines were:\n{self.log_tail()}")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            message = f"Synapse did not answer within {_START_SECONDS:.0f} s; its last lines were:\n{self.log_tail()}"
            raise SynapseFailed(message) from None

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.address}/health") as response:
                return response.status == 200
        except (aiohttp.ClientConnectionError, TimeoutError):
            return False

    @property
    def _log_path(self) -> Path:
        return self.folder / "synapse.log"

    def log_tail(self, lines: int = 20) -> str:
        """Give the last lines Synapse wrote."""
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-lines:])

    async def stop(self) -> None:
        """End the process: asked first, then killed with all it started."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


@contextlib.asynccontextmanager
async def running_synapse(
    registration: dict[str, Any], *, port: int | None = None, server_name: str = SERVER_NAME
) -> AsyncIterator[Synapse]:
    """Give a Synapse that knows the appservice `registration`; its process and its data are gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rtc-appservice-synapse-"))
    port = port or free_port()
    synapse = Synapse(folder, port, server_name)
    try:
        await synapse.start(_write_data(folder, port, server_name, registration))
        yield synapse
    finally:
        try:
            await asyncio.shield(synapse.stop())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
