"""Recorded transactions in, a report out: the whole pure pipeline."""

import itertools
import random
from typing import Any

import msgspec
import pytest

from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.model import Report
from rtc_appservice.core.words import Coverage, Verdict

from .build import HOMESERVER, NOON, SCENARIOS, SECRET, at, ms, transactions_of, truth_of


def audited(recorded: list[RecordedTransaction], **changes: Any) -> Report:
    """Audit transactions with nothing told about them."""
    return audit(recorded, **({"homeserver": None, "scope": "auto", "secret": SECRET} | changes))


def recording(scenario: str, **changes: Any) -> Report:
    """Audit a recording."""
    return audited(list(transactions_of(scenario)), **changes)


def encoded(report: Report) -> bytes:
    """Give a report's bytes."""
    return msgspec.json.encode(report)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_homeserver_is_guessed_from_the_recording(scenario: str) -> None:
    """The server name most of its users have."""
    assert {HOMESERVER} == {call.homeserver for call in recording(scenario).calls}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_recording_is_one_call_in_its_room(scenario: str) -> None:
    """One call, begun by the first membership; rooms without a call make none."""
    assert [truth_of(scenario)["room_id"]] == [call.room_id for call in recording(scenario).calls]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_transactions_may_come_in_any_order(scenario: str) -> None:
    """Files are read together: what counts is when each was received."""
    recorded = list(transactions_of(scenario))
    shuffled = random.Random(1).sample(recorded, len(recorded))  # noqa: S311 - an order, not a secret

    assert encoded(audited(recorded)) == encoded(audited(shuffled))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_transaction_sent_again_changes_nothing(scenario: str) -> None:
    """A homeserver that missed our answer sends the same transaction again."""
    recorded = list(transactions_of(scenario))
    doubled = list(itertools.chain.from_iterable((one, one) for one in recorded))

    assert encoded(audited(recorded)) == encoded(audited(doubled))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scope_auto_tells_whether_envelopes_were_shown(scenario: str) -> None:
    """Other users' to-device messages or one-time-key counts show the scope the recording was made with."""
    (call,) = recording(scenario).calls

    assert (truth_of(scenario)["appservice_scope"] == "users") is (Coverage.ENVELOPES in call.coverage)


@pytest.mark.parametrize(("scope", "shown"), [("rooms", False), ("users", True)])
def test_a_scope_given_is_believed(scope: str, shown: bool) -> None:
    """Who knows the registration says so."""
    (call,) = recording("smart-switch", scope=scope).calls

    assert shown is (Coverage.ENVELOPES in call.coverage)


@pytest.mark.parametrize(
    ("scenario", "verdict", "room_keys", "causes"),
    [
        ("smart-switch", "mixed", 9, ["room_only_client", "followed", "followed"]),
        ("legacy-only", "room_event", 6, ["room_only_client"] * 3),
        ("todevice-only", "to_device", 0, []),
    ],
)
def test_the_promised_three(scenario: str, verdict: str, room_keys: int, causes: list[str]) -> None:
    """What these three recordings are promised to show."""
    (call,) = recording(scenario).calls

    assert (verdict, room_keys, causes) == (
        call.verdict,
        call.distributions.room_event,
        [fallback.cause for fallback in call.fallbacks],
    )


def test_the_switch_names_its_cause() -> None:
    """Both followers of the smart switch followed carol's device."""
    (call,) = recording("smart-switch").calls

    assert {"CAROL1"} == {fallback.caused_by.device_id for fallback in call.fallbacks if fallback.caused_by}


def test_to_device_only_counts_what_came_after_leaving() -> None:
    """12 deliveries, inferred from envelopes, those after a leave among them."""
    (call,) = recording("todevice-only").calls

    assert (12, "inferred", True) == (call.deliveries.to_device, call.evidence, call.deliveries.after_leave > 0)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_report_holds_a_key(scenario: str) -> None:
    """No text of a key that stood in the transactions is in the report."""
    dumped = encoded(recording(scenario)).decode()
    texts = [
        entry["key"].rstrip("=")
        for transaction in transactions_of(scenario)
        for event in transaction.body["events"]
        if event["type"] == "io.element.call.encryption_keys"
        for entry in event["content"]["keys"]
    ]

    assert [] == [text for text in texts if text in dumped]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_not_due_at_the_end_is_pending(scenario: str) -> None:
    """The report is made as of the last event: nothing in these short calls was settled by then."""
    (call,) = recording(scenario).calls

    assert not call.settled
    assert {False} >= {finding.settled for finding in call.findings}


@pytest.mark.parametrize(
    "recorded",
    [
        [],
        [RecordedTransaction(NOON, {})],
        [RecordedTransaction(NOON, {"events": None, "to_device": {"x": 1}})],
        [RecordedTransaction(NOON, {"events": [None, 1, "x", {}, {"type": "m.room.message", "sender": 1}]})],
    ],
)
def test_odd_recordings_are_reports_without_calls(recorded: list[RecordedTransaction]) -> None:
    """Empty or odd: a report all the same."""
    report = audited(recorded)

    assert (0, "insufficient_data") == (report.totals.calls, report.readiness.verdict)


def test_keys_left_in_history_are_counted() -> None:
    """Over all rooms, redacted ones left out."""
    recorded = list(transactions_of("smart-switch"))
    event_id, key = next(iter(truth_of("smart-switch")["room_key_events"].items()))
    redaction = {
        "type": "m.room.redaction",
        "event_id": "$redaction",
        "room_id": truth_of("smart-switch")["room_id"],
        "sender": "@alice:lab.test",
        "origin_server_ts": key["t"] + 20000,
        "content": {"redacts": event_id},
    }
    later = RecordedTransaction(recorded[-1].received_at, {"events": [redaction]})

    assert (9, 8) == (
        audited(recorded).totals.room_keys_in_history,
        audited([*recorded, later]).totals.room_keys_in_history,
    )


def test_rooms_of_no_call_are_not_reported() -> None:
    """A room in which nothing but state was seen has no call."""
    create = {
        "type": "m.room.create",
        "event_id": "$1",
        "room_id": "!quiet",
        "sender": "@alice:lab.test",
        "state_key": "",
        "origin_server_ts": ms(0),
        "content": {},
    }

    assert () == audited([RecordedTransaction(at(1), {"events": [create]})]).calls


def test_recordings_can_be_audited_together() -> None:
    """Several files are one recording of several calls."""
    together = audited([one for scenario in ("smart-switch", "legacy-only") for one in transactions_of(scenario)])

    assert {Verdict.MIXED: 1, Verdict.ROOM_EVENT: 1} == together.totals.by_verdict
