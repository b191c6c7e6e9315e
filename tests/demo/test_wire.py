import pytest

from rtc_appservice.core.words import Device, DeviceId, KeyTransport, UserId
from rtc_appservice.demo import wire
from rtc_appservice.demo.wire import Generation

ROOM = "!" + "r" * 43  # room version 12: no server part


def device(name: str) -> Device:
    """Give a device as the recorded calls named them."""
    return UserId(f"@{name}:lab.test"), DeviceId(f"{name.upper()}1")


def content(generation: Generation, transport: KeyTransport, name: str = "alice") -> dict[str, object]:
    """Give a key content with a key of zeros."""
    return wire.key_content(
        generation,
        transport,
        device=device(name),
        room_id=ROOM,
        member_id="m" * 36,
        index=0,
        key=bytes(16),
        sent_ts=1795423733366,
    )


def body_length(plaintext: str, olm_type: int) -> int:
    """Give the base64 length of an Olm message: version 3, one 16-byte block cipher, chain index below 128."""
    ciphertext = (len(plaintext) // 16 + 1) * 16
    message = 1 + 34 + 2 + (1 + 2 + ciphertext) + 8
    if olm_type == 0:
        message = 1 + 3 * 34 + 1 + 2 + message
    return (message * 4 + 2) // 3


# Lengths recorded from js-sdk 37.13.0 and 43.0.0 with these very users and devices: type 0, then type 1.
@pytest.mark.parametrize(
    ("generation", "sender", "recipient", "recorded"),
    [
        (Generation.SMART, "bob", "alice", (1400, 1259)),
        (Generation.SMART, "alice", "bob", (1422, 1280)),
        (Generation.SMART, "carol", "alice", (1422, 1280)),
        (Generation.MODERN, "alice", "bob", (1486, 1344)),
        (Generation.MODERN, "bob", "alice", (1464, 1323)),
    ],
)
def test_envelopes_are_as_long_as_recorded_ones(
    generation: Generation, sender: str, recipient: str, recorded: tuple[int, int]
) -> None:
    """What a player seals is as long as what the client of its generation seals for the same devices."""
    user_id, device_id = device(sender)
    device_keys = {
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": device_id,
        "keys": {f"curve25519:{device_id}": "k" * 43, f"ed25519:{device_id}": "k" * 43},
        "signatures": {user_id: {f"ed25519:{device_id}": "s" * 86}},
        "user_id": user_id,
    }
    plaintext = wire.olm_plaintext(
        content(generation, KeyTransport.TO_DEVICE, sender),
        sender=user_id,
        sender_device_keys=device_keys,
        recipient=device(recipient)[0],
        recipient_ed25519="k" * 43,
    )

    assert recorded == (body_length(plaintext, 0), body_length(plaintext, 1))


@pytest.mark.parametrize(("generation", "length"), [(Generation.ROOM_ONLY, 22), (Generation.SMART, 24)])
def test_key_text_shows_the_manager(generation: Generation, length: int) -> None:
    """The legacy manager writes 22 characters without padding, the newer one 24 with it."""
    assert length == len(wire.key_text(generation, bytes(16)))


def test_keys_are_a_list_in_rooms_and_an_object_to_devices() -> None:
    """The two forms of a key event differ in shape."""
    assert isinstance(content(Generation.SMART, KeyTransport.ROOM_EVENT)["keys"], list)
    assert isinstance(content(Generation.SMART, KeyTransport.TO_DEVICE)["keys"], dict)


def test_only_modern_names_its_member_id() -> None:
    """37.13 has no `member.id`."""
    assert {"claimed_device_id": "ALICE1"} == content(Generation.SMART, KeyTransport.TO_DEVICE)["member"]
    member = content(Generation.MODERN, KeyTransport.TO_DEVICE)["member"]
    assert {"claimed_device_id": "ALICE1", "id": "m" * 36} == member


def test_state_keys_of_both_eras() -> None:
    """From 38.0 on the state key ends with the application."""
    assert "_@alice:lab.test_ALICE1" == wire.state_key(Generation.SMART, device("alice"))
    assert "_@alice:lab.test_ALICE1_m.call" == wire.state_key(Generation.MODERN, device("alice"))
