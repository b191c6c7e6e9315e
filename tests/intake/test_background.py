"""Work in the background goes on until the service stops, and no longer."""

import asyncio

import pytest

from rtc_appservice.intake import device_facts, notifications
from rtc_appservice.intake.background import wait_after, work_until


async def test_a_stop_gives_up_what_is_under_way() -> None:
    """Whatever it waits for."""
    stop, begun, given_up = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal given_up
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up = True
            raise

    working = asyncio.create_task(work_until(stop, work()))
    await begun.wait()
    stop.set()
    await asyncio.wait_for(working, 10)

    assert given_up


async def test_work_may_end_by_itself() -> None:
    """In order, or by an error, which is raised."""

    async def work(error: Exception | None) -> None:
        if error is not None:
            raise error

    await asyncio.wait_for(work_until(asyncio.Event(), work(None)), 10)
    with pytest.raises(ValueError, match="of the work"):
        await asyncio.wait_for(work_until(asyncio.Event(), work(ValueError("of the work"))), 10)


@pytest.mark.parametrize(
    ("first", "longest", "waits"),
    [
        (device_facts.LOOK_SECONDS, device_facts.MAX_WAIT_SECONDS, [30, 60, 120, 3600, 3600]),
        (notifications.LOOK_SECONDS, notifications.MAX_WAIT_SECONDS, [5, 10, 20, 300, 300]),
    ],
)
def test_waits_longer_after_each_failure(first: float, longest: float, waits: list[float]) -> None:
    """Devices are asked for every hour at least, notices posted every five minutes."""
    assert waits == [wait_after(failures, first=first, longest=longest) for failures in (0, 1, 2, 10, 100_000)]
