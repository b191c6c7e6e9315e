"""Can the room-event backup be switched off? Never on too few calls, never with a blocker about."""

from datetime import timedelta

import msgspec
import pytest

from rtc_appservice.core.model import CallReport, Readiness
from rtc_appservice.core.readiness import TARGET, assess, wilson_interval
from rtc_appservice.core.words import CallId, Verdict

from .build import NOON, Scene, at, modern


def clean(**changes: object) -> CallReport:
    """Give a call all to-device, with changes."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10, modern("bob"))
    scene.hand_out("alice", "bob", seconds=10.1, variant="to_device_40")
    scene.hand_out("bob", "alice", seconds=10.1, variant="to_device_40")
    scene.leave("alice", 100, modern("alice"))
    scene.leave("bob", 100, modern("bob"))
    return msgspec.structs.replace(scene.call(), **changes)


def dirty() -> CallReport:
    """Give a call with a room-only device."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.room_key("alice", 0.1)
    scene.leave("alice", 100)
    scene.leave("bob", 100)
    return scene.call()


def split_live() -> CallReport:
    """Give a call that goes on split."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10, modern("bob"))
    scene.to_device("alice", "bob", 10.1, variant="to_device_40")
    scene.to_device("bob", "alice", 10.1, variant="to_device_40")
    scene.room_key("bob", 20, padded=True)
    return scene.call()


def judge(calls: list[CallReport], days: float = 0) -> Readiness:
    """Judge calls some days after noon."""
    return assess(calls, NOON + timedelta(days=days))


CLEAN = clean()
DIRTY = dirty()


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (95, 100, 0.8883, 0.9785)],
)
def test_wilson_interval(successes: int, trials: int, lower: float, upper: float) -> None:
    """The score interval at 95 %, as statistics tables have it."""
    assert (lower, upper) == pytest.approx(wilson_interval(successes, trials), abs=1e-4)


@pytest.mark.parametrize("trials", [1, 5, 50, 1000])
def test_the_interval_holds_the_share(trials: int) -> None:
    """Bounds lie in [0, 1] about the share."""
    for successes in range(0, trials + 1, max(1, trials // 7)):
        lower, upper = wilson_interval(successes, trials)

        assert 0 <= lower <= upper <= 1
        assert lower - 1e-12 <= successes / trials <= upper + 1e-12


@pytest.mark.parametrize(("calls", "verdict"), [(380, "insufficient_data"), (381, "ready"), (1000, "ready")])
def test_it_takes_381_clean_calls(calls: int, verdict: str) -> None:
    """The lower bound reaches 0.99 with 381 clean calls, and not with 380."""
    assert verdict == judge([CLEAN] * calls).verdict
    assert (calls >= 381) is (wilson_interval(calls, calls)[0] >= TARGET)


def test_no_calls_are_no_data() -> None:
    """Without judged calls there is neither share nor bounds."""
    found = judge([])

    assert ("insufficient_data", None, None, None, ()) == (
        found.verdict,
        found.share,
        found.lower_bound,
        found.upper_bound,
        found.blockers,
    )
    assert found.reasons


@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.SOLO, Verdict.NO_KEYS])
def test_calls_that_could_not_be_judged_do_not_count(verdict: Verdict) -> None:
    """Unknown is not success: the share is of judged calls only, and what was left out is said."""
    found = judge([CLEAN] * 10 + [msgspec.structs.replace(CLEAN, verdict=verdict)] * 90)

    assert (1.0, "insufficient_data") == (found.share, found.verdict)
    assert any(verdict.value in reason for reason in found.reasons)


def test_a_blocker_makes_it_not_ready() -> None:
    """However many calls were clean, one device that needs the backup stands in the way."""
    found = judge([CLEAN] * 5000 + [DIRTY])
    (blocker,) = found.blockers

    assert "not_ready" == found.verdict
    assert ("room_only_client", 1) == (blocker["cause"], blocker["devices"])


@pytest.mark.parametrize(("days", "verdict"), [(13.9, "not_ready"), (14.1, "ready")])
def test_a_blocker_counts_for_14_days(days: float, verdict: str) -> None:
    """No blocker for 14 days."""
    recent = msgspec.structs.replace(CLEAN, started_at=NOON + timedelta(days=days))

    assert verdict == judge([recent] * 5000 + [DIRTY], days=days).verdict


def test_followers_do_not_block() -> None:
    """A smart client that followed will not, once nobody leads."""
    scene = Scene()
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.room_key("mallory", 20)
    scene.room_key("alice", 20.3, padded=True)

    assert () == judge([scene.call()]).blockers


def test_the_same_device_blocks_once() -> None:
    """Blockers are devices, not calls."""
    calls = [msgspec.structs.replace(DIRTY, call_id=CallId(str(number))) for number in range(5)]

    assert [1] == [blocker["devices"] for blocker in judge(calls).blockers]


def test_a_low_share_is_not_ready() -> None:
    """Even the upper bound lies below the target."""
    mixed = msgspec.structs.replace(CLEAN, verdict=Verdict.MIXED)
    found = judge([CLEAN] * 50 + [mixed] * 50)

    assert "not_ready" == found.verdict
    assert found.upper_bound is not None and found.upper_bound < TARGET


def test_the_target_is_the_operators() -> None:
    """A lower one is reached by fewer calls, and the reasons name it."""
    few = [CLEAN] * 50
    found = assess(few, at(1000), 0.9)

    assert ["insufficient_data", "ready"] == [judge(few).verdict, found.verdict]
    assert any("target 90.0%" in reason for reason in found.reasons)


def test_a_live_split_is_not_ready() -> None:
    """A call going on in which participants cannot get each other's keys."""
    split = msgspec.structs.replace(split_live(), fallbacks=())
    assert any(finding.kind == "split_call" for finding in split.findings)

    assert "not_ready" == judge([CLEAN] * 5000 + [split]).verdict
    assert (
        "ready"
        == judge([CLEAN] * 5000 + [msgspec.structs.replace(split, ended_at=at(200), verdict=Verdict.TO_DEVICE)]).verdict
    )


def test_reasons_are_words() -> None:
    """Each verdict says why, in sentences."""
    for calls in ([], [CLEAN], [DIRTY], [CLEAN] * 400):
        assert all(reason.endswith(".") and " " in reason for reason in judge(calls).reasons)
