"""
Recorded encrypted calls with a device of ours in them decrypt, and their reports agree with the truth.

What is expected is computed from truth.json: what the clients themselves noted of the keys they made and sent.
"""

import base64
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rtc_appservice.cli.main import main
from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.model import CallReport
from rtc_appservice.core.strip import KEY_EVENT_TYPES
from rtc_appservice.core.words import Coverage, Evidence, FindingKind, Verdict
from rtc_appservice.intake.account import OpenedRecording, load_account, open_recording

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings" / "witness"
VARIANTS = sorted(path.name for path in RECORDINGS.iterdir())


class Witnessed:
    """A recording, opened with the account of the witness, beside its truth."""

    def __init__(self, variant: str) -> None:
        self.folder = RECORDINGS / variant
        self.lines = [json.loads(line) for line in (self.folder / "transactions.jsonl").read_text().splitlines()]
        self.truth: dict[str, Any] = json.loads((self.folder / "truth.json").read_text())
        self.devices = {client["client"]: (client["user"], client["device"]) for client in self.truth["clients"]}
        self.opened = self.open(self.lines)

    def open(self, lines: list[dict[str, Any]]) -> OpenedRecording:
        """Open transactions with the witness's account."""
        recorded = [
            RecordedTransaction(datetime.fromtimestamp(line["recv_ts"] / 1000, UTC), line["body"]) for line in lines
        ]
        return open_recording(recorded, load_account(self.folder / "witness_account.json"))

    def call(self, opened: OpenedRecording | None = None) -> CallReport:
        """Give the report of the one call."""
        found = opened or self.opened
        report = audit(
            found.transactions,
            homeserver=None,
            scope="auto",
            secret=b"a secret of the tests",
            witness=found.device,
            gaps=found.gaps,
        )
        assert len(report.calls) == 1
        return report.calls[0]

    def keys_to_witness(self) -> Counter[tuple[str, str]]:
        """Call keys that went to the witness over HTTP, by sending device."""
        return Counter(
            self.devices[message["from"]]
            for message in self.truth["to_device_messages"].values()
            if message["origin"] == "call_key" and (message["to_user"], message["to_device"]) == self.opened.device
        )

    def verdict(self) -> Verdict:
        """Give the verdict by what was sent."""
        if not self.truth["room_key_events"]:
            return Verdict.TO_DEVICE
        return Verdict.MIXED if self.keys_to_witness() else Verdict.ROOM_EVENT

    def signed(self) -> bool:
        """Tell whether the clients were cross-signed."""
        return any(client["options"]["crossSigning"] for client in self.truth["clients"])


@pytest.fixture(scope="module", params=VARIANTS)
def witnessed(request: pytest.FixtureRequest) -> Witnessed:
    """Each recording with a witness."""
    return Witnessed(request.param)


def test_report_agrees_with_truth(witnessed: Witnessed) -> None:
    """Verdict, coverage, room keys and deliveries are what really happened, read rather than inferred."""
    call = witnessed.call()
    room_keys = Counter(witnessed.devices[event["from"]] for event in witnessed.truth["room_key_events"].values())
    fallbacks: Counter[tuple[str, str]] = Counter()
    for fallback in call.fallbacks:
        fallbacks[(fallback.user_id, fallback.device_id)] += fallback.room_keys
        assert fallback.evidence is Evidence.DECRYPTED

    assert witnessed.verdict() is call.verdict
    assert (Evidence.DECRYPTED if room_keys else Evidence.DIRECT) is call.evidence
    assert (Coverage.TIMELINE, Coverage.WITNESS) == call.coverage
    assert room_keys == fallbacks
    assert room_keys.total() == call.distributions.room_event
    assert witnessed.keys_to_witness().total() == call.deliveries.to_device
    assert call.deliveries.unclassified == 0
    assert {*witnessed.devices.values(), witnessed.opened.device} == {
        (p.user_id, p.device_id) for p in call.participants
    }
    assert [] == witnessed.opened.gaps


def test_keys_are_those_the_clients_made(witnessed: Witnessed) -> None:
    """Every key read is one its sender noted, under the same index; each room key and each delivery is among them."""
    noted = {
        (*witnessed.devices[sent["client"]], key["index"], key["key_id"])
        for sent in witnessed.truth["key_sends"]
        for key in sent["keys"]
    }
    read: Counter[tuple[str, str, int, str]] = Counter()
    for transaction in witnessed.opened.transactions:
        assert transaction.opened is not None
        senders = {event["event_id"]: event["sender"] for event in transaction.body["events"]}
        for event_id, plain in transaction.opened.events.items():
            if plain.type in KEY_EVENT_TYPES:
                for key in plain.content["keys"]:
                    read[(senders[event_id], plain.content["device_id"], key["index"], key_id(key["key"]))] += 1
        for message in transaction.body.get("de.sorunome.msc2409.to_device", []):
            found = transaction.opened.message(message)
            if found is not None and found[1].type in KEY_EVENT_TYPES:
                plain, key = found[1], found[1].content["keys"]
                claimed = plain.content["member"]["claimed_device_id"]
                assert claimed == plain.sender_device_id
                read[(message["sender"], claimed, key["index"], key_id(key["key"]))] += 1

    assert set() == set(read) - noted
    expected = len(witnessed.truth["room_key_events"]) + witnessed.keys_to_witness().total()
    assert expected == read.total()


def key_id(text: str) -> str:
    """Give the name truth.json calls a key by."""
    return hashlib.sha256(base64.b64decode(text + "==")).hexdigest()[:12]


def test_senders_are_bound_to_their_devices(witnessed: Witnessed) -> None:
    """Unsigned senders are told as such, signed ones are not, and no claimed device is another's."""
    kinds: dict[FindingKind, set[tuple[str, str]]] = {}
    for finding in witnessed.call().findings:
        if finding.subject is not None:
            kinds.setdefault(finding.kind, set()).add((finding.subject.user_id, finding.subject.device_id))
    senders = {*witnessed.keys_to_witness(), *(f_device(f) for f in witnessed.call().fallbacks)}

    assert (set() if witnessed.signed() else senders) == kinds.get(FindingKind.UNTRUSTED_SENDER_DEVICE, set())
    assert FindingKind.CLAIMED_DEVICE_MISMATCH not in kinds
    assert FindingKind.KEY_IN_CLEAR not in kinds


def f_device(fallback: Any) -> tuple[str, str]:
    """Give the device that fell back."""
    return fallback.user_id, fallback.device_id


def test_messages_that_come_twice_are_opened_once(witnessed: Witnessed) -> None:
    """A to-device message delivered again changes nothing: it never reaches the ratchet a second time."""
    twice = [line for line in witnessed.lines for _ in range(2)]

    assert witnessed.call() == witnessed.call(witnessed.open(twice))


def test_without_the_sessions_nothing_is_made_up(witnessed: Witnessed) -> None:
    """With the to-device messages lost, room keys are seen by their length only, and a gap says what was not read."""
    lines = [line | {"body": {**line["body"], "de.sorunome.msc2409.to_device": []}} for line in witnessed.lines]
    opened = witnessed.open(lines)
    call = witnessed.call(opened)
    sealed = [event for line in lines for event in line["body"]["events"] if event["type"] == "m.room.encrypted"]

    assert bool(sealed) is bool(opened.gaps)
    assert bool(sealed) is (Coverage.TIMELINE_PARTIAL in call.coverage)
    assert all(fallback.evidence is Evidence.INFERRED for fallback in call.fallbacks)
    assert call.deliveries.to_device == 0


def test_command_line(witnessed: Witnessed) -> None:
    """`audit --account` prints the same calls."""
    files = [str(witnessed.folder / "transactions.jsonl"), "--account", str(witnessed.folder / "witness_account.json")]
    result = CliRunner().invoke(main, ["audit", *files, "--format", "json"])

    assert result.exit_code == 0, result.output
    (call,) = json.loads(result.stdout)["calls"]
    assert witnessed.verdict() == call["verdict"]
    assert ["timeline", "witness"] == call["coverage"]


def test_an_account_that_is_none_is_an_error(tmp_path: Path) -> None:
    """A file that is no account, or does not open, is said without quoting it."""
    recording = str(RECORDINGS / VARIANTS[0] / "transactions.jsonl")
    given = json.loads((RECORDINGS / VARIANTS[0] / "witness_account.json").read_text())
    for name, content in (
        ("no.json", "{"),
        ("none.json", "[]"),
        ("wrong.json", json.dumps(given | {"pickle_key": "x"})),
    ):
        (tmp_path / name).write_text(content)
        result = CliRunner().invoke(main, ["audit", recording, "--account", str(tmp_path / name)])
        assert result.exit_code == 1
        assert name in result.output
        assert given["pickle"][:20] not in result.output
