"""Ciphertext lengths follow from public ids: held against every sealed message of the recordings."""

from typing import Any

import pytest

from rtc_appservice.core import lengths
from rtc_appservice.core.lengths import (
    classify_to_device,
    is_megolm_share,
    megolm_length,
    olm_length,
    room_key_lengths,
    to_device_lengths,
)
from rtc_appservice.core.words import DeviceId, RoomId, UserId

from .build import ROOM, SCENARIOS, WITNESSED, transactions_of, truth_of, who

#: js-sdk release -> the content variants a room key or to-device key of it has.
ROOM_VARIANT = {"36": "room_34_6", "37": "room_37_11", "39": "room_34_6"}
TO_DEVICE_VARIANTS = {
    "37": {"to_device_37_11"},
    "39": {"to_device_37_11"},
    "41": {"to_device_40", "to_device_40_user"},
    "43": {"to_device_40", "to_device_40_user"},
}


def sealed_to_device(scenario: str) -> list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Give each sealed to-device message of a recording: (origin, sending client, message, Olm body)."""
    truth = truth_of(scenario)
    clients = {client["client"]: client for client in truth["clients"]}
    found = []
    for transaction in transactions_of(scenario):
        for message in transaction.body.get("de.sorunome.msc2409.to_device", []):
            known = truth["to_device_messages"].get(message["content"].get("org.matrix.msgid"))
            if known is not None and message["type"] == "m.room.encrypted":
                (sealed,) = message["content"]["ciphertext"].values()
                found.append((known["origin"], clients[known["from"]], message, sealed))
    return found


def predicted(
    scenario: str, client: dict[str, Any], message: dict[str, Any], sealed: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Give the predictions for a recorded message."""
    room_id = truth_of(scenario)["room_id"]
    return to_device_lengths(room_id, message["sender"], client["device"], message["to_user_id"], sealed["type"])


@pytest.mark.parametrize("scenario", SCENARIOS + WITNESSED)
def test_recorded_call_keys_hit_their_prediction(scenario: str) -> None:
    """Every to-device call key is exactly as long as predicted for the variant its client writes."""
    for origin, client, message, sealed in sealed_to_device(scenario):
        if origin == "call_key":
            variant, distance = classify_to_device(predicted(scenario, client, message, sealed), len(sealed["body"]))

            assert 0 == distance
            assert variant is not None
            assert variant.removesuffix("+signed") in TO_DEVICE_VARIANTS[client["js_sdk"][:2]]


@pytest.mark.parametrize("scenario", SCENARIOS + WITNESSED)
def test_recorded_crypto_traffic_is_no_call_key(scenario: str) -> None:
    """Every sharing of a Megolm session is told from a call key, and known for what it is."""
    for origin, client, message, sealed in sealed_to_device(scenario):
        if origin == "crypto":
            predictions = predicted(scenario, client, message, sealed)

            assert None is classify_to_device(predictions, len(sealed["body"]))[0]
            assert is_megolm_share(predictions, len(sealed["body"]))


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS + WITNESSED if "e2ee" in name])
def test_recorded_room_keys_hit_their_prediction(scenario: str) -> None:
    """Among the sealed room events exactly the key events have a key event's length, that of their client's variant."""
    truth = truth_of(scenario)
    clients = {client["client"]: client for client in truth["clients"]}
    for transaction in transactions_of(scenario):
        for event in transaction.body["events"]:
            if event["type"] != "m.room.encrypted" or event["room_id"] != truth["room_id"]:
                continue
            predictions = room_key_lengths(event["room_id"], event["content"]["device_id"])
            length = len(event["content"]["ciphertext"])
            fits = {name for name, found in predictions.items() if length in found}
            key = truth["room_key_events"].get(event["event_id"])

            assert (key is not None) is bool(fits)
            assert key is None or ROOM_VARIANT[clients[key["from"]]["js_sdk"][:2]] in fits


def test_recordings_hold_both_kinds() -> None:
    """The comparisons above compare something: keys and other traffic, both Olm types."""
    found = [entry for scenario in SCENARIOS + WITNESSED for entry in sealed_to_device(scenario)]

    assert {"call_key", "crypto"} == {origin for origin, *_ in found}
    assert {0, 1} == {sealed["type"] for *_, sealed in found}


@pytest.mark.parametrize(
    ("plaintext", "olm_type", "expected"),
    [
        # 15 bytes fill one block; 16 take a second one whole. Frame of 47 + 1 bytes, or 153 + 2 with type 0.
        (15, 1, (47 + 16 + 0) * 4 / 3),
        (16, 1, (47 + 32 + 0) * 4 / 3),
    ],
)
def test_whole_blocks_are_filled_up(plaintext: int, olm_type: int, expected: float) -> None:
    """AES-CBC adds a whole block where the plaintext divides already; base64 is not padded."""
    assert expected == pytest.approx(olm_length(plaintext, olm_type), abs=1)


@pytest.mark.parametrize("plaintext", range(900, 1100, 7))
def test_lengths_grow_by_blocks(plaintext: int) -> None:
    """Sixteen more bytes are one more block, 21 or 22 base64 characters."""
    for length in (
        olm_length(plaintext + 16, 1) - olm_length(plaintext, 1),
        megolm_length(plaintext + 16) - megolm_length(plaintext),
    ):
        assert 21 <= length <= 22


def test_a_higher_message_index_is_longer() -> None:
    """A Megolm index of two varint bytes adds one byte."""
    assert megolm_length(400, 127) <= megolm_length(400, 128) <= megolm_length(400, 127) + 2


def test_opening_a_session_is_longer_than_continuing_one() -> None:
    """An Olm message of type 0 carries three more keys."""
    user, device = who("alice")
    opening, continuing = (to_device_lengths(ROOM, user, device, who("bob")[0], kind) for kind in (0, 1))

    assert all(min(opening[name]) > min(continuing[name]) + 130 for name in opening)


@pytest.mark.parametrize("suffix", ["", "+signed"])
@pytest.mark.parametrize("olm_type", [0, 1])
def test_newer_clients_write_longer_keys(olm_type: int, suffix: str) -> None:
    """Padding and `sent_ts`, then `member.id`: each generation's key is at least as long as the one before."""
    user, device = who("alice")
    found = to_device_lengths(ROOM, user, device, who("bob")[0], olm_type)
    ordered = [found[name + suffix] for name in ("to_device_37_4", "to_device_37_11", "to_device_40", "megolm_share")]

    assert sorted(ordered) == ordered
    assert len(set(ordered)) >= 3


@pytest.mark.parametrize(
    ("user", "device"),
    [
        ("@a:b", "D"),
        ("@" + "l" * 200 + ":example.org", "DEVICE"),
        ("@ünï:lab.test", "ÄÖÜ"),
        ('@"quoted":lab.test', 'D"EV'),
    ],
)
def test_ids_of_any_length_and_script_are_counted_in_bytes(user: str, device: str) -> None:
    """Ids enter the plaintext as JSON in UTF-8: longer ids, longer messages; nothing raises."""
    short = to_device_lengths(ROOM, UserId("@a:b"), DeviceId("D"), UserId("@c:d"), 1)
    found = to_device_lengths(ROOM, UserId(user), DeviceId(device), UserId("@c:d"), 1)

    assert all(found[name] >= short[name] for name in short)
    assert all(min(found) > 0 for found in room_key_lengths(RoomId(ROOM), DeviceId(device)).values())


@pytest.mark.parametrize("extra", [0, 21, 22, -22])
def test_one_block_more_or_less_is_still_a_key(extra: int) -> None:
    """A number of another length moves a message by one block at most."""
    predictions: dict[str, tuple[int, ...]] = {"to_device_37_11": (1280,), "megolm_share": (1600,)}

    assert ("to_device_37_11", abs(extra)) == classify_to_device(predictions, 1280 + extra)


@pytest.mark.parametrize("length", [1200, 1340, 1600, 1590, 3000])
def test_what_is_farther_off_is_no_key(length: int) -> None:
    """A length that fits no key, or a Megolm share better, is not taken for a key."""
    assert None is classify_to_device({"to_device_37_11": (1280,), "megolm_share": (1600,)}, length)[0]


def test_a_share_that_lies_nearer_wins() -> None:
    """Where both are within a block, the nearer prediction decides."""
    predictions: dict[str, tuple[int, ...]] = {"to_device_40": (1500,), "megolm_share": (1520,)}

    assert "to_device_40" == classify_to_device(predictions, 1505)[0]
    assert None is classify_to_device(predictions, 1515)[0]


def test_variants_are_named_once() -> None:
    """Every variant has a prediction, signed and not."""
    user, device = who("alice")
    found = to_device_lengths(ROOM, user, device, who("bob")[0], 1)

    assert {name for name, *_ in lengths.TO_DEVICE_VARIANTS} <= set(found)
    assert {name for name, *_ in lengths.ROOM_VARIANTS} == set(room_key_lengths(ROOM, device))
