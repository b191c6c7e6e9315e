import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder open to PostgreSQL's user; pytest's own is closed to it when another session of pytest starts."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def processes_of(folder: Path) -> Iterator[str]:
    """Give the command lines of all processes that have to do with a folder."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line:
            yield line


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("starting PostgreSQL", signal.SIGTERM),
        ("starting Synapse", signal.SIGTERM),
        ("starting rtc-appservice", signal.SIGTERM),
        ("alice", signal.SIGINT),
    ],
)
async def test_leaves_nothing_when_interrupted(moment: str, number: signal.Signals, folder: Path) -> None:
    """Interrupted at any moment, the demo ends with a failure and leaves no process and no file."""
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rtc_appservice", "demo", "--exit",
        env={**os.environ, "TMPDIR": str(folder)}, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        while moment not in (line := (await demo.stdout.readline()).decode()):
            assert line, "the demo ended by itself"
        demo.send_signal(number)
        await demo.stdout.read()

    assert 130 == await demo.wait()
    assert [] == list(processes_of(folder))
    assert [] == list(os.scandir(folder))
