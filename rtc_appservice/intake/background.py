"""Stage 1: work in the background that nobody waits for, given up at once when the service stops."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


async def work_until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Let `work` go on until it ends or `stop` is set; what is under way is given up then. Raises what it raises."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await working


def wait_after(failures: int, *, first: float, longest: float) -> float:
    """Give the seconds to wait after a failure that follows so many others: each doubles the first wait."""
    return min(first * 2.0 ** min(failures, 16), longest)
