"""Key material is gone from what leaves the strip step, and what stays is on the allow-list."""

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtc_appservice.core.strip import KEY_EVENT_TYPES, comparison_tag, decode_key, strip_key_event

from .build import KEY_TYPE, ROOM, SECRET

KEY = bytes(range(16))


def tagger(key: bytes) -> str | None:
    """Tag keys as of one room."""
    return comparison_tag(SECRET, ROOM, key)


def texts(key: bytes) -> list[str]:
    """Give every usual text of a key."""
    standard, url_safe = base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()
    return [standard, standard.rstrip("="), url_safe, url_safe.rstrip("="), key.hex(), key.hex().upper()]


def traces(dumped: str, key: bytes) -> list[str]:
    """Give the texts of a key that are found in a dump."""
    return [text for text in texts(key) if text.rstrip("=") in dumped]


json_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
json_values = st.recursive(
    json_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
keys = st.binary(min_size=16, max_size=40)


@st.composite
def planted(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """Give a key event with keys in any shape under `keys` or `media_key`, and perhaps repeated beside them."""
    secrets = draw(st.lists(keys, min_size=1, max_size=3))
    leaf = st.sampled_from([text for key in secrets for text in texts(key)[:4]])
    entry = st.fixed_dictionaries({"index": json_values, "key": leaf | json_values})
    shape = st.recursive(
        leaf | entry,
        lambda inner: (
            st.lists(inner | json_values, max_size=4)
            | st.dictionaries(st.sampled_from(["key", "index", "keys", "k"]) | st.text(max_size=6), inner, max_size=4)
        ),
        max_leaves=8,
    )
    used = [json.dumps(base64.b64encode(key).decode()) for key in secrets]
    content: dict[str, Any] = {"keys": [{"index": number, "key": json.loads(text)} for number, text in enumerate(used)]}
    content[draw(st.sampled_from(["keys", "media_key"]))] = [draw(shape), *content["keys"]]
    repeated = st.sampled_from([text for key in secrets for text in texts(key)])
    for name in draw(st.sets(st.sampled_from(["call_id", "device_id", "room_id", "member_id", "slot_id", "note"]))):
        content[name] = draw(repeated | st.builds("{}:{}".format, st.text(max_size=5), repeated) | json_values)
    for name in draw(st.sets(st.sampled_from(["member", "session", "unsigned"]))):
        content[name] = draw(
            st.dictionaries(st.sampled_from(["id", "claimed_device_id", "call_id", "x"]), repeated | json_values)
        )
    event = {
        "type": draw(st.sampled_from(sorted(KEY_EVENT_TYPES))),
        "sender": "@alice:lab.test",
        "event_id": "$event",
        "room_id": ROOM,
        "origin_server_ts": 1,
        "content": content,
        "unsigned": draw(json_values | leaf),
        "prev_content": draw(shape),
    }
    return event, secrets


@given(planted())
def test_no_form_of_a_key_survives(case: tuple[dict[str, Any], list[bytes]]) -> None:
    """Wherever and however keys stand in a key event, the stripped event holds none of their texts."""
    event, secrets = case
    dumped = json.dumps(strip_key_event(event, tagger))

    assert [[] for _ in secrets] == [traces(dumped, key) for key in secrets]


@given(planted())
def test_only_listed_fields_are_kept(case: tuple[dict[str, Any], list[bytes]]) -> None:
    """The stripped event is rebuilt from an allow-list, at the top and in the content."""
    stripped = strip_key_event(case[0], tagger)

    assert set() == set(stripped) - {
        "type",
        "sender",
        "event_id",
        "room_id",
        "origin_server_ts",
        "to_user_id",
        "to_device_id",
        "content",
    }
    assert "unsigned" not in stripped["content"] and "note" not in stripped["content"]


@given(planted())
def test_the_event_given_is_left_as_it_was(case: tuple[dict[str, Any], list[bytes]]) -> None:
    """Stripping builds a new event and changes nothing in the one given."""
    before = copy.deepcopy(case[0])
    strip_key_event(case[0], tagger)

    assert before == case[0]


@given(json_values)
def test_any_content_is_taken(content: Any) -> None:
    """Content of any shape is stripped without an error."""
    stripped = strip_key_event({"type": KEY_TYPE, "content": content}, tagger)

    assert KEY_TYPE == stripped["type"]


@pytest.mark.parametrize("field", ["event_id", "sender", "room_id", "type", "to_user_id", "to_device_id"])
def test_a_key_repeated_in_the_envelope_is_blanked_too(field: str) -> None:
    """A field beside the content that repeats a key of the event does not carry it on."""
    text = base64.b64encode(KEY).decode()
    event = {"type": KEY_TYPE, "content": {"keys": [{"index": 0, "key": text}]}} | {field: f"x{text}"}

    assert [] == traces(json.dumps(strip_key_event(event, tagger)), KEY)


@pytest.mark.parametrize("name", ["keys", "media_key"])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "object"])
def test_marks_stand_where_keys_stood(name: str, listed: bool) -> None:
    """Room and to-device form keep their shape; each entry keeps its index, and of the key a mark."""
    entry = {"index": 7, "key": base64.b64encode(KEY).decode(), "format": 0}
    stripped = strip_key_event({"type": KEY_TYPE, "content": {name: [entry] if listed else entry}}, tagger)
    mark = {"index": 7, "mark": {"length": 16, "padded": True, "tag": tagger(KEY)}}

    assert ([mark] if listed else mark) == stripped["content"][name]


@given(st.binary(min_size=1, max_size=64))
def test_every_base64_flavour_is_the_same_key(key: bytes) -> None:
    """Padded or not, URL-safe or not: length and tag are those of the bytes."""
    marks = [
        strip_key_event({"type": KEY_TYPE, "content": {"keys": {"index": 0, "key": text}}}, tagger)["content"]["keys"]
        for text in texts(key)[:4]
    ]

    assert [len(key)] * 4 == [mark["mark"]["length"] for mark in marks]
    assert [tagger(key)] * 4 == [mark["mark"]["tag"] for mark in marks]


@pytest.mark.parametrize(("text", "padded"), [("A" * 22, False), ("A" * 22 + "==", True)])
def test_padding_is_kept_as_a_mark(text: str, padded: bool) -> None:
    """Whether the text ended with `=` tells js-sdk's newer manager from the legacy one."""
    stripped = strip_key_event({"type": KEY_TYPE, "content": {"keys": [{"index": 0, "key": text}]}}, tagger)

    assert padded is stripped["content"]["keys"][0]["mark"]["padded"]


@pytest.mark.parametrize("text", ["not base64!", "%%%%", "é" * 8, "A"])
def test_what_is_not_base64_has_an_empty_mark(text: str) -> None:
    """A key text that does not decode leaves neither length nor tag."""
    stripped = strip_key_event({"type": KEY_TYPE, "content": {"keys": {"index": 0, "key": text}}}, tagger)

    assert {"length": None, "padded": None, "tag": None} == stripped["content"]["keys"]["mark"]


@given(st.binary(max_size=64))
def test_keys_decode_back(key: bytes) -> None:
    """Decoding gives the bytes of any flavour."""
    assert [key] * 4 == [decode_key(text) for text in texts(key)[:4]]


@given(
    st.tuples(keys, st.sampled_from(["!a", "!b", "!a:lab.test"])),
    st.tuples(keys, st.sampled_from(["!a", "!b", "!a:lab.test"])),
)
def test_tags_are_equal_for_the_same_key_in_the_same_room_only(
    one: tuple[bytes, str], other: tuple[bytes, str]
) -> None:
    """Two tags agree if, and only if, room and key bytes do."""
    equal = comparison_tag(SECRET, one[1], one[0]) == comparison_tag(SECRET, other[1], other[0])

    assert (one == other) is equal


@given(keys)
def test_tags_mean_nothing_without_the_secret(key: bytes) -> None:
    """Another deployment's tag of the same key differs; a tag is 16 hex digits and no digit run of the key."""
    tag = comparison_tag(SECRET, ROOM, key)

    assert tag != comparison_tag(b"another", ROOM, key)
    assert 16 == len(tag) and int(tag, 16) >= 0


def test_tags_can_be_off() -> None:
    """Without a tagger's answer the mark has no tag, and still its length."""
    entry = {"index": 0, "key": base64.b64encode(KEY).decode()}
    stripped = strip_key_event({"type": KEY_TYPE, "content": {"keys": [entry]}}, lambda key: None)

    assert {"length": 16, "padded": True, "tag": None} == stripped["content"]["keys"][0]["mark"]
