"""
Runs the bench and prints ratios: `python -m bench [--quick]`.

Absolute figures drift with the machine; only ratios within one run count. Every server runs in a process of
its own against the same embedded PostgreSQL (fsync on), servers take turns on the same load, and the median
of the rounds is printed.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, cast

import asyncpg

from bench import projection
from bench.load import Batch, Load, lanes, stamp
from bench.sender import Sent, send
from bench.servers import SERVERS, TABLE
from rtc_appservice.store import migrate
from rtc_appservice.store.embedded import EmbeddedPostgres
from rtc_appservice.store.pool import Connection

LOADS = [
    Load(events, percent, homeservers) for homeservers in (1, 16) for percent in (1, 5, 100) for events in (1, 10, 100)
]
QUICK = [Load(100, 5, 1), Load(10, 5, 1), Load(1, 100, 1), Load(100, 5, 16)]
COUNT = {
    "naive": "SELECT count(*) FROM naive",
    "durable": "SELECT count(*) FROM durable",
    "ours": "SELECT count(*) FROM observation WHERE kind IN ('membership', 'room_key')",
}
#: Most transactions a load needs for a second of the fastest server; it stops at the time limit anyway.
MOST_TRANSACTIONS = {1: 12_000, 10: 8_000, 100: 3_000}


class Server:
    """A measured server in its own process."""

    def __init__(self, name: str, dsn: str, homeservers: int) -> None:
        """Start it and wait until it listens."""
        self.name = name
        command = [sys.executable, "-m", "bench.servers", name, dsn, str(homeservers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports = [int(port) for port in cast(IO[str], self._process.stdout).readline().split()]
        if not self.ports:
            raise SystemExit(f"bench server {name} did not start")

    def cpu_seconds(self) -> float:
        """CPU time the process has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        """Most memory the process has held."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def stop(self) -> None:
        """End it."""
        cast(IO[str], self._process.stdin).close()
        self._process.wait(10)


class Figures:
    """What the rounds of one server on one load gave."""

    def __init__(self) -> None:
        """Begin with none."""
        self.rates: list[float] = []
        self.cpu: list[float] = []
        self.p99: list[float] = []
        self.wrong = 0
        self.peak_mb = 0.0

    def add(self, sent: Sent, cpu_seconds: float, events: int, rows: int | None) -> None:
        """Add one round."""
        self.rates.append(sent.transactions / sent.seconds)
        self.cpu.append(cpu_seconds / (sent.transactions * events) * 1e6)
        self.p99.append(sent.p99 * 1e3)
        self.wrong += sent.failures + (0 if rows is None else abs(rows - sent.relevant))

    def medians(self) -> tuple[float, float, float]:
        """Transactions a second, CPU microseconds an event, 99th percentile in milliseconds."""
        return statistics.median(self.rates), statistics.median(self.cpu), statistics.median(self.p99)


async def _count(connection: Connection, name: str) -> int:
    return int(await connection.fetchval(COUNT[name]))


async def _settled_count(connection: Connection, name: str, before: int, expected: int) -> int:
    """Count the rows added; naive answers before it writes, so wait for it."""
    until = time.monotonic() + 60
    while True:
        rows = await _count(connection, name) - before
        if rows >= expected or time.monotonic() > until:
            return rows
        await asyncio.sleep(0.1)


async def measure(load: Load, dsn: str, names: list[str], rounds: int, seconds: float, run: int) -> dict[str, Figures]:
    """Measure the servers on one load, taking turns."""
    started_ms = int(time.time() * 1000)
    batches: list[Batch] = list(lanes(load, int(MOST_TRANSACTIONS[load.events] * max(seconds, 0.3)), started_ms))
    relevant = [batch.relevant for batch in batches]
    servers = [Server(name, dsn, load.homeservers) for name in names]
    figures = {name: Figures() for name in names}
    connection = await asyncpg.connect(dsn)
    try:
        for turn in range(rounds + 1):  # the first one warms up
            requests = [stamp(batch, run * 100 + turn) for batch in batches]
            for server in servers:
                before = 0 if server.name == "raw" else await _count(connection, server.name)
                cpu = server.cpu_seconds()
                sent = await send(server.ports, requests, relevant, seconds if turn else seconds / 4)
                rows = None
                if server.name != "raw":
                    rows = await _settled_count(connection, server.name, before, sent.relevant)
                if turn:
                    figures[server.name].add(sent, server.cpu_seconds() - cpu, load.events, rows)
                    figures[server.name].peak_mb = server.peak_mb()
    finally:
        await connection.close()
        for server in servers:
            server.stop()
    return figures


def show(load: Load, figures: dict[str, Figures]) -> None:
    """Print one load's lines."""
    print(f"\n{load.name}")
    heads = f"{'txn/s':>9} {'events/s':>9} {'µs CPU/ev':>10} {'p99 ms':>8} {'MB':>5}"
    print(f"  {'':8} {heads}   ratio to durable: rate, CPU, p99")
    reference = figures["durable"].medians() if "durable" in figures else None
    for name, got in figures.items():
        rate, cpu, p99 = mine = got.medians()
        ratios = "  ".join(f"{a / b:6.2f}" if b else "     -" for a, b in zip(mine, reference or (), strict=False))
        wrong = f"   WRONG BY {got.wrong}" if got.wrong else ""
        line = f"{rate:9.0f} {rate * load.events:9.0f} {cpu:10.1f} {p99:8.2f} {got.peak_mb:5.0f}"
        print(f"  {name:8} {line}   {ratios}{wrong}", flush=True)


async def run(options: argparse.Namespace, dsn: str) -> int:
    """Measure all loads; 0 if every row was right."""
    await migrate.upgrade(dsn)
    connection = await asyncpg.connect(dsn)
    for name in ("naive", "durable"):
        await connection.execute(TABLE.format(table=name))
    await connection.close()
    names = [name for name in SERVERS if not options.only or name in options.only]
    wrong = 0
    loads = QUICK if options.quick else LOADS
    rounds, seconds = (3, 0.5) if options.quick else (5, 0.6)
    print(f"{len(loads)} loads, {rounds} rounds of {seconds} s each, medians; {os.cpu_count()} CPUs")
    for number, load in enumerate(loads):
        figures = await measure(load, dsn, names, rounds, seconds, number)
        show(load, figures)
        wrong += sum(got.wrong for got in figures.values())
    if "ours" in names and "durable" in names:
        print("\nrows:", "every relevant event exactly once" if not wrong else f"{wrong} wrong")
    return 1 if wrong else 0


def main() -> int:
    """Parse the options, start PostgreSQL, run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four loads, three short rounds: about a minute")
    parser.add_argument("--only", action="append", choices=list(SERVERS), help="measure only this server (repeatable)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtc-bench-") as folder:
        Path(folder).chmod(0o711)  # as root, PostgreSQL runs as another user
        postgres = EmbeddedPostgres(Path(folder) / "pg")
        dsn = postgres.start()
        try:
            status = asyncio.run(run(options, dsn))
        finally:
            postgres.stop()
    if not options.only:
        projection.run()
    return status


if __name__ == "__main__":
    sys.exit(main())
