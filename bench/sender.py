"""Sends prepared requests over kept-alive connections, one in flight on each, and takes the time."""

import asyncio
import time
from functools import partial
from typing import cast

from msgspec import Struct


class Sent(Struct):
    """What one measurement sent, and how long it took."""

    transactions: int
    relevant: int
    seconds: float
    latencies: list[float]
    failures: int

    @property
    def p99(self) -> float:
        """The 99th percentile of the answers' latency, in seconds."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)] if self.latencies else 0.0


class _Lane(asyncio.Protocol):
    """One connection: sends a request, waits for the whole answer, sends the next, until time is up."""

    def __init__(self, requests: list[bytes], until: float) -> None:
        self._requests = requests
        self._until = until
        self._buffer = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Collect an answer; when it is whole, send the next request."""
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        self.failures += not head.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        if now < self._until and len(self.latencies) < len(self._requests):
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be done."""
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[len(self.latencies)])


async def send(ports: list[int], lanes: list[list[bytes]], relevant: list[list[int]], seconds: float) -> Sent:
    """Send each lane's requests to its port for at most `seconds`."""
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    running = []
    for number, requests in enumerate(lanes):
        make = partial(_Lane, requests, started + seconds)
        _, lane = await loop.create_connection(make, "127.0.0.1", ports[number % len(ports)])
        running.append(lane)
    await asyncio.gather(*(lane.done for lane in running))
    elapsed = time.perf_counter() - started
    return Sent(
        transactions=sum(len(lane.latencies) for lane in running),
        relevant=sum(sum(relevant[n][: len(lane.latencies)]) for n, lane in enumerate(running)),
        seconds=elapsed,
        latencies=[value for lane in running for value in lane.latencies],
        failures=sum(lane.failures for lane in running),
    )
