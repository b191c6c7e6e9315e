"""What stands for a forgotten user: random, of the same length, the same each time, and nobody else's."""

import json
import string
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtc_appservice.core.lengths import room_key_lengths, to_device_lengths
from rtc_appservice.core.membership import parse_state
from rtc_appservice.core.observed import Membership, Rejected, RoomState
from rtc_appservice.core.person import Tombstones, check_user_id, mentions
from rtc_appservice.core.words import DeviceId, RoomId, UserId
from rtc_appservice.errors import InputError

ANN = UserId("@ann:example.org")
HOMESERVER = "example.org"
ROOM = RoomId("!room:example.org")


def dice(seed: int = 0) -> Callable[[int], str]:
    """Give what makes text of capitals and digits."""
    rng = Random(seed)  # noqa: S311 - no secrets here
    return lambda length: "".join(rng.choice(string.ascii_uppercase + string.digits) for _ in range(length))


def tombstones(user_id: UserId = ANN, seed: int = 0) -> Tombstones:
    """Give the tombstones of a user at a homeserver that has this one for its own."""
    return Tombstones(user_id, dice(seed), frozenset({HOMESERVER}))


_ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


@given(
    _ids.filter(lambda text: ":" not in text), st.sampled_from(["example.org", "a", "remote.net", "[::1]:8448"]), _ids
)
def test_lengths_stay_evidence(localpart: str, server: str, device: str) -> None:
    """What a sealed key of the tombstone would be as long as is what one of the user is, whatever the ids hold."""
    user_id, device_id = UserId(f"@{localpart}:{server}"), DeviceId(device)

    alias = tombstones(user_id).device(user_id, device_id)

    assert user_id != alias[0]
    assert device_id != alias[1]
    for olm_type in (0, 1):
        for sender, recipient in (((user_id, device_id), ANN), ((ANN, DeviceId("A")), user_id)):
            mapped = tombstones(user_id).device(*sender), tombstones(user_id).user(recipient)
            assert to_device_lengths(ROOM, *sender, recipient, olm_type) == to_device_lengths(
                ROOM, *mapped[0], mapped[1], olm_type
            )
    assert room_key_lengths(ROOM, device_id) == room_key_lengths(ROOM, alias[1])


def test_servers() -> None:
    """One of the operator's own stays; another's becomes a name of that length that nobody can register."""
    found = {
        server: tombstones(UserId(f"@ann:{server}")).tombstone.partition(":")[2]
        for server in ("example.org", "ann.example", "ann.net", "a.io", "ann.example.net:8448")
    }

    assert found.pop("example.org") == "example.org"
    assert all(len(old) == len(new) and old != new for old, new in found.items())
    assert found["ann.example"].endswith(".invalid")
    assert found["ann.net"].endswith(".test")
    assert "." not in found["a.io"]


def test_the_same_each_time_and_nobody_elses() -> None:
    """Devices of one letter get different ones, as long as there are any."""
    aliases = tombstones()
    found = [aliases.alias(letter) for letter in string.ascii_uppercase]

    assert len(set(found)) == len(found)
    assert found == [aliases.alias(letter) for letter in string.ascii_uppercase]
    with pytest.raises(InputError, match="too many devices"):
        [aliases.alias(letter) for letter in string.ascii_lowercase]


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("_@ann:example.org_DEV", "session_v1"),
        ("_@ann:example.org_DEV_m.call", "session_v2"),
        ("@ann:example.org", "owned"),
        ("_@ann:example.org_OTHER_ONE_m.call", "session_v2"),
    ],
)
def test_state_keys(key: str, form: str) -> None:
    """User and device are replaced where clients write them, in the join as in the leave that follows."""
    join = Membership(sender=ANN, form=form, key=key, live=True, device_id=DeviceId("DEV"), membership_id="unique")
    aliases = tombstones()
    aliases.learn(["DEV"])

    changed, left = (aliases.body(Membership(sender=ANN, form=form, key=key, live=False)), aliases.body(join))

    assert isinstance(changed, Membership)
    assert isinstance(left, Membership)
    assert changed.key == left.key
    assert len(key) == len(left.key)
    assert not any(part in left.key for part in (ANN, "DEV", "OTHER_ONE"))
    assert left.key.endswith("_m.call") == key.endswith("_m.call")
    assert ("DEV" in key) == (aliases.alias("DEV") in left.key)
    assert "unique" != left.membership_id


def test_named_by_others() -> None:
    """A forged state key, a kick and a state key of a malformed membership name the user without being sent by it."""
    content = {
        "application": "m.call",
        "call_id": "",
        "device_id": "M",
        "focus_active": {"type": "livekit"},
    }
    forged = parse_state(content, UserId("@mallory:example.org"), "_@ann:example.org_M")
    kick = RoomState(sender=UserId("@mod:example.org"), event_type="m.room.member", state_key=ANN, value="leave")
    bad = Rejected(
        sender=UserId("@mallory:example.org"), event_type="m", reason="malformed", key="_@ann:example.org_DEV_m.call"
    )

    text = "".join(str(tombstones().body(body)) for body in (forged, kick, bad))

    assert forged.claimed_user_id == ANN
    assert ANN not in text
    assert "@mallory:example.org" in text
    assert "DEV" not in text


@pytest.mark.parametrize("other", ["@ann:example.org.uk", "@ann:example.org:8448", "@joann:example.org"])
def test_another_user_whose_id_begins_so(other: str) -> None:
    """Nothing of it is touched, nor taken for the user's."""
    body = Membership(
        sender=UserId(other), form="session_v1", key=f"_{other}_DEV", live=True, device_id=DeviceId("DEV")
    )

    assert tombstones().body(body) == body
    assert not mentions(json.loads(json.dumps({"a": [{"b": f"_{other}_DEV"}]})), ANN)
    assert mentions({"a": [{"b": f"_{ANN}_DEV"}]}, ANN)


@pytest.mark.parametrize(
    "text", ["", "ann", "@ann", "@:example.org", "@ann:", "!ann:example.org", "@a n:x.org", "@a\n:x"]
)
def test_what_is_no_user_id(text: str) -> None:
    """The message says what one looks like."""
    with pytest.raises(InputError, match="is no user id"):
        check_user_id(text)


def test_user_ids() -> None:
    """Historical ones too."""
    assert [ANN, "@Ann Lee".replace(" ", "_") + ":[::1]:8448"] == [
        check_user_id(ANN),
        check_user_id("@Ann_Lee:[::1]:8448"),
    ]
