"""What the answers of homeserver, database and PostHog mean for an operator."""

from typing import Any

import pytest

from rtc_appservice.core.installation import (
    Answer,
    DeviceFacts,
    Listening,
    Outcome,
    fault,
    judge_database,
    judge_device,
    judge_posthog,
    judge_round_trip,
    one_line,
)
from rtc_appservice.core.reachability import (
    judge_delayed_events,
    judge_homeserver,
    judge_notifications,
    judge_ping,
    judge_registration,
    judge_to_device,
)

SENDER = "@rtc-auditor:example.org"
PINGED = Answer(status=200, body={"versions": ["v1.15"], "unstable_features": {"fi.mau.msc2659.stable": True}})


def answer(status: int, /, **body: Any) -> Answer:
    """Give an answer with JSON."""
    return Answer(status=status, body=body)


@pytest.mark.parametrize(
    ("found", "outcome", "words"),
    [
        ((150004, "0008", "0008"), Outcome.OK, "PostgreSQL 15"),
        ((140010, "0008", "0008"), Outcome.FAILED, "too old"),
        ((180000, "0007", "0008"), Outcome.FAILED, "is at 0007"),
        ((180000, None, "0008"), Outcome.FAILED, "is empty"),
    ],
)
def test_database(found: tuple[int, str | None, str], outcome: Outcome, words: str) -> None:
    """It is new enough, and at the newest migration."""
    check = judge_database(*found)

    assert outcome is check.outcome
    assert words in check.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Answer(problem="Connection refused"), "does not answer: Connection refused"),
        (answer(404), "is not a homeserver's client API: HTTP 404"),
        (answer(200, versions={}), "is not a homeserver's"),
        (answer(401, errcode="M_MISSING_TOKEN"), "M_MISSING_TOKEN"),
    ],
)
def test_homeserver(given: Answer, words: str) -> None:
    """What is not Matrix is told from what is not there."""
    check = judge_homeserver("http://localhost:8008", given)

    assert Outcome.FAILED is check.outcome
    assert words in check.text
    assert "homeserver.address" in (check.advice or "")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (answer(401, errcode="M_UNKNOWN_TOKEN"), "app_service_config_files"),
        (answer(200, user_id="@irc:example.org"), "another registration"),
        (answer(200, user_id="@rtc-auditor:example.com"), "set homeserver.domain to example.com"),
        (answer(200, user_id=7), "app_service_config_files"),
    ],
)
def test_registration(given: Answer, advice: str) -> None:
    """Whose the token is says which side is wrong."""
    check = judge_registration(given, SENDER, "registration.yaml")

    assert Outcome.FAILED is check.outcome
    assert advice in (check.advice or "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer(400, errcode="M_URL_NOT_SET"), "no `url`"),
        (answer(504, errcode="M_CONNECTION_TIMEOUT"), "no answer in time"),
        (Answer(problem="time-out"), "no answer in time"),
        (answer(403, errcode="M_FORBIDDEN", error="Mismatching"), "another `id`"),
        (answer(502, errcode="M_CONNECTION_FAILED", error="ConnectionRefusedError"), "ConnectionRefusedError"),
        (answer(502, errcode="M_BAD_STATUS", status=403, body='{"error":"… (hs_token in …)"}'), "another hs_token"),
        (answer(502, errcode="M_BAD_STATUS", status=403, body="<html>"), "another program"),
        (answer(502, errcode="M_BAD_STATUS", status=404), "another program"),
        (answer(500), "did not try"),
        (answer(404, errcode="M_UNRECOGNIZED"), "did not try"),
        (answer(200, duration_ms=3), "not the port of this configuration"),
    ],
)
def test_ping_that_fails(given: Answer, words: str) -> None:
    """Each way in which the homeserver does not reach the service has its own words, and something to do."""
    check = judge_ping(given, Listening.HERE, arrived=False, url="http://localhost:29331", features=PINGED)

    assert Outcome.FAILED is check.outcome
    assert words in check.text
    assert check.advice


def test_ping_of_an_old_homeserver() -> None:
    """One that has no ping says so by its features."""
    old = answer(200, versions=["v1.5"])
    check = judge_ping(answer(404), Listening.SERVICE, arrived=False, url="http://localhost:29331", features=old)

    assert Outcome.SKIPPED is check.outcome


def test_to_device() -> None:
    """What did not come while other things waited is not known; otherwise it is off."""
    found = [
        judge_to_device(arrived=arrived, extensions=False, refused=refused, listening=Listening.HERE)
        for arrived, refused in ((True, True), (False, True), (False, False))
    ]

    assert [Outcome.OK, Outcome.SKIPPED, Outcome.FAILED] == [check.outcome for check in found]


LEVELS = {"users": {SENDER: 50}, "users_default": 0, "events": {"m.room.message": 50}}


@pytest.mark.parametrize(
    ("summary", "encryption", "levels", "outcome", "words"),
    [
        (answer(200, membership="join"), answer(404), answer(200, **LEVELS), Outcome.OK, "may post"),
        (answer(200, membership="join"), answer(404), answer(404), Outcome.OK, "may post"),
        (answer(200, membership="join"), answer(404), answer(200, events_default=50), Outcome.FAILED, "is 0, and"),
        (answer(200, membership="join"), answer(200), answer(200, **LEVELS), Outcome.FAILED, "encrypted"),
        (answer(200, membership="invite"), answer(403), answer(403), Outcome.OK, "first notice"),
        (answer(200, membership="invite", encryption="m.megolm.v1.aes-sha2"), answer(403), answer(403), Outcome.FAILED,
         "encrypted"),
        (answer(200, membership="leave", join_rule="public"), answer(403), answer(403), Outcome.OK, "first notice"),
        (answer(200, membership="ban", join_rule="public"), answer(403), answer(403), Outcome.FAILED, "nor invited"),
        (answer(200, membership="leave", join_rule="knock"), answer(403), answer(403), Outcome.FAILED, "nor invited"),
        (answer(200), answer(403), answer(403), Outcome.FAILED, "nor invited"),
        (answer(404, errcode="M_NOT_FOUND"), answer(403), answer(403), Outcome.FAILED, "is not there"),
        (answer(404, errcode="M_UNRECOGNIZED"), answer(403), answer(403), Outcome.SKIPPED, "Matrix 1.15"),
        (answer(502), answer(403), answer(403), Outcome.FAILED, "did not tell"),
        (Answer(problem="time-out"), answer(403), answer(403), Outcome.FAILED, "time-out"),
    ],
)  # fmt: skip
def test_notifications(summary: Answer, encryption: Answer, levels: Answer, outcome: Outcome, words: str) -> None:
    """The room is one the sender is in or may enter, and where it may post in clear."""
    check = judge_notifications("#room:example.org", SENDER, summary, encryption, levels)

    assert outcome is check.outcome
    assert words in check.text
    assert (check.outcome is Outcome.FAILED) == bool(check.advice)


@pytest.mark.parametrize("levels", [{"users": 7, "events": []}, {"users": {SENDER: "50"}, "events_default": None}])
def test_notifications_with_odd_levels(levels: dict[str, Any]) -> None:
    """What is no number counts as 0."""
    check = judge_notifications(
        "!r", SENDER, answer(200, membership="join"), answer(404), Answer(status=200, body=levels)
    )

    assert Outcome.OK is check.outcome


def test_delayed_events() -> None:
    """Without them the device reads all the same."""
    without = judge_delayed_events(answer(200, unstable_features={"org.matrix.msc4140": False}))

    assert Outcome.OK is judge_delayed_events(answer(200, unstable_features={"org.matrix.msc4140": True})).outcome
    assert Outcome.SKIPPED is without.outcome


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (answer(200, flags={}), Outcome.OK),
        (answer(200, featureFlags={}), Outcome.OK),
        (answer(200), Outcome.FAILED),
        (answer(401), Outcome.FAILED),
        (answer(404), Outcome.SKIPPED),
        (Answer(problem="ConnectionError"), Outcome.FAILED),
    ],
)
def test_posthog(given: Answer, outcome: Outcome) -> None:
    """Only PostHog's own answer is one."""
    assert outcome is judge_posthog("https://eu.i.posthog.com", given).outcome


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (DeviceFacts(known=False), "no keys"),
        (DeviceFacts(known=True, same=False), "other keys"),
        (DeviceFacts(known=True, same=True, cross_signed=None), "not signed"),
        (DeviceFacts(known=True, same=True, cross_signed=False), "not signed"),
        (DeviceFacts(known=True, same=True, cross_signed=True, unused_fallback_key=False), "no one-time key"),
    ],
)
def test_device_that_fails(facts: DeviceFacts, words: str) -> None:
    """Each thing that keeps others from sharing keys with the device is named."""
    check = judge_device("AUDITOR1", facts)

    assert Outcome.FAILED is check.outcome
    assert words in check.text


def test_device() -> None:
    """One-time keys, or the fallback key alone, are enough."""
    fallback = DeviceFacts(known=True, same=True, cross_signed=True, unused_fallback_key=True)
    one_time = DeviceFacts(known=True, same=True, cross_signed=True, one_time_keys=3)

    assert [Outcome.OK, Outcome.OK] == [judge_device("AUDITOR1", facts).outcome for facts in (fallback, one_time)]


def test_round_trip() -> None:
    """Opened, not opened, and not to be told."""
    found = [judge_round_trip(opened=opened, listening=Listening.HERE).outcome for opened in (True, False, None)]

    assert [Outcome.OK, Outcome.FAILED, Outcome.SKIPPED] == found


def test_what_was_said_by_others_is_harmless() -> None:
    """An answer is cut short, and no terminal obeys it."""
    said = answer(500, error="\x1b[31m" + "x" * 1000).said

    assert "\x1b" not in said
    assert 300 > len(said)
    assert "a: b; c" == one_line("a:\n  b\n  c\n")
    assert ("Keys are lost", "Make new ones.") == (
        fault("device", "Keys are lost. Make new ones.").text,
        fault("device", "Keys are lost. Make new ones.").advice,
    )
