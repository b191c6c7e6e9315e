"""One call told in full: the same analysis as the report, nothing more and nothing less."""

from collections import Counter

import msgspec
import pytest

from rtc_appservice.core.explain import CallExplanation, explain
from rtc_appservice.core.words import CallId

from .build import SCENARIOS, Scene, history_of, project_room


def explained(scenario: str) -> CallExplanation:
    """Tell the only call of a recording."""
    history = history_of(scenario)
    (session,) = project_room(history)
    found = explain(history, session.report.call_id)
    assert found is not None and session.report == found.call
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_obligations_told_are_those_counted(scenario: str) -> None:
    """Each obligation is listed once, by the outcome the report counts it under."""
    found = explained(scenario)
    counted = {name: count for name, count in msgspec.to_builtins(found.call.obligations).items() if count}

    assert counted == Counter(owed.outcome.value for owed in found.owed)
    assert len(found.owed) == len({(o.owed_at, str(o.sender), str(o.recipient), o.moment) for o in found.owed})


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_timeline_is_in_order_and_whole(scenario: str) -> None:
    """Every stint, distribution and finding of the report stands in it."""
    found = explained(scenario)
    counts = Counter(entry.what for entry in found.timeline)
    times = [entry.at for entry in found.timeline]

    assert sorted(times) == times
    assert found.call.distributions.room_event + found.call.distributions.to_device == counts["key_distributed"]
    assert len(found.call.findings) == counts["finding"]
    assert counts["joined"] >= sum(len(one.stints) for one in found.call.participants)


def test_nobody_owes_a_key_to_oneself() -> None:
    """Sender and recipient are two devices."""
    for scenario in SCENARIOS:
        assert [] == [owed for owed in explained(scenario).owed if owed.sender == owed.recipient]


def test_a_call_that_was_not_is_none() -> None:
    """An unknown id is no call of the room."""
    scene = Scene()
    scene.join("alice", 0)

    assert None is explain(scene.history(100), CallId("unknown"))
