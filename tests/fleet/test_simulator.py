"""
The simulator itself: it reproduces the recordings' counts and the traffic formulas of the protocol.

Fed with the joins and leaves of a recording it sends, per client, as many room keys and to-device keys as the
js-sdk did. Two things it is told, for no rule gives them: who of the smart clients read the trigger before the
trigger's membership (a race), and which processes were killed. It cannot play `sticky-generations`, whose clients
each see only themselves (three dialects of sticky memberships): it has state memberships alone.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .generations import GENERATIONS, Device
from .simulator import Simulator, Timing

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings"
CANNOT = {"sticky-generations"}
SCENARIOS = sorted({path.parent.name for path in RECORDINGS.glob("*/truth.json")} - CANNOT)
MODERN = ("S2", "S3", "D1", "D1b", "D2")
ROOM = ("R0", "R1", "D1off")
WELL_SPACED = 15_000


def read(scenario: str) -> dict[str, Any]:
    """Give a recording's truth."""
    truth: dict[str, Any] = json.loads((RECORDINGS / scenario / "truth.json").read_text())
    return truth


def label_of(client: dict[str, Any]) -> str:
    """Give the generation a recorded client is of, by its release and its option."""
    release = tuple(int(part) for part in client["js_sdk"].split(".")[:2])
    option = client["options"].get("join", {}).get("toDevice", False)
    by_release = [
        ((41, 1), "D2"),
        ((40, 0), "D1b"),
        ((39, 1), "D1"),
        ((37, 12), "S3"),
        ((37, 11), "S2"),
        ((37, 4), "S1"),
    ]
    label = next((name for since, name in by_release if release >= since), "R1")
    if label == "D2" or option:
        return label
    return "D1off" if label.startswith("D1") else "R1"


def devices_of(truth: dict[str, Any]) -> dict[str, Device]:
    """Give the devices by client name."""
    return {client["client"]: (client["user"], client["device"]) for client in truth["clients"]}


def outrun_at(truth: dict[str, Any]) -> frozenset[Device]:
    """Give the clients that switched before they had sent the trigger's device anything."""
    devices = devices_of(truth)
    addressed = {
        (message["from"], message["to_user"], message["to_device"])
        for message in truth["to_device_messages"].values()
        if message["origin"] == "call_key"
    }
    return frozenset(
        devices[client["client"]]
        for client in truth["clients"]
        for switch in client["switches"]
        if (client["client"], switch["trigger"]["sender"], switch["trigger"]["device"]) not in addressed
    )


def play(truth: dict[str, Any]) -> Simulator:
    """Play a recording's joins and leaves."""
    simulator = Simulator(
        1,
        encrypted=truth["encrypted_room"],
        timing=Timing(request=(10, 20), state=(60, 80), sealing=(30, 60), outrun_at=outrun_at(truth)),
    )
    origin = min(join["t"] for client in truth["clients"] for join in client["joins"])
    fired = truth["agreement"]["memberships_from_server"]
    for client in truth["clients"]:
        device = (client["user"], client["device"])
        simulator.add(device, label_of(client))
        for join in client["joins"]:
            simulator.join(join["t"] - origin, device)
        for leave in client["leaves"]:
            simulator.leave(leave["t"] - origin - 75, device)  # noted once the request was through
        if client["ended"] == "killed":
            (left_at,) = (event["origin_server_ts"] - origin for event in fired if event["sender"] == client["user"])
            simulator.crash(left_at - 5_500, device, leave_after=5_500)
    simulator.run(120_000)
    return simulator


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sends_as_many_keys_as_the_recorded_clients(scenario: str) -> None:
    """Room key events and to-device keys, per sender."""
    truth = read(scenario)
    devices = devices_of(truth)
    played = play(truth).truth
    room_keys = Counter(devices[event["from"]] for event in truth["room_key_events"].values())
    to_device = Counter(
        devices[message["from"]] for message in truth["to_device_messages"].values() if message["origin"] == "call_key"
    )
    assert Counter(key.device for key in played.room_keys) == room_keys
    assert Counter(message.sender for message in played.call_keys) == to_device


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_switches_as_the_recorded_clients(scenario: str) -> None:
    """The same clients switch, by the same device's key."""
    truth = read(scenario)
    devices = devices_of(truth)
    recorded = {
        (devices[client["client"]], (switch["trigger"]["sender"], switch["trigger"]["device"]))
        for client in truth["clients"]
        for switch in client["switches"]
    }
    assert {(switch.device, switch.trigger_device) for switch in play(truth).truth.switches} == recorded


@pytest.mark.parametrize("scenario", ["leave-rejoin", "smart-switch", "crash", "modern", "todevice-only"])
def test_seals_messages_of_the_recorded_lengths(scenario: str) -> None:
    """Of each recorded pair of devices, the Olm body lengths are those of the recording."""
    truth = read(scenario)
    lengths: dict[tuple[str, str, int], set[int]] = {}
    for line in (RECORDINGS / scenario / "transactions.jsonl").read_text().splitlines():
        for message in json.loads(line)["body"].get("de.sorunome.msc2409.to_device", []):
            if truth["to_device_messages"].get(message["content"]["org.matrix.msgid"], {}).get("origin") == "call_key":
                (sealed,) = message["content"]["ciphertext"].values()
                pair = (message["sender"], message["to_user_id"], sealed["type"])
                lengths.setdefault(pair, set()).add(len(sealed["body"]))
    assert lengths
    simulator = Simulator(1, server="lab.test")
    simulator.truth.room_id = truth["room_id"]
    for client in truth["clients"]:
        simulator.add((client["user"], client["device"]), label_of(client))
    for client in truth["clients"]:
        simulator._cross_signed[client["user"]] = False
    _assert_lengths(simulator, truth, lengths)


def _assert_lengths(simulator: Simulator, truth: dict[str, Any], lengths: dict[tuple[str, str, int], set[int]]) -> None:
    """Let all join and leave so that every pair talks in both Olm types, and compare."""
    devices = list(simulator.clients)
    for turn in range(3):
        for position, device in enumerate(devices):
            simulator.join(turn * 60_000 + position * 12_000, device)
            simulator.leave(turn * 60_000 + 50_000 + position * 100, device, linger=False)
    played: dict[tuple[str, str, int], set[int]] = {}
    for transaction in simulator.run(300_000):
        for message in transaction.body["de.sorunome.msc2409.to_device"]:
            (sealed,) = message["content"]["ciphertext"].values()
            pair = (message["sender"], message["to_user_id"], sealed["type"])
            played.setdefault(pair, set()).add(len(sealed["body"]))
    for pair, recorded in lengths.items():
        if pair in played:
            assert recorded <= played[pair], pair
    assert set(lengths) & set(played)


# --- expected traffic ---------------------------------------------------------------------------


def members(count: int, label: str) -> tuple[Simulator, list[Device]]:
    """Give a simulator with so many clients of a generation."""
    simulator = Simulator(7)
    devices = [(f"@user{number}:sim.test", f"DEVICE{number}") for number in range(count)]
    for device in devices:
        simulator.add(device, label)
    return simulator, devices


def sent(simulator: Simulator, until: int, since: int = 0) -> tuple[int, int]:
    """Run, and give the room keys and the to-device keys sent since a time."""
    simulator.run(until)
    start = 1_795_000_000_000 + since
    return (
        sum(key.at >= start for key in simulator.truth.room_keys),
        sum(message.at >= start for message in simulator.truth.call_keys),
    )


@pytest.mark.parametrize(("count", "events", "messages"), [(3, 6, 8), (5, 15, 40), (10, 55, 330), (25, 325, 5200)])
@pytest.mark.parametrize("label", GENERATIONS)
def test_well_spaced_joins(label: str, count: int, events: int, messages: int) -> None:
    """N joins: N(N+1)/2 room events, (N³-N)/3 messages; S2 shares with the joiner alone, N(N-1)."""
    simulator, devices = members(count, label)
    for position, device in enumerate(devices):
        simulator.join(position * WELL_SPACED, device)
    expected = (events, 0) if label in ROOM else (0, count * (count - 1) if label == "S2" else messages)
    assert sent(simulator, count * WELL_SPACED + 10_000) == expected


@pytest.mark.parametrize("label", MODERN)
def test_joins_within_the_grace_period(label: str) -> None:
    """Ten joins within 10 s: N(N-1) messages, for nobody rotates."""
    simulator, devices = members(10, label)
    for position, device in enumerate(devices):
        simulator.join(position * 900, device)
    assert sent(simulator, 60_000) == (0, 90)


@pytest.mark.parametrize("label", ["R0", "R1", "S1"])
def test_throttled_joins(label: str) -> None:
    """Ten joins within 10 s: at most what well spaced ones take, for re-sends are 3 s apart."""
    simulator, devices = members(10, label)
    for position, device in enumerate(devices):
        simulator.join(position * 900, device)
    events, messages = sent(simulator, 60_000)
    assert 10 <= events <= 55 if label in ROOM else 90 <= messages <= 330
    last: dict[Device, int] = {}
    for key in simulator.truth.room_keys:
        assert key.at - last.get(key.device, 0) >= 3_000 - 50  # requests differ by so much
        last[key.device] = key.at


@pytest.mark.parametrize("label", GENERATIONS)
def test_one_leaves(label: str) -> None:
    """Of k that remain, each sends a new key: k events, the last one alone included, or k(k-1) messages."""
    for remain in (1, 2, 5):
        simulator, devices = members(remain + 1, label)
        for position, device in enumerate(devices):
            simulator.join(position * WELL_SPACED, device)
        simulator.leave(200_000, devices[0], linger=False)
        expected = (remain, 0) if label in ROOM else (0, remain * (remain - 1))
        assert sent(simulator, 250_000, since=200_000) == expected


@pytest.mark.parametrize("label", GENERATIONS)
def test_all_leave_one_by_one(label: str) -> None:
    """N(N-1)/2 events, or N(N-1)(N-2)/3 messages."""
    simulator, devices = members(6, label)
    for position, device in enumerate(devices):
        simulator.join(position * WELL_SPACED, device)
        simulator.leave(200_000 + position * 10_000, device, linger=False)
    assert sent(simulator, 300_000, since=199_999) == ((15, 0) if label in ROOM else (0, 40))


@pytest.mark.parametrize("label", GENERATIONS)
def test_some_leave_together(label: str) -> None:
    """Three leave within a second, three remain: one rotation of the legacy manager, at most two of the modern one."""
    simulator, devices = members(6, label)
    for position, device in enumerate(devices):
        simulator.join(position * WELL_SPACED, device)
    for position, device in enumerate(devices[:3]):
        simulator.leave(200_000 + position * 300, device, linger=False)
    events, messages = sent(simulator, 250_000, since=200_000)
    if label in ROOM:
        assert events == 3
    elif label == "S1":
        assert messages == 6
    else:
        # The first rotation may still address those about to leave.
        assert 6 <= messages <= 3 * (5 + 2) + 3 * 5
        assert len({message.distribution for message in simulator.truth.call_keys if message.at >= 1_795_000_200_000
                    and message.sender in devices[3:]}) <= 6  # fmt: skip


def test_a_rejoining_legacy_client_goes_on_counting_indexes_a_modern_one_does_not() -> None:
    """Index 0 recurs with modern clients only."""
    for label, indexes in (("R1", [0, 1]), ("S3", [0, 0])):
        simulator, devices = members(2, label)
        simulator.join(0, devices[0])
        simulator.join(1_000, devices[1])
        simulator.leave(20_000, devices[1], linger=False)
        simulator.join(40_000, devices[1])
        simulator.run(60_000)
        truth = simulator.truth
        own = [key.keys[0][0] for key in truth.room_keys if key.device == devices[1]]
        own = own or [message.index for message in truth.call_keys if message.sender == devices[1]]
        assert own == indexes


def test_a_legacy_client_resends_the_old_index_before_the_new_key_is_in_use() -> None:
    """A leave makes a new key after 3 s, in use 5 s later; a join in between is told the old one: 0, 1, 0."""
    simulator, devices = members(3, "R1")
    simulator.join(0, devices[0])
    simulator.join(5_000, devices[1])
    simulator.leave(20_000, devices[1])
    simulator.join(26_500, devices[2])
    simulator.run(30_000)
    assert [key.keys[0][0] for key in simulator.truth.room_keys if key.device == devices[0]] == [0, 0, 1, 0]


def test_equal_seeds_give_equal_recordings() -> None:
    """And another seed another one."""

    def recording(seed: int) -> list[Any]:
        simulator = Simulator(seed, loss=0.05)
        for number in range(4):
            simulator.add((f"@user{number}:sim.test", "DEVICE"), "S3")
            simulator.join(number * 12_000, (f"@user{number}:sim.test", "DEVICE"))
        return [(transaction.received_at, transaction.body) for transaction in simulator.run(120_000)]

    assert recording(1) == recording(1)
    assert recording(1) != recording(2)
