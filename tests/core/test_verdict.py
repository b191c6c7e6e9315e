"""What could be seen of a call, and how its keys travelled."""

from typing import Any

import pytest

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import Coverage, Evidence, Verdict

from .build import Scene


def decided(call: CallReport) -> tuple[Verdict, Evidence]:
    """Give a verdict with its grade."""
    return call.verdict, call.evidence


def pair(**changes: Any) -> Scene:
    """Give a call of alice and bob."""
    scene = Scene(**changes)
    scene.join("alice", 0)
    scene.join("bob", 10)
    return scene


def test_to_device() -> None:
    """Two participants, keys seen by to-device, no room key, the timeline covered: by envelopes, so inferred."""
    scene = pair()
    scene.to_device("alice", "bob", 10.1)

    assert (Verdict.TO_DEVICE, Evidence.INFERRED) == decided(scene.call())


def test_room_event() -> None:
    """Every distributing device used room events: read in clear."""
    scene = pair()
    scene.room_key("alice", 10.1)
    scene.room_key("bob", 10.1)

    assert (Verdict.ROOM_EVENT, Evidence.DIRECT) == decided(scene.call())


def test_room_event_decrypted() -> None:
    """The grade is that of reading."""
    scene = pair(encrypted=True)
    scene.room_key("alice", 10.1, encrypted=True)

    assert (Verdict.ROOM_EVENT, Evidence.DECRYPTED) == decided(scene.call())


def test_mixed() -> None:
    """Both: the grade is that of the weaker of the two."""
    scene = pair()
    scene.room_key("alice", 10.1)
    scene.to_device("bob", "alice", 10.1)

    assert (Verdict.MIXED, Evidence.INFERRED) == decided(scene.call())


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_pair_without_keys_is_never_success(encrypted: bool) -> None:
    """Two obligations are too few to conclude from the silence of envelopes."""
    assert Verdict.UNKNOWN is pair(encrypted=encrypted).call().verdict


def test_no_keys() -> None:
    """Six obligations unconfirmed and none delivered are more than the silence of envelopes."""
    scene = pair(encrypted=True)
    scene.join("carol", 20)

    assert Verdict.NO_KEYS is scene.call().verdict
    assert Verdict.UNKNOWN is scene.call(envelopes=False).verdict


def test_no_keys_needs_the_beginning() -> None:
    """A call whose beginning was not seen may have had its keys before."""
    scene = pair(encrypted=True, created=False)
    scene.join("carol", 20)

    assert Verdict.UNKNOWN is scene.call().verdict


def test_solo() -> None:
    """Never two at once: two who missed each other are solo each."""
    scene = Scene()
    scene.join("alice", 0)
    scene.leave("alice", 10)
    scene.join("bob", 10)

    assert Verdict.SOLO is scene.call().verdict


def test_no_solo_where_the_beginning_was_not_seen() -> None:
    """Somebody may have been there before we looked."""
    scene = Scene(created=False)
    scene.join("alice", 0)

    assert Verdict.UNKNOWN is scene.call().verdict


def test_stray_keys_do_not_enter() -> None:
    """Anyone can send one: it must not turn a verdict."""
    scene = pair()
    scene.to_device("alice", "bob", 10.1)
    scene.room_key("mallory", 20)

    assert Verdict.TO_DEVICE is scene.call().verdict


def test_leftovers_of_an_earlier_call_do_not_enter() -> None:
    """A device that left an earlier call and goes on sending into this one."""
    scene = Scene()
    scene.join("zoe", -600)
    scene.leave("zoe", -500)
    scene.join("alice", 0)
    scene.join("bob", 10)
    scene.to_device("alice", "bob", 10.1)
    scene.room_key("zoe", 20)
    call = scene.sessions(1000)[-1].report

    assert Verdict.TO_DEVICE is call.verdict


def test_keys_after_leaving_this_call_do_enter() -> None:
    """A key sent into the room by one who had left this call stands in its history all the same."""
    scene = pair()
    scene.join("carol", 12)
    scene.to_device("alice", "bob", 12.1)
    scene.leave("carol", 20)
    scene.room_key("carol", 20.1, padded=True)

    assert Verdict.MIXED is scene.call().verdict


def test_an_unreadable_timeline_cannot_say_to_device() -> None:
    """Where a sealed event may have been a key, absence of room keys is not known."""
    scene = pair(encrypted=True)
    scene.to_device("alice", "bob", 10.1)
    scene.sealed_room_key("bob", 30)

    assert scene.call().verdict is not Verdict.TO_DEVICE


@pytest.mark.parametrize("envelopes", [True, False])
def test_coverage_of_envelopes_follows_the_scope(envelopes: bool) -> None:
    """The registration's scope, or the recording, says whether envelopes are shown."""
    assert envelopes is (Coverage.ENVELOPES in pair().call(envelopes=envelopes).coverage)


def test_timeline_coverage() -> None:
    """Clear, or sealed and excluded by length: whole; possibly a key: in part. Never both."""
    scene = pair(encrypted=True)
    scene.sealed_room_key("bob", 30, extra=100)
    whole = scene.call().coverage
    scene.sealed_room_key("bob", 31)
    partial = scene.call().coverage

    assert Coverage.TIMELINE in whole and Coverage.TIMELINE_PARTIAL not in whole
    assert Coverage.TIMELINE_PARTIAL in partial and Coverage.TIMELINE not in partial


@pytest.mark.parametrize(
    ("scene", "encrypted"),
    [
        (Scene(), False),
        (Scene(encrypted=True), True),
        (Scene(created=False), None),
        (Scene(created=False, encrypted=True), True),
    ],
)
def test_encrypted_room_is_true_false_or_not_seen(scene: Scene, encrypted: bool | None) -> None:
    """False only if the room was watched since its creation."""
    scene.join("alice", 0)

    assert encrypted is scene.call().encrypted_room
