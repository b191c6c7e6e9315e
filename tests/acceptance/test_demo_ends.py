import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest


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
async def test_leaves_nothing_when_interrupted(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    """Interrupted at any moment, the demo ends with a failure and leaves no process and no file."""
    demo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rtc_appservice", "demo", "--exit",
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert demo.stdout is not None
    async with asyncio.timeout(60):
        while moment not in (line := (await demo.stdout.readline()).decode()):
            assert line, "the demo ended by itself"
        demo.send_signal(number)
        await demo.stdout.read()

    assert 130 == await demo.wait()
    assert [] == list(processes_of(tmp_path))
    assert [] == list(os.scandir(tmp_path))
