"""A server in a process of its own: started, waited for until it answers, and ended without a trace."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import aiohttp

from rtc_appservice.errors import RtcAppserviceError

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_ASK = aiohttp.ClientTimeout(total=1.0)


class ProcessFailed(RtcAppserviceError):
    """A process did not start."""


class ServerProcess:
    """A running server; made by `running`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        """Take a process that was started and writes to `log_path`."""
        self.pid = process.pid
        self._name = name
        self._process = process
        self._log_path = log_path

    def log_tail(self, lines: int = 20) -> str:
        """Give the last lines it wrote."""
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-lines:])

    async def ended(self) -> None:
        """Wait until the process has ended, which it should not by itself, and raise `ProcessFailed`."""
        await self._process.wait()
        raise ProcessFailed(f"{self._name} ended; its last lines were:\n{self.log_tail()}")

    async def answers(self, url: str) -> None:
        """Wait until `url` answers 200; raise `ProcessFailed` with the last lines if it does not."""
        try:
            async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession(timeout=_ASK) as session:
                while not await _is_ok(session, url):
                    if self._process.returncode is not None:
                        await self.ended()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            waited = f"{self._name} did not answer within {_START_SECONDS:.0f} s"
            raise ProcessFailed(f"{waited}; its last lines were:\n{self.log_tail()}") from None

    async def stop(self) -> None:
        """End the process: asked first, then killed with all it started."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._process.wait()


@contextlib.asynccontextmanager
async def running(
    name: str, command: Sequence[str], *, folder: Path, ready_url: str, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[ServerProcess]:
    """Give a server started by `command` in `folder`, once `ready_url` answers; it has ended at the end."""
    log_path = folder / f"{name}.log"
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops everything in order.
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    server = ServerProcess(name, process, log_path)
    try:
        await server.answers(ready_url)
        yield server
    finally:
        await asyncio.shield(server.stop())


async def _is_ok(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientConnectionError, TimeoutError):
        return False
