"""
The demo: three calls on a real homeserver, watched by the service, reported, and compared with the players' own logs.

`run_demo` says what happens as it goes. The stage is set up (`stage`), the plays are played (`plays`), the service
is given the time to settle them, and its report is held against what the players noted.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import TextIO

from mautrix.types import RoomID

from rtc_appservice.core.model import Report
from rtc_appservice.demo.players import PlayLog, logged_in
from rtc_appservice.demo.plays import PLAYS, Play, broken, compare, perform
from rtc_appservice.demo.stage import Stage, set_up
from rtc_appservice.demo.wire import Generation
from rtc_appservice.errors import RtcAppserviceError
from rtc_appservice.store import outbox
from rtc_appservice.store.pool import Pool, open_pool
from rtc_appservice.view.report import render_text
from rtc_appservice.view.stored import read_report

#: From the last leave to a settled report: detection's horizon and lateness, the watermark's steps, and some.
_SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.5

#: What a shell says of a program that Ctrl-C ended.
_INTERRUPTED = 130


class NotSettled(RtcAppserviceError):
    """The service did not settle the calls in time."""


async def run_demo(*, exit_after_report: bool, out: TextIO) -> int:
    """
    Run the demo, and give the exit code: 0 if the report says what the players noted.

    It serves the pages, the metrics and what PostHog would have got until Ctrl-C, or ends after the report. Ctrl-C,
    SIGTERM and a closed terminal end it in order at any time. `DEMO_BREAK=1` in the environment makes one player send
    otherwise than it notes, which the comparison must find.
    """

    def tell(text: str) -> None:
        out.write(f"{monotonic() - started:5.1f} s  {text}\n")
        out.flush()

    started = monotonic()
    plays = broken(PLAYS) if os.environ.get("DEMO_BREAK") == "1" else PLAYS
    result: list[int] = []
    with _signals() as interrupted:
        show = asyncio.create_task(_show(plays, tell, out, result, exit_after_report=exit_after_report))
        stop = asyncio.create_task(interrupted.wait())
        await asyncio.wait({show, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not show.done():
            tell("stopping")
            show.cancel()
        try:
            await show
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            raise _first(group) from group
    return result[0] if result else _INTERRUPTED


async def _show(
    plays: Sequence[Play], tell: Callable[[str], None], out: TextIO, result: list[int], *, exit_after_report: bool
) -> None:
    async with set_up(tell) as stage, _watch(stage):
        logs = []
        for play in plays:
            tell(f"call: {play.title}")
            logs.append(await perform(stage.synapse.address, play, lambda text: tell(f"  {text}")))
        tell("waiting until the service has settled the calls")
        report = await settled_report(stage, logs)
        out.write(f"\n{render_text(report)}\n")
        differences = compare(report, logs)
        result.append(1 if differences else 0)
        out.writelines(f"DIFFERS  {text}\n" for text in differences)
        if not differences:
            tell(f"the report agrees with what the players of {len(logs)} calls noted")
        if not exit_after_report:
            tell("serving until Ctrl-C")
            for line in served(stage):
                tell(line)
            await asyncio.Event().wait()


def served(stage: Stage) -> tuple[str, ...]:
    """Give what can be looked at while the demo serves, with the addresses; the overview page comes last."""
    return (
        f"metrics: {stage.admin_address}/metrics",
        f"what PostHog would have got: {stage.posthog.address}/events ({len(stage.posthog.events)} events)",
        f"the overview page: {stage.admin_address}/",
    )


async def settled_report(stage: Stage, logs: Sequence[PlayLog]) -> Report:
    """Give the report once nothing can change the calls any more and PostHog has got them; `NotSettled` otherwise."""
    pool = await open_pool(stage.dsn, 2)
    try:
        async with asyncio.timeout(_SETTLE_SECONDS), _bystander(stage):
            while True:
                report = await read_report(pool, since=None, homeserver=None, now=datetime.now(UTC))
                settled = sum(call.settled for call in report.calls)
                if settled >= len(logs) and not await _events_pending(pool):
                    return report
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise NotSettled(
            f"The service did not settle the calls within {_SETTLE_SECONDS:.0f} s; "
            f"its last lines were:\n{stage.service.log_tail()}"
        ) from None
    finally:
        await pool.close()


async def _events_pending(pool: Pool) -> int:
    async with pool.acquire() as connection:
        return (await outbox.pending(connection)).pending


@contextlib.asynccontextmanager
async def _bystander(stage: Stage) -> AsyncIterator[None]:
    """Let somebody chat: deadlines are judged by the time the homeserver's stream has reached, and it must flow."""

    async def chat() -> None:
        async with logged_in(stage.synapse.address, "zoe", "ZOE1", Generation.MODERN) as zoe:
            room_id = await zoe.client.create_room(name="another room")
            while True:
                await zoe.client.send_text(RoomID(room_id), "still here")
                await asyncio.sleep(_POLL_SECONDS)

    chatting = asyncio.create_task(chat())
    try:
        yield
    finally:
        chatting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await chatting


@contextlib.asynccontextmanager
async def _watch(stage: Stage) -> AsyncIterator[None]:
    """Fail at once when Synapse or the service ends by itself."""
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(process.ended()) for process in (stage.synapse.process, stage.service)]
        yield
        for task in watching:
            task.cancel()


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Give an event that is set when somebody wants this program to end."""
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, wanted.set)
    try:
        yield wanted
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
