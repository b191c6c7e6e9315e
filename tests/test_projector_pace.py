"""A room that takes long keeps neither the homeserver nor other rooms waiting."""

import asyncio
import threading
from dataclasses import replace

import pytest

from rtc_appservice.core.live_rooms import LiveRoom
from rtc_appservice.core.model import Projected
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.projector import project_once
from rtc_appservice.store.pool import Pool

from .test_projector import Service, expected, read

PATIENCE = 10.0
CALL_ROOMS = {call.room_id for name in ("smart-switch", "legacy-only") for call in expected(name)}


async def test_intake_goes_on_meanwhile(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call is worked out, the loop that answers the homeserver runs."""
    service = await Service.open(pool)
    for intake in read("smart-switch"):
        await service.take(intake)
    begun, answered = threading.Event(), threading.Event()
    waited: list[bool] = []
    look = LiveRoom.look

    def slow(room: LiveRoom) -> Projected:
        begun.set()
        waited.append(answered.wait(PATIENCE))
        return look(room)

    async def answer() -> None:
        while not begun.is_set():
            await asyncio.sleep(0.01)
        answered.set()

    monkeypatch.setattr(LiveRoom, "look", slow)
    await asyncio.gather(answer(), service.project())

    assert all(waited)
    assert expected("smart-switch") == await service.calls()


async def test_others_come_first_next_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that was cut off is the last of the next round, or it would hold up the others for ever."""
    service = await Service.open(pool)
    for scenario in ("smart-switch", "legacy-only"):
        for intake in read(scenario):
            await service.take(intake)
    hurried = replace(service.projector, seconds=0.3)
    looked_at = []
    look = LiveRoom.look

    def slow(room: LiveRoom) -> Projected:
        looked_at.append(room.basis.history.room_id)
        if looked_at[0] == looked_at[-1]:
            threading.Event().wait(2 * hurried.seconds)  # longer than it is given
        return look(room)

    monkeypatch.setattr(LiveRoom, "look", slow)
    with pytest.raises(StoreUnavailable):
        await project_once(pool, hurried, service.now)
    assert 1 == len(looked_at)
    with pytest.raises(StoreUnavailable):
        await project_once(pool, hurried, service.now)

    assert looked_at[0] == looked_at[-1]
    assert {looked_at[0]} < set(looked_at[:-1])
    assert {call.room_id for call in await service.calls()} == CALL_ROOMS - {looked_at[0]}
