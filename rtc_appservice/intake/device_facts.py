"""
Stage 1: asks the homeserver about the devices seen in calls, in the background: their platform and cross-signing.

It works on what projection stored and is waited for by nobody: reports join what is known by then. `/keys/query` is
asked as the service's own user. What comes back is public to every local user; of the display name only the platform
it tells is kept. Devices of other servers are asked for too: Synapse answers from its cache, mostly without names,
since servers do not share those by default (`allow_device_name_lookup_over_federation`). A homeserver that limits
queries to users who share a room (MSC4263) tells nothing of users the service's user does not meet.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import aiohttp
from mautrix.api import Method, Path
from mautrix.errors import MatrixError
from mautrix.types import UserID

from rtc_appservice.core.platform import platform_of
from rtc_appservice.core.words import Device, DeviceId, UserId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.background import wait_after, work_until
from rtc_appservice.intake.client_api import client_api
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.transaction import now_utc
from rtc_appservice.store.device_facts import DeviceFact, due_devices, write_facts
from rtc_appservice.store.pool import WORK_SECONDS, Pool, lend

_log = logging.getLogger("rtc_appservice.intake")

#: A device is asked for again after this long.
FRESH = timedelta(days=1)
LOOK_SECONDS = 30.0
#: Between one full batch and the next, so that a crowd of new devices does not keep the homeserver busy.
PAUSE_SECONDS = 1.0
#: The longest wait after failures, each of which doubles it.
MAX_WAIT_SECONDS = 3600.0
AT_ONCE = 100
#: How long the homeserver may ask others, and we it.
REMOTE_TIMEOUT_MS = 5_000
TIMEOUT_SECONDS = 15.0

#: Tells from an answer whether a device is cross-signed; None if that cannot be told.
IsSigned = Callable[[UserId, DeviceId, Mapping[str, Any]], bool | None]
#: Gives what the homeserver says of devices, or fails with one of `_FAILURES`.
Ask = Callable[[Sequence[Device]], Awaitable[Mapping[str, Any]]]
_FAILURES = (StoreUnavailable, MatrixError, aiohttp.ClientError, OSError)


def asking(address: str, as_token: str, session: aiohttp.ClientSession, user_id: str) -> Ask:
    """Give a function that asks the homeserver, as `user_id`, about devices and nothing else of their users."""
    api = client_api(address, as_token, session, as_user_id=UserID(user_id))

    async def ask(devices: Sequence[Device]) -> Mapping[str, Any]:
        wanted: dict[UserId, list[DeviceId]] = {}
        for owner, device_id in devices:
            wanted.setdefault(owner, []).append(device_id)
        content = {"device_keys": wanted, "timeout": REMOTE_TIMEOUT_MS}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            answer = await api.request(Method.POST, Path.v3.keys.query, content)
        return answer if isinstance(answer, dict) else {}

    return ask


def facts_of(devices: Sequence[Device], answer: Mapping[str, Any], is_signed: IsSigned) -> list[DeviceFact]:
    """Take a fact for each device from an answer of `/keys/query`; one it does not tell of is `unknown`."""
    facts = []
    for user_id, device_id in devices:
        keys = _table(_table(_table(answer, "device_keys"), user_id), device_id)
        name = _table(keys, "unsigned").get("device_display_name")
        facts.append(
            DeviceFact(
                user_id=user_id,
                device_id=device_id,
                platform=platform_of(name if isinstance(name, str) else None),
                cross_signed=is_signed(user_id, device_id, answer),
            )
        )
    return facts


def _cannot_tell(_user_id: UserId, _device_id: DeviceId, _answer: Mapping[str, Any]) -> None:
    """Say nothing of a signature."""


def signature_check() -> IsSigned:
    """Give what tells a cross-signed device; without the extra `encryption` nothing can, and it says so of each."""
    try:
        from rtc_appservice.intake.cross_signing import is_cross_signed
    except ImportError:
        return _cannot_tell
    return is_cross_signed


def _table(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = source.get(name)
    return found if isinstance(found, dict) else {}


async def refresh(pool: Pool, homeserver_id: int, ask: Ask, is_signed: IsSigned, now: datetime) -> int:
    """Ask about devices that are due, write what was said, give how many they were. No connection is held meanwhile."""
    async with lend(pool, WORK_SECONDS) as conn:
        devices = await due_devices(conn, homeserver_id, now - FRESH, AT_ONCE)
    if devices:
        facts = facts_of(devices, await ask(devices), is_signed)
        async with lend(pool, WORK_SECONDS) as conn:
            await write_facts(conn, homeserver_id, facts, now)
    return len(devices)


async def run_device_facts(
    pool: Pool, homeserver_id: int, ask: Ask, stop: asyncio.Event, *, clock: Callable[[], datetime] = now_utc
) -> None:
    """Refresh until `stop` is set, less and less often while it fails; a request under way is given up then."""
    await work_until(stop, _keep_looking(pool, homeserver_id, ask, clock))


async def _keep_looking(pool: Pool, homeserver_id: int, ask: Ask, clock: Callable[[], datetime]) -> None:
    is_signed = signature_check()
    failures = 0
    while True:
        try:
            asked = await refresh(pool, homeserver_id, ask, is_signed, clock())
            failures = 0
            seconds = PAUSE_SECONDS if asked == AT_ONCE else LOOK_SECONDS
        except _FAILURES as error:
            seconds = wait_after(failures, first=LOOK_SECONDS, longest=MAX_WAIT_SECONDS)
            failures += 1
            _log.warning("devices could not be asked for", extra={**describe(error), "retry_seconds": seconds})
        await asyncio.sleep(seconds)
