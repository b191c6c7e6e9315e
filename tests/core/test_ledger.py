"""The ledger of room keys that stand in room history; a redaction closes an entry."""

from itertools import permutations

import pytest

from rtc_appservice.core.ledger import history_ledger

from .build import SCENARIOS, Scene, at, history_of, truth_of, who


def test_every_room_key_is_listed_in_order_of_time() -> None:
    """Sender, device, time and number of keys; whoever sent it, in a call or not."""
    scene = Scene()
    second = scene.room_key("alice", 20, 0, 1)
    first = scene.room_key("mallory", 10)
    entries = history_ledger(scene.observations)

    assert [(first, *who("mallory"), at(10), 1, None), (second, *who("alice"), at(20), 2, None)] == [
        (entry.event_id, entry.sender, entry.device_id, entry.at, entry.keys, entry.redacted_at) for entry in entries
    ]


def test_a_redaction_closes_the_entry_whichever_came_first() -> None:
    """Its time is kept; the order of arrival does not matter."""
    scene = Scene()
    key = scene.room_key("alice", 20)
    scene.room_key("alice", 21)
    scene.redact("admin", 100, key)

    for order in permutations(scene.observations):
        assert [at(100), None] == [entry.redacted_at for entry in history_ledger(order)]


def test_the_first_redaction_counts() -> None:
    """What is gone cannot go again."""
    scene = Scene()
    key = scene.room_key("alice", 20)
    scene.redact("admin", 200, key)
    scene.redact("alice", 100, key)

    assert [at(100)] == [entry.redacted_at for entry in history_ledger(scene.observations)]


def test_redactions_of_other_events_change_nothing() -> None:
    """Only key events have entries."""
    scene = Scene()
    scene.room_key("alice", 20)
    scene.redact("alice", 100, "$a message")

    assert [None] == [entry.redacted_at for entry in history_ledger(scene.observations)]


def test_duplicates_are_one_entry() -> None:
    """A room key stands in history once."""
    scene = Scene()
    scene.room_key("alice", 20)

    assert 1 == len(history_ledger(scene.observations * 3))


def test_to_device_keys_stand_in_no_history() -> None:
    """Neither sealed nor clear to-device messages are part of a room's history."""
    scene = Scene()
    scene.read_key("alice", "bob", 10)
    scene.read_key("alice", "bob", 11, encrypted=False)
    scene.to_device("alice", "bob", 12)

    assert [] == history_ledger(scene.observations)


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if not name.endswith("e2ee")])
def test_recorded_room_keys_are_all_listed(scenario: str) -> None:
    """Every room key of a recorded unencrypted call, and nothing else."""
    entries = history_ledger(history_of(scenario).observations)

    assert set(truth_of(scenario)["room_key_events"]) == {entry.event_id for entry in entries}
