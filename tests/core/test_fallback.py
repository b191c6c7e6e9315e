"""A device's first room key of a call is a fallback; each cause with the least that shows it."""

from datetime import timedelta
from typing import Any

import pytest

from rtc_appservice.core.model import Fallback
from rtc_appservice.core.words import BLOCKING_CAUSES, Evidence, FallbackCause, FindingKind

from .build import Scene, at, findings_of, modern, who


def call_of(*names: str, encrypted: bool = False, created: bool = True) -> Scene:
    """Give a call its members join at 0, 10, 20 … seconds."""
    scene = Scene(encrypted=encrypted, created=created)
    for number, name in enumerate(names):
        scene.join(name, 10 * number)
    return scene


def smart_pair(*, created: bool = True) -> Scene:
    """Give a call of alice and bob, who hand out their keys by to-device."""
    scene = call_of("alice", "bob", created=created)
    scene.hand_out("alice", "bob", seconds=10.1)
    scene.hand_out("bob", "alice", seconds=10.1)
    return scene


def fallback_of(scene: Scene, name: str, **changes: Any) -> Fallback:
    """Give a device's only fallback."""
    (found,) = [f for f in scene.call(**changes).fallbacks if (f.user_id, f.device_id) == who(name)]
    return found


def cause_of(scene: Scene, name: str, **changes: Any) -> str:
    """Give the cause of a device's only fallback."""
    return fallback_of(scene, name, **changes).cause.value


# --- each cause ----------------------------------------------------------------------------------------


def test_stray() -> None:
    """No stint fits."""
    scene = smart_pair()
    scene.room_key("mallory", 20)

    assert "stray" == cause_of(scene, "mallory")


def test_after_leave() -> None:
    """Clients from js-sdk 37.11 on keep sending keys after leaving: not a fault, not a blocker."""
    scene = smart_pair()
    scene.leave("alice", 50)
    scene.room_key("alice", 50.1, padded=True)

    assert "after_leave" == cause_of(scene, "alice")


def test_followed_by_its_own_envelopes() -> None:
    """It had sent by to-device, and another device's room key came first."""
    scene = smart_pair()
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3)
    found = fallback_of(scene, "alice")

    assert FallbackCause.FOLLOWED is found.cause
    assert found.caused_by is not None
    assert who("carol") == (found.caused_by.user_id, found.caused_by.device_id)


def test_followed_by_the_padded_form() -> None:
    """The newer manager's form shows a client that could have sent by to-device."""
    scene = call_of("carol", "alice")
    scene.room_key("carol", 0.1)
    scene.room_key("carol", 10.2)
    scene.room_key("alice", 10.3, padded=True)

    assert "followed" == cause_of(scene, "alice")


def test_nobody_follows_what_was_sent_before_it_joined() -> None:
    """A client listens from its join on: a key that was in the room before did not switch it."""
    scene = call_of("carol", "alice")
    scene.room_key("carol", 0.1)
    scene.room_key("alice", 10.3, padded=True)

    assert "host_cannot_send" == cause_of(scene, "alice")


def test_followed_by_its_silence() -> None:
    """It was present with others and sent nothing into the room until the foreign key came."""
    scene = call_of("alice", "bob", "carol")
    scene.room_key("carol", 20.1)
    scene.room_key("alice", 20.3)

    assert "followed" == cause_of(scene, "alice", envelopes=False)


def test_followed_names_the_first_foreign_key() -> None:
    """In a cascade everybody followed the one who began it."""
    scene = smart_pair()
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True)
    scene.room_key("bob", 30.4, padded=True)
    causes = {f.device_id: f.caused_by.device_id if f.caused_by else None for f in scene.call().fallbacks}

    assert {"CAROL1": None, "ALICE1": "CAROL1", "BOB1": "CAROL1"} == causes


@pytest.mark.parametrize("stray", [True, False], ids=["stray", "after_leave"])
def test_any_foreign_key_can_be_followed(stray: bool) -> None:
    """Anyone in the room can force a downgrade: a stray key, or one of a device that had left."""
    scene = smart_pair()
    if not stray:
        scene.join("mallory", 15)
        scene.leave("mallory", 20)
    scene.room_key("mallory", 30)
    scene.room_key("alice", 30.3, padded=True)
    found = fallback_of(scene, "alice")

    assert FallbackCause.FOLLOWED is found.cause
    assert found.caused_by is not None
    assert "MALLORY1" == found.caused_by.device_id


def test_gave_up_in_this_call() -> None:
    """Nobody's room key came before, and it had distributed by to-device in this call."""
    scene = smart_pair()
    scene.join("carol", 30)
    scene.room_key("alice", 31, 1, padded=True)

    assert "gave_up" == cause_of(scene, "alice")


@pytest.mark.parametrize(("days", "cause"), [(1, "gave_up"), (29, "gave_up"), (31, "host_cannot_send")])
def test_gave_up_by_what_was_seen_before(days: float, cause: str) -> None:
    """It distributed by to-device in another call of the last 30 days: an explicit input."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 10.5, padded=True)
    history = {who("alice"): at(0) - timedelta(days=days)}

    assert cause == cause_of(scene, "alice", to_device_history=history)


def test_gave_up_by_an_earlier_call_of_the_room() -> None:
    """Calls are judged in order of start: the earlier one is known to the later."""
    scene = smart_pair()
    scene.leave("alice", 50)
    scene.leave("bob", 51)
    scene.join("alice", 500)
    scene.join("bob", 510)
    scene.room_key("alice", 510.5, padded=True)
    (found,) = scene.sessions(1000)[1].report.fallbacks

    assert FallbackCause.GAVE_UP is found.cause


def test_what_comes_later_is_no_history() -> None:
    """History is as of the call's start: sight of a later time does not tell of an earlier one."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 10.5, padded=True)

    assert "host_cannot_send" == cause_of(scene, "alice", to_device_history={who("alice"): at(5000)})


def test_host_cannot_send() -> None:
    """Nobody's room key came before, and its form is the newer manager's."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 10.5, padded=True)

    assert "host_cannot_send" == cause_of(scene, "alice")


def test_room_only_client() -> None:
    """The legacy manager's form, with its own join, and no sign of to-device."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 0.1)
    scene.room_key("bob", 10.1)

    assert ["room_only_client"] * 2 == [fallback.cause for fallback in scene.call().fallbacks]


@pytest.mark.parametrize("indexes", [(0, 1), (0,)])
def test_room_only_client_of_the_oldest_form(indexes: tuple[int, ...]) -> None:
    """No `sent_ts`, or the whole key history: no smart client ever wrote so, seen from the beginning or not."""
    scene = call_of("alice", "bob", created=False)
    scene.room_key("bob", 10.1, *indexes, sent_ts=False)

    assert "room_only_client" == cause_of(scene, "bob", envelopes=False)


@pytest.mark.parametrize(
    ("created", "padded", "candidates"),
    [
        (False, True, {"followed", "gave_up", "host_cannot_send"}),
        (False, False, {"followed", "gave_up", "room_only_client"}),
    ],
)
def test_unknown_where_the_beginning_was_not_seen(created: bool, padded: bool, candidates: set[str]) -> None:
    """Something may have come before: what remains is named."""
    scene = call_of("alice", "bob", created=created)
    scene.room_key("alice", 10.5, padded=padded)
    found = fallback_of(scene, "alice")

    assert FallbackCause.UNKNOWN is found.cause
    assert candidates == {candidate.value for candidate in found.candidates}


def test_unknown_where_keys_were_flowing_and_envelopes_are_not_shown() -> None:
    """An unpadded key with its join, room keys flowing: a room-only client, or a smart one that switched at once."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 0.1)
    scene.room_key("alice", 10.1)
    scene.room_key("bob", 10.3)
    found = fallback_of(scene, "bob", envelopes=False)

    assert FallbackCause.UNKNOWN is found.cause
    assert {"followed", "room_only_client"} == {candidate.value for candidate in found.candidates}


def test_the_opener_is_decidable_without_envelopes() -> None:
    """Nothing flowed before the first key of all."""
    scene = call_of("alice", "bob")
    scene.room_key("alice", 0.1)

    assert "room_only_client" == cause_of(scene, "alice", envelopes=False)


def test_no_stray_where_the_beginning_was_not_seen() -> None:
    """Its membership may be older than our sight."""
    scene = call_of("alice", "bob", created=False)
    scene.room_key("mallory", 20)

    assert "stray" != cause_of(scene, "mallory")


# --- occurrences ---------------------------------------------------------------------------------------


def test_later_keys_add_to_the_count() -> None:
    """One occurrence per device stint and call."""
    scene = call_of("alice", "bob")
    for seconds in (0.1, 10.2, 20, 30):
        scene.room_key("alice", seconds)

    assert (4, at(0.1)) == (fallback_of(scene, "alice").room_keys, fallback_of(scene, "alice").at)


def test_a_rejoin_is_another_occurrence() -> None:
    """Each stint falls back by itself."""
    scene = call_of("bob", "alice")
    scene.room_key("alice", 10.1)
    scene.leave("alice", 50)
    scene.join("alice", 100)
    scene.room_key("alice", 100.1)

    assert [1, 1] == [f.room_keys for f in scene.call().fallbacks if f.device_id == "ALICE1"]


def test_no_room_key_no_fallback() -> None:
    """A call all to-device has none."""
    assert () == smart_pair().call().fallbacks


def test_only_three_causes_block() -> None:
    """Followers, strays and keys after leaving do not stand in the way of switching the backup off."""
    assert {"room_only_client", "host_cannot_send", "gave_up"} == {cause.value for cause in BLOCKING_CAUSES}


def test_every_fallback_is_a_finding() -> None:
    """With cause, count and whether it blocks."""
    scene = smart_pair()
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True)
    found = findings_of(scene.call(), FindingKind.FALLBACK)

    assert [("room_only_client", True), ("followed", False)] == [
        (finding.details["cause"], finding.details["blocks_switch_off"]) for finding in found
    ]


def test_a_private_key_made_public_is_told() -> None:
    """The room key carries the bytes it had sent over Olm before: the comparison tags agree."""
    scene = smart_pair()
    scene.read_key("alice", "bob", 10.2, index=0)
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True, tags=("alice key 0",))
    scene.room_key("bob", 30.3, padded=True)

    assert True is fallback_of(scene, "alice").key_was_private
    assert None is fallback_of(scene, "bob").key_was_private


def test_another_key_than_the_private_one() -> None:
    """Both were read and the tags differ."""
    scene = smart_pair()
    scene.read_key("alice", "bob", 10.2, index=0)
    scene.join("carol", 30)
    scene.room_key("carol", 30.1)
    scene.room_key("alice", 30.3, padded=True, tags=("another",))

    assert False is fallback_of(scene, "alice").key_was_private


@pytest.mark.parametrize("sealed", [True, False])
def test_evidence_and_confidence(sealed: bool) -> None:
    """A sealed room key is inferred, and less certain than a read one."""
    scene = call_of("alice", "bob", encrypted=sealed)
    if sealed:
        scene.sealed_room_key("alice", 0.1)
    else:
        scene.room_key("alice", 0.1)
    found = fallback_of(scene, "alice")

    assert (Evidence.INFERRED if sealed else Evidence.DIRECT) is found.evidence
    assert sealed is (found.confidence < 0.9)


def test_a_modern_client_never_falls_back() -> None:
    """From js-sdk 41.1 on there is no room transport: it only ignores room keys."""
    scene = Scene()
    scene.join("alice", 0, modern("alice"))
    scene.join("bob", 10)
    scene.hand_out("alice", "bob", seconds=10.1, variant="to_device_40")
    scene.room_key("bob", 10.1)

    assert ["BOB1"] == [fallback.device_id for fallback in scene.call().fallbacks]
