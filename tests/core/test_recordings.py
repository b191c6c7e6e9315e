"""
Every recording's report agrees with its truth, which is computed here from truth.json and the clients' versions.

Run with `-s` to see the table. Nothing expected is typed in: which device fell back and why follows from the js-sdk
version, the options and the switches the client itself logged; what could be seen follows from the transactions.
"""

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.fields import from_ms
from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import FallbackCause, Verdict

Device = tuple[str, str]

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings"
SCENARIOS = sorted(path.parent.name for path in RECORDINGS.glob("*/truth.json"))
#: js-sdk release -> generation, newest first.
GENERATIONS = [((41, 1), "D2"), ((39, 1), "D1"), ((37, 12), "S3"), ((37, 11), "S2"), ((37, 4), "S1"), ((34, 6), "R1")]
#: Largest difference between a client's own log of a join and the membership on the wire.
CLOCK_SLACK = timedelta(seconds=5)


class Scenario:
    """A recording: its transactions' report, and what its truth says should be in it."""

    def __init__(self, name: str) -> None:
        folder = RECORDINGS / name
        self.lines: list[dict[str, Any]] = [
            json.loads(line) for line in (folder / "transactions.jsonl").read_text().splitlines()
        ]
        self.truth: dict[str, Any] = json.loads((folder / "truth.json").read_text())
        self.clients: list[dict[str, Any]] = self.truth["clients"]
        self.devices: dict[str, Device] = {c["client"]: (c["user"], c["device"]) for c in self.clients}

    def call(self) -> CallReport:
        """Audit the recording, which holds one call."""
        recorded = [RecordedTransaction(at(line["recv_ts"]), line["body"]) for line in self.lines]
        report = audit(recorded, homeserver=None, scope="auto", secret=b"a secret of the tests")
        assert len(report.calls) == 1
        return report.calls[0]

    def call_keys_on_wire(self) -> int:
        """Synapse loses some on the way to an appservice: only what arrived can be found."""
        ids = [
            message["content"].get("org.matrix.msgid")
            for line in self.lines
            for message in line["body"].get("de.sorunome.msc2409.to_device", [])
        ]
        return sum(self.truth["to_device_messages"].get(name, {}).get("origin") == "call_key" for name in ids)

    def is_sealed(self) -> bool:
        """Sticky joins in encrypted rooms cannot be read."""
        modes = {client["joins"][0]["mode"] for client in self.clients}
        return bool(self.truth["encrypted_room"]) and "sticky" in modes

    def verdict(self) -> Verdict:
        """Give the verdict that what was sent and could be seen allows."""
        if self.is_sealed():
            return Verdict.UNKNOWN
        if self.truth["room_key_events"]:
            return Verdict.MIXED if self.call_keys_on_wire() else Verdict.ROOM_EVENT
        return Verdict.TO_DEVICE if self.call_keys_on_wire() else Verdict.NO_KEYS

    def room_keys(self) -> dict[Device, int]:
        """Count the room keys really sent, by device."""
        return dict(Counter(self.devices[event["from"]] for event in self.truth["room_key_events"].values()))

    def causes(self) -> dict[Device, str]:
        """Room-only clients by version and option; the others fell back because they logged a switch."""
        expected = {}
        for client in self.clients:
            device = (client["user"], client["device"])
            if device in self.room_keys():
                assert is_room_only(client) or client["switches"]
                followed = FallbackCause.ROOM_ONLY_CLIENT if is_room_only(client) else FallbackCause.FOLLOWED
                expected[device] = followed.value
        return expected

    def triggers(self) -> dict[Device, Device]:
        """Each switched client's own trigger."""
        return {
            (c["user"], c["device"]): (switch["trigger"]["sender"], switch["trigger"]["device"])
            for c in self.clients
            for switch in c["switches"][:1]
        }


def at(milliseconds: float) -> datetime:
    """Turn milliseconds into a time."""
    moment = from_ms(milliseconds)
    assert moment is not None
    return moment


def version(client: dict[str, Any]) -> tuple[int, int]:
    """Give the js-sdk release of a client."""
    major, minor, *_ = client["js_sdk"].split(".")
    return int(major), int(minor)


def generation(client: dict[str, Any]) -> str:
    """S clients with the option off are R1 (their legacy manager sends room events only)."""
    name = next((name for since, name in GENERATIONS if version(client) >= since), "R0")
    return "R1" if name[0] == "S" and is_room_only(client) else name


def is_room_only(client: dict[str, Any]) -> bool:
    """Tell whether a client can use nothing but room events, by release and option."""
    to_device = client["joins"][0]["config"].get("useExperimentalToDeviceTransport")
    return version(client) < (37, 4) or (version(client) < (41, 1) and not to_device)


@pytest.mark.parametrize("name", SCENARIOS)
def test_report_agrees_with_truth(name: str) -> None:
    """Verdict, room keys, participants, stints, fallbacks, generations and deliveries are what really happened."""
    scenario = Scenario(name)
    call = scenario.call()
    sealed = scenario.is_sealed()
    keys_of: Counter[Device] = Counter()
    for fallback in call.fallbacks:
        keys_of[(fallback.user_id, fallback.device_id)] += fallback.room_keys
    generations = {(p.user_id, p.device_id): p.generation for p in call.participants}
    wrong = {
        device: (generation(client), found)
        for client in scenario.clients
        if (found := generations.get(device := (client["user"], client["device"]), "unknown"))
        not in ("unknown", generation(client), generation(client)[0])
    }
    stints = {} if sealed else {scenario.devices[c["client"]]: len(c["joins"]) for c in scenario.clients}
    rows: list[tuple[str, Any, Any]] = [
        ("verdict", scenario.verdict().value, call.verdict.value),
        ("encrypted room", scenario.truth["encrypted_room"], call.encrypted_room),
        ("room keys", len(scenario.truth["room_key_events"]), call.distributions.room_event),
        ("room keys by device", scenario.room_keys(), dict(keys_of)),
        ("deliveries", 0 if sealed else scenario.call_keys_on_wire(), call.deliveries.to_device),
        ("unclassified", 0, call.deliveries.unclassified),
        ("stints", stints, {(p.user_id, p.device_id): len(p.stints) for p in call.participants}),
        ("causes", scenario.causes(), {(f.user_id, f.device_id): f.cause.value for f in call.fallbacks}),
        ("wrong generations", {}, wrong),
    ]
    print(f"\n{name}: generations {sorted(generations.values())}")
    for what, expected, found in rows:
        print(f"  {'agrees' if expected == found else 'DIFFERS'}  {what}: {found}")

    assert [row[:2] for row in rows] == [(what, found) for what, _, found in rows]


@pytest.mark.parametrize("name", SCENARIOS)
def test_stints_lie_where_the_clients_joined_and_left(name: str) -> None:
    """Each stint begins with its client's join and ends with its leave, a clock's slack apart."""
    scenario = Scenario(name)
    participants = {(p.user_id, p.device_id): p for p in scenario.call().participants}
    if scenario.is_sealed():
        assert {} == participants
        return

    for client in scenario.clients:
        stints = participants[(client["user"], client["device"])].stints
        for join, stint in zip(client["joins"], stints, strict=True):
            assert abs(stint.joined_at - at(join["t"])) < CLOCK_SLACK
        for leave, stint in zip(client["leaves"], stints, strict=False):
            assert stint.left_at is not None
            assert abs(stint.left_at - at(leave["t"])) < CLOCK_SLACK


@pytest.mark.parametrize("name", SCENARIOS)
def test_followers_name_what_triggered_them(name: str) -> None:
    """Exactly the clients that logged a switch are called followers, and of the device that triggered them."""
    scenario = Scenario(name)
    followers = {
        (f.user_id, f.device_id): f.caused_by and (f.caused_by.user_id, f.caused_by.device_id)
        for f in scenario.call().fallbacks
        if f.cause is FallbackCause.FOLLOWED
    }

    assert scenario.triggers() == followers


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_received_is_called_not_received(name: str) -> None:
    """An obligation called not received has no matching receipt in the recipient's own log."""
    scenario = Scenario(name)
    received = {
        (receipt["sender"], receipt["device"], *scenario.devices[receipt["client"]])
        for receipt in scenario.truth["key_receipts"]
        if receipt["transport"] == "to_device"
    }
    called = {
        (f.subject.user_id, f.subject.device_id, f.details["recipient"]["user_id"], f.details["recipient"]["device_id"])
        for f in scenario.call().findings
        if f.kind == "key_not_received" and f.subject is not None
    }

    assert set() == called & received


@pytest.mark.parametrize("name", SCENARIOS)
def test_obligations_add_up(name: str) -> None:
    """Outcomes add up to the obligations the stints imply: two a pair at each join, k(k-1) at each leave."""
    call = Scenario(name).call()
    moments = [(s.joined_at, 1) for p in call.participants for s in p.stints]
    moments += [(s.left_at, 0) for p in call.participants for s in p.stints if s.left_at is not None]
    present = owed = 0
    for _, is_join in sorted(moments):
        if is_join:
            owed += 2 * present
            present += 1
        else:
            present -= 1
            owed += present * (present - 1)
    counts = call.obligations

    assert owed == sum(getattr(counts, name) for name in counts.__struct_fields__)


def test_all_recordings_are_compared() -> None:
    """The folder is there and whole: a missing recording is not a passed one."""
    assert 18 == len(SCENARIOS)
