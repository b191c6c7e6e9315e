"""
The stage: PostgreSQL, a PostHog stand-in, a real Synapse and the service, each as an operator would run it.

The service is `rtc-appservice run` in a process of its own, with a configuration and a registration as the other
commands write them. Everything lives in one temporary folder and on loopback, and is gone at the end.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from rtc_appservice import registration
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.demo.process import ServerProcess, running
from rtc_appservice.demo.synapse import SERVER_NAME, Synapse, free_port, running_synapse
from rtc_appservice.store.embedded import EmbeddedPostgres

#: A call of the demo lasts seconds, so what is due is due soon: a real installation waits a minute.
DETECTION = {"grace_seconds": 3, "horizon_seconds": 5, "late_seconds": 3}


class Stage(Struct, frozen=True, kw_only=True):
    """What runs, and where."""

    dsn: str
    posthog: PostHogStandIn
    synapse: Synapse
    service: ServerProcess
    admin_address: str


@contextlib.asynccontextmanager
async def set_up(tell: Callable[[str], None]) -> AsyncIterator[Stage]:
    """Start all there is, saying so, and give it; nothing of it is left at the end."""
    async with contextlib.AsyncExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="rtc-appservice-demo-", ignore_cleanup_errors=True)
        )
        folder = Path(name)
        tell("starting PostgreSQL")
        dsn = await stack.enter_async_context(_postgres(folder / "postgresql"))
        posthog = PostHogStandIn()
        stack.push_async_callback(posthog.stop)
        posthog_address = await posthog.start()
        service_port, admin_port = free_port(), free_port()
        registration_path = folder / "registration.yaml"
        registration_path.write_text(
            registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=f"http://127.0.0.1:{service_port}")
        )
        tell("starting Synapse")
        synapse = await stack.enter_async_context(running_synapse(registration_path))
        config_path = folder / "config.yaml"
        config_path.write_text(yaml.safe_dump(_config(dsn, posthog_address, synapse.address, service_port, admin_port)))
        tell("starting rtc-appservice")
        admin_address = f"http://127.0.0.1:{admin_port}"
        command = [sys.executable, "-m", "rtc_appservice", "run", "--config", str(config_path)]
        service = await stack.enter_async_context(
            running("rtc-appservice", command, folder=folder, ready_url=f"{admin_address}/ready", environment=_clean())
        )
        yield Stage(
            dsn=dsn,
            posthog=posthog,
            synapse=synapse,
            service=service,
            admin_address=admin_address,
        )


def _config(dsn: str, posthog_address: str, synapse_address: str, service_port: int, admin_port: int) -> dict[str, Any]:
    return {
        "secret": secrets.token_hex(),
        "homeserver": {"address": synapse_address, "domain": SERVER_NAME},
        "appservice": {
            "address": f"http://127.0.0.1:{service_port}",
            "hostname": "127.0.0.1",
            "port": service_port,
            "registration": "registration.yaml",
        },
        "database": {"url": dsn, "pool_size": 4},
        "metrics": {"hostname": "127.0.0.1", "listen_port": admin_port},
        "posthog": {"api_key": "phc_demo", "host": posthog_address},
        "detection": DETECTION,
        "logging": {"level": "INFO", "format": "console"},
    }


def _clean() -> dict[str, str]:
    """Give the environment without what configures the service: an operator's own settings are not the demo's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RTC_APPSERVICE_")}


@contextlib.asynccontextmanager
async def _postgres(folder: Path) -> AsyncIterator[str]:
    server = EmbeddedPostgres(folder)
    starting = asyncio.ensure_future(asyncio.to_thread(server.start))
    try:
        yield await asyncio.shield(starting)
    finally:
        # Interrupted while it starts, it would go on starting: only what has started can be stopped.
        await asyncio.wait([starting])
        if starting.exception() is None:
            await asyncio.to_thread(server.stop)
