"""What the device does with what waited for it, and whom it follows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rtc_appservice.core.observed import KeyMark, Observation, ToDeviceKey
from rtc_appservice.core.opened import Opened
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import DeviceId, RoomId, ServerName, UserId
from rtc_appservice.intake.auditor import auditor_terms, date_back
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.intake.sealed import Invitations, SealedIntake

from .reading_device import nothing_known

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def key(sent: float | None) -> Observation:
    """Give a key that was received ten minutes past noon, and sent some seconds after noon."""
    body = ToDeviceKey(
        sender=UserId("@alice:lab.test"),
        recipient=UserId("@auditor:lab.test"),
        recipient_device=DeviceId("OURS"),
        claimed_device_id=None,
        slot_id="m.call#ROOM",
        keys=(KeyMark(index=0),),
        event_type="io.element.call.encryption_keys",
        encrypted=True,
        claimed_sent_at=None if sent is None else NOON + timedelta(seconds=sent),
    )
    received_at = NOON + timedelta(minutes=10)
    return Observation(
        homeserver=ServerName("lab.test"),
        room_id=RoomId("!r"),
        identity="i",
        event_at=received_at,
        received_at=received_at,
        body=body,
    )


@pytest.mark.parametrize(("sent", "dated"), [(30, 30), (-1000, 0), (5000, 600), (None, 600)])
def test_keys_that_waited_are_not_late(sent: float | None, dated: float) -> None:
    """They count from when they were sent, as their sender claims, between the last sync and now."""
    intake = Intake(observations=[key(sent)])
    date_back(intake, NOON)

    assert [NOON + timedelta(seconds=dated)] == [observation.event_at for observation in intake.observations]


@pytest.mark.parametrize(
    ("sender", "accepted"),
    [
        ("@anybody:example.org", True),
        ("@ann:example.com", True),
        ("@bob:example.com", False),
        ("@example.org:example.com", False),
        ("example.com", False),
    ],
)
def test_invitations(sender: str, accepted: bool) -> None:
    """Whole servers, and users of others, may invite the device; nobody else."""
    assert accepted is Invitations(["example.org", "@ann:example.com"]).accept(sender)


@pytest.mark.parametrize(("allowed", "said"), [([], 1), (["example.org"], 0)])
def test_an_invitation_that_is_not_followed_is_said(
    allowed: list[str], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who invited the device waits; the log says what to do, once in a while, and names nobody."""
    own = OwnDevice(ServerName("lab.test"), 1, (UserId("@auditor:lab.test"), DeviceId("OURS")), b"a secret of the test")
    sealed = SealedIntake(1, own, Invitations(allowed), nothing_known)
    invitation = {
        "type": "m.room.member",
        "room_id": "!r:lab.test",
        "sender": "@ann:example.org",
        "state_key": "@auditor:lab.test",
        "content": {"membership": "invite"},
    }
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert sealed.concerns({"events": [invitation]})
            sealed.committed({"events": [invitation]}, Reading(opened=Opened()), Intake())

    assert said == sum("was not followed" in record.message for record in caplog.records)
    assert all("auditor.invited_by" in vars(record)["hint"] for record in caplog.records)
    assert not [word for word in ("@ann", "!r:") if word in "".join(str(vars(r)) for r in caplog.records)]


@pytest.mark.parametrize(("sent", "left"), [(-2, -2), (-3600, -60), (30, 0), (None, 0)])
def test_a_room_is_left_when_the_event_says(sent: float | None, left: float) -> None:
    """What came after it was not seen, however long the event took to arrive; its time is believed a minute back."""
    own = OwnDevice(ServerName("lab.test"), 1, (UserId("@auditor:lab.test"), DeviceId("OURS")), b"a secret of the test")
    leave: dict[str, Any] = {
        "type": "m.room.member",
        "room_id": "!r:lab.test",
        "event_id": "$leave",
        "sender": "@ann:example.org",
        "state_key": "@auditor:lab.test",
        "content": {"membership": "leave"},
    }
    if sent is not None:
        leave["origin_server_ts"] = round((NOON + timedelta(seconds=sent)).timestamp() * 1000)
    sealed = SealedIntake(1, own, Invitations([]), nothing_known)

    assert [("!r:lab.test", "$leave", NOON + timedelta(seconds=left))] == list(
        sealed.rooms_left({"events": [leave]}, NOON)
    )


def test_nobody_may_by_default() -> None:
    """An empty list is no invitation."""
    assert not Invitations([]).accept("@ann:example.org")


def test_terms_show_no_secret() -> None:
    """A repr ends up in logs."""
    terms = auditor_terms(
        address="http://localhost",
        as_token="the token",
        sender_localpart="rtc-auditor",
        homeserver=ServerName("lab.test"),
        secret=b"the secret",
    )

    assert "the token" not in repr(terms)
    assert "the secret" not in repr(terms)
    assert UserId("@rtc-auditor-device:lab.test") == terms.user_id
