"""
A real Synapse in a process of its own: loopback only, temporary data, gone without a trace.

It is what the demo and the acceptance tests run against. Rate limits are off, since a whole call is played
in seconds, and the experimental features the service wants from a homeserver are on.
"""

import base64
import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from rtc_appservice.demo.process import ServerProcess, running

#: Eight characters, as the homeserver the recorded calls were played on: envelope lengths compare.
SERVER_NAME = "rtc.test"

_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}


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


def _write_data(folder: Path, port: int, server_name: str, registration: Path) -> Path:
    config_path = folder / "homeserver.yaml"
    config_path.write_text(yaml.safe_dump(homeserver_config(folder, port, server_name, registration.resolve())))
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


class Synapse(Struct, frozen=True):
    """A running Synapse."""

    address: str
    process: ServerProcess
    folder: Path


@contextlib.asynccontextmanager
async def running_synapse(
    registration: Path, *, port: int | None = None, server_name: str = SERVER_NAME
) -> AsyncIterator[Synapse]:
    """Give a Synapse that knows the appservice of a registration file; its process and its data are gone at the end."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="rtc-appservice-synapse-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config_path = _write_data(folder, port, server_name, registration)
        command = [sys.executable, "-m", "synapse.app.homeserver", "--config-path", str(config_path)]
        async with running("Synapse", command, folder=folder, ready_url=f"{address}/health") as process:
            yield Synapse(address, process, folder)
