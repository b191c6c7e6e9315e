"""A real Prometheus scrapes the real page, evaluates the shipped rules and keeps the exemplars."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml
from msgspec import Struct

from rtc_appservice.core.model import DistributionCounts
from rtc_appservice.core.wire import Intake
from rtc_appservice.demo.process import running
from rtc_appservice.demo.synapse import free_port
from rtc_appservice.export.prometheus import Metrics
from rtc_appservice.export.pseudonym import Pseudonyms
from tests.export.projected_call import make_call
from tests.require import require

from .conftest import Listener
from .shipped import BOARDS, PROMETHEUS, expression, load, rules, targets

WAIT_SECONDS = 30.0
P99 = "job:rtc_appservice_transaction_duration_seconds:p99_rate5m"


class Prometheus(Struct):
    """A running Prometheus."""

    address: str

    async def ask(self, path: str, **query: str) -> Any:
        """Give the data of an answer of its API."""
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.address}/api/v1/{path}", params=query) as answer,
        ):
            body = await answer.json()
            assert body["status"] == "success", body
            return body["data"]

    async def value(self, expression: str) -> float | None:
        """Give the value of an expression that has one, None while it has none."""
        found = (await self.ask("query", query=expression))["result"]
        return float(found[0]["value"][1]) if found else None


def configuration(folder: Path, port: int) -> Path:
    """Write the shipped configuration and rules, scraping a port of ours each second."""
    shutil.copytree(PROMETHEUS, folder / "shipped")
    path = folder / "shipped" / "prometheus.yml"
    shipped = yaml.safe_load(path.read_text())
    shipped["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    ours, _synapse = shipped["scrape_configs"]
    ours["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    path.write_text(yaml.safe_dump({**shipped, "scrape_configs": [ours]}))
    return path


@pytest.fixture
async def prometheus(listener: Listener, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes the listener."""
    program, port = require("prometheus"), free_port()
    command = [
        program,
        f"--config.file={configuration(tmp_path, listener.port)}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    address = f"http://127.0.0.1:{port}"
    async with running("Prometheus", command, folder=tmp_path, ready_url=f"{address}/-/ready"):
        yield Prometheus(address)


def settle_a_call(metrics: Metrics, secret: bytes) -> str:
    """Count a call that settled; give its pseudonym."""
    call = make_call()
    counts = DistributionCounts(room_event=0, to_device=4)
    report = msgspec.structs.replace(call.report, settled=True, distributions=counts)
    metrics.counting(lambda *_: (), secret)(msgspec.structs.replace(call, report=report), (), False)
    return Pseudonyms(secret).call(call.report.call_id)


async def test_scraped_evaluated_and_kept(listener: Listener, prometheus: Prometheus) -> None:
    """The target is up, totals stand at 0, every rule is evaluated without an error, exemplars can be asked for."""
    began = time.time()
    pseudonym = settle_a_call(listener.metrics, b"secret")
    async with asyncio.timeout(WAIT_SECONDS):
        while not (p99 := await prometheus.value(P99) or 0) > 0:
            listener.metrics.observe_transaction("nothing", 0.02, Intake())
            await asyncio.sleep(0.2)
        while not await evaluated(prometheus):
            await asyncio.sleep(0.2)
    targets = (await prometheus.ask("targets"))["activeTargets"]
    totals = 'rtc_appservice_calls_ended_total{homeserver="example.org", verdict="mixed", evidence="direct"}'
    exemplars = await prometheus.ask(
        "query_exemplars",
        query="rtc_appservice_call_to_device_ratio_bucket",
        start=str(began - 60),
        end=str(time.time() + 60),
    )

    assert [("up", "rtc-appservice", "")] == [
        (target["health"], target["labels"]["job"], target["lastError"]) for target in targets
    ]
    assert 0.01 < p99 <= 0.025
    assert 0 == await prometheus.value(totals)
    assert 1 == await prometheus.value("rtc_appservice_call_to_device_ratio_count")
    assert [({"call": pseudonym}, "1")] == [
        (each["labels"], each["value"]) for series in exemplars for each in series["exemplars"]
    ]


async def test_boards_can_be_asked(prometheus: Prometheus) -> None:
    """Every expression of the boards is answered without an error."""
    for board in BOARDS:
        for target in targets(load(board)):
            await prometheus.ask("query", query=expression(target["expr"]))


async def evaluated(prometheus: Prometheus) -> bool:
    """Tell whether every shipped rule has been evaluated; none may have failed."""
    found = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]

    assert len(rules()) == len(found)
    assert [] == [rule for rule in found if rule["health"] == "err"]
    return all(rule["health"] == "ok" for rule in found)
