"""What the operator's room is told: each split once and few of a call, readiness in words once a week."""

from datetime import UTC, datetime

import msgspec

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.notices import ALARMS_PER_CALL, alarms, weekly, weekly_id
from rtc_appservice.core.readiness import assess
from rtc_appservice.core.words import FindingKind

from .build import NOON, Scene, at, findings_of, modern


def split_call(others: int = 1) -> CallReport:
    """Give a call that goes on, in which one sends room keys that so many others do not follow."""
    scene = Scene()
    names = ["alice", *(f"other{number}" for number in range(1, others))]
    for name in names:
        scene.join(name, 0, modern(name))
    scene.join("bob", 10, modern("bob"))
    for name in names:
        scene.to_device(name, "bob", 10.1, variant="to_device_40")
        scene.to_device("bob", name, 10.1, variant="to_device_40")
    scene.room_key("bob", 20, padded=True)
    return scene.call()


def test_a_split_is_told_once() -> None:
    """A split names who, where, since when and how; once posted it is not due again."""
    call = split_call()
    (finding,) = findings_of(call, FindingKind.SPLIT_CALL)
    (notice,) = alarms([call], [])

    assert f"split_call/{call.call_id}/{finding.finding_id}" == notice.notice_id
    first, second, third = notice.text.splitlines()
    assert first.startswith(f"Split call in {call.room_id} since 2026-")
    assert all(f"{p.user_id} {p.device_id} (generation {p.generation})" in first for p in call.participants)
    assert second.startswith("transport_split (inferred): the first sends its key as room event")
    assert f"rtc-appservice call {call.call_id}" in third
    assert [] == alarms([call], [notice.notice_id])


def test_a_call_that_ended_is_no_alarm() -> None:
    """What is over cannot be helped any more: it stands in the report."""
    assert [] == alarms([msgspec.structs.replace(split_call(), ended_at=at(100))], [])


def test_a_large_call_does_not_flood_the_room() -> None:
    """Of one call a few splits are posted, however many pairs there are and whenever they are found."""
    call = split_call(others=ALARMS_PER_CALL + 3)
    found = alarms([call], [])

    assert ALARMS_PER_CALL + 3 == len(findings_of(call, FindingKind.SPLIT_CALL))
    assert ALARMS_PER_CALL == len(found)
    assert ["not posted" in notice.text for notice in found] == [False] * (ALARMS_PER_CALL - 1) + [True]
    assert found[1:] == alarms([call], [found[0].notice_id])
    assert [] == alarms([call], [notice.notice_id for notice in found])


def test_names_made_by_strangers_stay_on_their_line() -> None:
    """What a device calls itself can neither break a line nor fill the event."""
    call = split_call()
    (finding,) = findings_of(call, FindingKind.SPLIT_CALL)
    details = {**finding.details, "other": {"user_id": "@a:b", "device_id": "D\n\u202e" + "x" * 70_000}}
    call = msgspec.structs.replace(call, findings=(msgspec.structs.replace(finding, details=details),))
    (notice,) = alarms([call], [])

    assert 3 == len(notice.text.splitlines())
    assert "\u202e" not in notice.text
    assert len(notice.text) < 2_000


def test_the_week_in_words() -> None:
    """The summary says whether the backup can go and why; its id is the ISO week, even one of another year."""
    call = split_call()
    notice = weekly(assess([call], NOON), 1, NOON)

    assert notice.text.startswith(
        f"Week {NOON:%G-W%V}: NOT READY: do not switch the room-event backup off yet.\n1 call "
    )
    assert "- 1 split call going on now: participants cannot get each other's keys." in notice.text
    assert weekly_id(NOON) == notice.notice_id
    assert "weekly/2026-W53" == weekly_id(datetime(2027, 1, 3, 23, 59, tzinfo=UTC))
    assert "weekly/2027-W01" == weekly_id(datetime(2027, 1, 4, tzinfo=UTC))
