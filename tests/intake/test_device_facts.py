"""Asking about devices: nothing a homeserver answers, or does not, stops it, and it stops when told."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from olm.account import Account

from rtc_appservice.core.words import Device, DeviceId, Platform, UserId
from rtc_appservice.intake import device_facts
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.device_facts import facts_of, run_device_facts, signature_check
from rtc_appservice.store.pool import Pool

from .serving import HOMESERVER, START

ANN: Device = (UserId("@ann:lab.test"), DeviceId("PHONE"))
PATIENCE_SECONDS = 10.0


def named(name: object) -> dict[str, Any]:
    """Give an answer that has a device of this display name, and no keys."""
    return {"device_keys": {ANN[0]: {ANN[1]: {"unsigned": {"device_display_name": name}}}}}


def deep() -> dict[str, Any]:
    """Give an answer whose device keys are nested deeper than any parser goes."""
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"x": nested}
    public = {f"{algorithm}:PHONE": key for algorithm, key in Account().identity_keys.items()}
    signatures = {ANN[0]: {"ed25519:PHONE": "AAAA"}}
    keys = {"user_id": ANN[0], "device_id": ANN[1], "keys": public, "signatures": signatures, "x": nested}
    return {"device_keys": {ANN[0]: {ANN[1]: keys}}}


@pytest.fixture
async def homeserver_id(pool: Pool) -> int:
    """Give a homeserver with a device in a call."""
    number: int = await pool.fetchval("INSERT INTO homeserver (name) VALUES ($1) RETURNING homeserver_id", HOMESERVER)
    await pool.execute(
        "INSERT INTO stint (room_key, call_id, user_id, device_id, joined_at, homeserver_id, slot_id)"
        " VALUES (1, 'c', $1, $2, $3, $4, 's')",
        *ANN,
        START,
        number,
    )
    return number


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"device_keys": None, "master_keys": [], "self_signing_keys": 1, "failures": {"far.test": {}}},
        {"device_keys": {ANN[0]: []}, "master_keys": {ANN[0]: {"keys": []}}},
        {"device_keys": {ANN[0]: {ANN[1]: None}}, "self_signing_keys": {ANN[0]: {"keys": {"a": 1}, "signatures": 1}}},
        {"device_keys": {ANN[0]: {ANN[1]: {"device_id": ANN[1], "keys": {"curve25519:PHONE": []}, "unsigned": 1}}}},
        named(None),
        named(17),
        named({"x": "Element X iOS"}),
        pytest.param(deep(), id="deep"),
    ],
)
def test_strange_answers(answer: dict[str, Any]) -> None:
    """What an answer does not tell, or tells in a form of its own, is not known."""
    (fact,) = facts_of([ANN], answer, is_cross_signed)

    assert (*ANN, Platform.UNKNOWN, None) == (fact.user_id, fact.device_id, fact.platform, fact.cross_signed)


def test_without_libolm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra `encryption` platforms are told as ever, signatures are not."""
    monkeypatch.setitem(sys.modules, "rtc_appservice.intake.cross_signing", None)

    (fact,) = facts_of([ANN], named("Element X Android"), signature_check())

    assert (Platform.ANDROID, None) == (fact.platform, fact.cross_signed)


async def test_failures_end(
    pool: Pool, homeserver_id: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A homeserver that does not answer is asked again; the log names the failure and nobody's device."""
    monkeypatch.setattr(device_facts, "LOOK_SECONDS", 0.01)
    failures: list[Exception] = [ConnectionResetError("@ann:lab.test"), TimeoutError("@ann:lab.test")]
    stop = asyncio.Event()

    async def ask(_devices: Sequence[Device]) -> Mapping[str, Any]:
        if failures:
            raise failures.pop()
        return named("Element X iOS")

    running = asyncio.create_task(run_device_facts(pool, homeserver_id, ask, stop, clock=lambda: START))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await pool.fetchval("SELECT platform FROM device_fact") != "ios":
            assert not running.done()
            await asyncio.sleep(0.01)
        stop.set()
        await running

    assert ["TimeoutError", "ConnectionResetError"] == [record.__dict__["error"] for record in caplog.records]
    assert "@ann" not in caplog.text


async def test_stops_while_the_homeserver_is_silent(pool: Pool, homeserver_id: int) -> None:
    """A request under way is given up, and the database is left as it was."""
    asked, stop = asyncio.Event(), asyncio.Event()

    async def ask(_devices: Sequence[Device]) -> Mapping[str, Any]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    running = asyncio.create_task(run_device_facts(pool, homeserver_id, ask, stop, clock=lambda: START))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asked.wait()
        stop.set()
        await running

    assert 0 == await pool.fetchval("SELECT count(*) FROM device_fact")
