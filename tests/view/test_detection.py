"""The page about detection is what the code says, and its examples show what they are named for."""

import json
from pathlib import Path

import pytest

from rtc_appservice.core.audit import RecordedTransaction, audit
from rtc_appservice.core.catalogue import CAUSES, FINDINGS, GAPS, OUTCOMES
from rtc_appservice.core.fields import from_ms
from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import FallbackCause, FindingKind, GapReason, Outcome
from rtc_appservice.view import words
from rtc_appservice.view.detection import PATH, render

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"


def calls(name: str) -> tuple[CallReport, ...]:
    """Audit a recording."""
    lines = [json.loads(line) for line in (RECORDINGS / name / "transactions.jsonl").read_text().splitlines()]
    recorded = [RecordedTransaction(at, line["body"]) for line in lines if (at := from_ms(line["recv_ts"]))]
    return audit(recorded, homeserver=None, scope="auto", secret=b"a secret of the tests").calls


def test_the_page_is_what_the_code_says() -> None:
    """docs/detection.md is written from the code; run `python -m rtc_appservice.view.detection`."""
    assert render() == PATH.read_text()


def test_nothing_is_left_unexplained() -> None:
    """Every cause, finding, outcome and gap has its meaning, and gaps have their words on reports and pages."""
    assert set(FallbackCause) == set(CAUSES)
    assert set(FindingKind) == set(FINDINGS)
    assert set(Outcome) == set(OUTCOMES)
    assert set(GapReason) == set(GAPS) == set(words.GAPS)


@pytest.mark.parametrize(("cause", "name"), [(c, m.recording) for c, m in CAUSES.items() if m.recording])
def test_a_named_recording_shows_its_cause(cause: FallbackCause, name: str) -> None:
    """The example of a cause has a fallback with it."""
    assert cause in {fallback.cause for call in calls(name) for fallback in call.fallbacks}


@pytest.mark.parametrize(("kind", "name"), [(k, m.recording) for k, m in FINDINGS.items() if m.recording])
def test_a_named_recording_shows_its_finding(kind: FindingKind, name: str) -> None:
    """The example of a finding has one."""
    assert kind in {finding.kind for call in calls(name) for finding in call.findings}
