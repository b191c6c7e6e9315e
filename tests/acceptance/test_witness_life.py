"""The service's own device in calls that last: through hours, and through the death of the service."""

import os
import signal
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mautrix.api import Method
from mautrix.api import Path as ApiPath

from rtc_appservice.core.stints import build_stints, in_order
from rtc_appservice.demo.process import ProcessFailed, ServerProcess
from rtc_appservice.intake.transaction import now_utc
from rtc_appservice.intake.witness import LEAVE_DELAY_SECONDS
from rtc_appservice.store.pool import Pool
from tests.acceptance.callers import StickyCaller, in_call, is_join, of_device, was_in_call
from tests.acceptance.sealed_room import BOT, Sender, now_ms, running_service, sealed_synapse, sender, until
from tests.acceptance.test_sealed_crash import configure, service_process

OVER = "org.example.over"
WITNESS = "rtc_appservice.witness"


class Clock:
    """The time, some hours ahead if so set."""

    def __init__(self) -> None:
        """Begin with the time it is."""
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Give the time."""
        return now_utc() + self.ahead


async def test_stays_for_hours(tmp_path: Path, pool: Pool) -> None:
    """Before its membership ends it is refreshed, by room state and by a sticky event; nobody takes it for a rejoin."""
    clock = Clock()
    async with (
        sealed_synapse(tmp_path) as (address, path, port),
        sender(address, "patient") as alice,
        running_service(pool, address, path, port, clock=clock) as service,
    ):
        sticky, state = rooms = [await alice.make_room(), await alice.make_room()]
        for room_id in rooms:
            await until(partial(service.auditor.own.rooms.__contains__, room_id), "the device joined")
            await alice.put_state(room_id, WITNESS, {"enabled": True})
        await StickyCaller(alice, "js_43").call(sticky)
        await alice.call(state)
        for room_id in rooms:
            await until(partial(in_call, alice, room_id), "the device joined the call")
        await delayed(alice, state)
        await until(partial(has_state, alice, state), "what was sent with the same delay, and not put off, came")
        assert [await sent(alice, room_id, 1) for room_id in rooms] == [True, True]
        clock.ahead = timedelta(minutes=55)
        await until(partial(sent, alice, sticky, 2), "the sticky membership was refreshed")
        assert await sent(alice, state, 1)
        clock.ahead = timedelta(hours=3, minutes=55)
        await until(partial(sent, alice, state, 2), "the state membership was refreshed")
        first, again = await of_device(alice, state)
        stuck, stuck_again = await of_device(alice, sticky)
        stints = {
            room_id: [
                stint
                for stint in build_stints(in_order(await service.observations(room_id)), now_utc())
                if stint.user_id == BOT
            ]
            for room_id in rooms
        }

    assert stuck["content"] == stuck_again["content"]
    assert stuck["event_id"] != stuck_again["event_id"]
    assert 2 * first["content"]["expires"] == again["content"]["expires"]
    assert 2000 > abs(again["content"]["created_ts"] - first["origin_server_ts"])
    assert [1, 1] == [len(found) for found in stints.values()]
    assert [1, 1] == [len(found[0].refreshed_at) for found in stints.values()]


async def delayed(caller: Sender, room_id: str) -> None:
    """Have an event sent when the homeserver would end a membership that nobody keeps alive, and a second later."""
    path = ApiPath.v3.rooms[room_id].state[OVER]
    delay = {"org.matrix.msc4140.delay": str(round(1000 * (LEAVE_DELAY_SECONDS + 1)))}
    await caller.client.api.request(Method.PUT, path, {"over": True}, query_params=delay)


async def has_state(caller: Sender, room_id: str) -> bool:
    """Tell whether that event is there."""
    state: Any = await caller.client.api.request(Method.GET, ApiPath.v3.rooms[room_id].state)
    return any(event["type"] == OVER for event in state)


async def killed(service: ServerProcess) -> int:
    """Kill the service as a crash does; gives when, in Matrix milliseconds."""
    at = now_ms()
    os.kill(service.pid, signal.SIGKILL)
    with pytest.raises(ProcessFailed):
        await service.ended()
    return at


async def test_never_outlives_the_service(tmp_path: Path, database: str, pool: Pool) -> None:
    """Killed in two calls, the homeserver ends both memberships; a new service joins again, also within the delay."""
    async with sealed_synapse(tmp_path) as (address, path, port), sender(address, "bereaved") as alice:
        configure(tmp_path, database, address, path, port)
        async with service_process(tmp_path) as service:
            rooms = [await alice.make_room(), await alice.make_room()]
            for room_id in rooms:
                await alice.put_state(room_id, WITNESS, {"enabled": True})
            await StickyCaller(alice, "js_43").call(rooms[0])
            await alice.call(rooms[1])
            for room_id in rooms:
                await until(partial(in_call, alice, room_id), "the device joined the call")
            killed_at = await killed(service)
        for room_id in rooms:
            await until(partial(was_in_call, alice, room_id), "the homeserver ended its membership")
        lasted = [(await of_device(alice, room_id))[-1]["origin_server_ts"] - killed_at for room_id in rooms]

        async with service_process(tmp_path) as service:
            for room_id in rooms:
                await until(partial(in_call, alice, room_id), "the device joined again")
            await killed(service)
        async with service_process(tmp_path):
            # The leave of the one that was killed is still to come, and must not end what the new one begins.
            for room_id in rooms:
                await until(partial(sent, alice, room_id, 5), "the device joined once more")
            found = [[is_join(event) for event in await of_device(alice, room_id)] for room_id in rooms]

    assert all(0 < milliseconds < 1000 * (LEAVE_DELAY_SECONDS + 1) for milliseconds in lasted)
    assert [[True, False, True, False, True]] * 2 == found


async def sent(caller: Sender, room_id: str, wanted: int) -> bool:
    """Tell whether the device has sent so many memberships to a room."""
    return wanted == len(await of_device(caller, room_id))
